"""Reports in a real browser: nothing is fetched, nothing hostile acts, and what is chosen is what is shown."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.report.packing import pack
from engine.store import open_store
from tests.analyses.report.builders import HOSTILE
from tests.analyses.report.conftest import Analysed, Open, show


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_opens_from_disk_at_any_width_in_light_and_dark(
    hostile_page: Path, opened: Open, width: int, scheme: str
) -> None:
    page = opened(hostile_page, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    axis = page.locator("#plot-phase-diagram .role-axis-label text").first
    assert axis.evaluate("node => getComputedStyle(node).fill") == page.evaluate(
        "getComputedStyle(document.body).color"
    )
    charts = page.locator(".plot > svg, .plot .marks")
    assert charts.count() >= 11
    for chart in charts.all():
        assert chart.bounding_box()["width"] > 250
    outside = """() => [...document.querySelectorAll('.plot svg text')].filter((node) => {
      const [own, plot] = [node, node.closest('.plot')].map((one) => one.getBoundingClientRect());
      return own.left < plot.left - 1 || own.right > plot.right + 1;
    }).map((node) => node.textContent)"""
    assert page.evaluate(outside) == []


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (let own = node; own; own = own.parentElement) {
      const colour = getComputedStyle(own).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return channels(colour);
    }
  };
  const contrast = (node, colour) => {
    const factor = Number(getComputedStyle(node).filter.match(/brightness\\((.*)\\)/)?.[1] ?? 1);
    const pair = [channels(colour).map((value) => Math.min(255, value * factor)), ground(node)].map(luminance);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  const strokes = [...document.querySelectorAll(".mark-line path, .role-legend-symbol path")]
    .filter((node) => node.getAttribute("d")).map((node) => contrast(node, getComputedStyle(node).stroke));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const unseen = "script, style, noscript, .patch, .hidden, .skip, option";
    if (!walker.currentNode.textContent.trim() || node.closest(unseen)) continue;
    const colour = node instanceof SVGElement ? getComputedStyle(node).fill : getComputedStyle(node).color;
    texts.push([contrast(node, colour), walker.currentNode.textContent]);
  }
  return { strokes, texts };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_texts_stand_out_as_wcag_asks(hostile_page: Path, opened: Open, scheme: str) -> None:
    found = opened(hostile_page, scheme=scheme).evaluate(CONTRASTS)
    assert len(found["strokes"]) > 20
    assert min(found["strokes"]) >= 3
    assert len(found["texts"]) > 300
    assert [text for contrast, text in found["texts"] if contrast < 4.5] == []


def test_hostile_text_is_shown_and_does_nothing(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    show(page, label=HOSTILE[1])
    assert page.locator("#explorer-captions li").all_text_contents() == [*HOSTILE, "the red one"]
    assert page.locator("h1").text_content() == f"{HOSTILE[0].rsplit('/', 1)[-1]} · coco"
    page.locator("#plot-phase-diagram svg").hover()
    assert page.evaluate("window.stolen") is None
    assert page.locator("img").count() == 1
    assert page.locator("body script:not([type])").count() == 3
    assert page.locator("a[href^='javascript']").count() == 0


def lines(page: Any, chart: str) -> list[str]:
    return page.locator(f"#plot-{chart} .mark-line path").evaluate_all(
        "nodes => nodes.map((node) => node.getAttribute('d'))"
    )


def redraw(page: Any, chart: str) -> None:
    """Wait until a chart shows what was chosen."""
    page.evaluate(f"views['{chart}'].runAsync().then(() => null)")


def choose_by_keyboard(page: Any, control: str, key: str) -> None:
    page.focus(f"#{control}")
    page.keyboard.press(key)


def test_prompts_are_switched_by_keyboard(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    normal = lines(page, "phase-diagram")
    assert len([path for path in normal if path]) >= 3
    choose_by_keyboard(page, "phase-diagram-prompt", "ArrowDown")
    page.wait_for_function("views['phase-diagram'].signal('prompt') == 1")
    redraw(page, "phase-diagram")
    assert lines(page, "phase-diagram") != normal
    both = lines(page, "phase-comparison")
    choose_by_keyboard(page, "phase-comparison-only_g", "End")
    page.wait_for_function("views['phase-comparison'].signal('only_g') == 2")
    redraw(page, "phase-comparison")
    assert lines(page, "phase-comparison") == both[1:]
    assert len(both) == 2


def test_values_appear_under_the_pointer(hostile: Analysed, hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    last = page.locator("#plot-phase-diagram .mark-rect path").last  # the layers that can be pointed at come last
    last.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    table = pd.read_parquet(hostile.results / "contextualization.parquet")
    own = table[(table["prompt_kind"] == "normal") & ~table["normed"] & (table["layer"] == 6)]
    inter = own[own["pair"] == "image-text"].groupby("image_id")["cosine"].mean()
    said = page.locator("#vg-tooltip-element").inner_text().replace("−", "-")
    assert f"{inter.mean():.3f} ± {inter.std():.3f}" in said


def test_the_block_and_the_picture_are_chosen_for_all_charts_at_once(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    charts = [f"attention-{kind}-{side}" for kind in ("places", "patches") for side in ("norm", "weight")]

    def fills() -> list[list[str]]:
        cells = "nodes => nodes.map((node) => node.getAttribute('fill'))"
        return [page.locator(f"#plot-{name} .mark-rect path[fill]").evaluate_all(cells) for name in charts[2:]]

    def blocks() -> list[int]:
        return page.evaluate("(names) => names.map((name) => Number(views[name].signal('at_block')))", charts)

    number = page.locator("output[for='attention-maps-at_block']")
    assert number.text_content() == "4 of 6"
    before = fills()
    assert all(len(own) >= 4 for own in before)
    choose_by_keyboard(page, "attention-maps-at_block", "End")
    page.wait_for_function("views['attention-patches-weight'].signal('at_block') == 6")
    assert blocks() == [6] * 4
    assert page.locator("#plot-attention-patches-weight .role-title").text_content() == "block 6"
    assert number.text_content() == "6 of 6"
    after = fills()
    assert all(one != other for one, other in zip(before, after, strict=True))
    rows = page.locator("#plot-attention-places-weight .role-axis-label text")
    box = rows.first.bounding_box()
    page.mouse.click(
        page.locator("#plot-attention-places-norm .mark-rect path").nth(40).bounding_box()["x"] + 1, box["y"] + 5
    )
    page.wait_for_function("views['attention-patches-weight'].signal('at_block') == 1")
    assert blocks() == [1] * 4
    assert page.locator("#attention-maps-at_block").input_value() == "1"
    assert number.text_content() == "1 of 6"
    shown = page.locator("#plot-attention-patches-norm image")
    assert shown.get_attribute("href").startswith("data:image/jpeg;base64,")
    page.select_option("#attention-maps-picture", index=0)
    page.wait_for_function("views['attention-patches-weight'].signal('picture') == 0")
    redraw(page, "attention-patches-norm")
    assert shown.count() == 0


def test_the_picture_shows_the_sample_of_the_chosen_prompt(hostile: Analysed, hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    store = open_store(hostile.stores[0])
    name = page.evaluate("views['attention-patches-norm'].data('pictures')")[0]["name"]

    def shown() -> list[float]:
        return page.evaluate(
            """async () => (await views['attention-patches-norm'].runAsync()).data('patches')
               .filter((row) => row.p === 1 && row.s === 0 && row.q === 0 && row.block === 3)
               .filter((row) => row.g == views['attention-patches-norm'].signal('prompt')).map((row) => row.norm)"""
        )[0]

    def cells() -> list[str]:
        fill = "nodes => nodes.map((node) => node.getAttribute('fill'))"
        return page.locator("#plot-attention-patches-norm .mark-rect path[fill]").evaluate_all(fill)

    seen = []
    for number, prompt in enumerate(("normal-1", "noisy-1")):
        page.select_option("#attention-maps-prompt", index=number)
        page.wait_for_function(f"views['attention-patches-norm'].signal('prompt') == {number}")
        keys = store.sample(f"{name}/{prompt}")["attention_norm"].values[2, 0]
        assert shown() == pytest.approx(keys[2:6] / keys[np.isfinite(keys)].sum(), rel=6e-3)
        seen.append(cells())
    assert len(seen[0]) == len(seen[1]) >= 4
    assert seen[0] != seen[1]


def save_by_keyboard(page: Any, chart: str, path: Path) -> bytes:
    page.focus(f"#save-{chart}")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == f"{chart}.svg"
    download.value.save_as(path)
    return path.read_bytes()


def test_a_drawing_that_is_saved_on_a_dark_page_is_that_of_a_light_one(
    hostile_page: Path, opened: Open, tmp_path: Path
) -> None:
    saved = [
        save_by_keyboard(opened(hostile_page, scheme=scheme), "attention-roles-norm", tmp_path / f"{scheme}.svg")
        for scheme in ("light", "dark")
    ]
    assert saved[0] == saved[1]
    assert b'stroke="#0072B2"' in saved[0]  # as the figures of a paper have it, no brighter
    assert b"filter" not in saved[0]


def test_a_saved_drawing_shows_what_is_chosen(hostile_page: Path, opened: Open, tmp_path: Path) -> None:
    page = opened(hostile_page)
    first = save_by_keyboard(page, "attention-roles-weight", tmp_path / "first.svg")
    choose_by_keyboard(page, "attention-roles-query", "ArrowDown")
    page.wait_for_function("views['attention-roles-weight'].signal('query') == 1")
    redraw(page, "attention-roles-weight")
    assert save_by_keyboard(page, "attention-roles-weight", tmp_path / "second.svg") != first


def test_the_legend_shows_dashes_where_lines_are_dashed(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    drawn = page.locator("#plot-attention-roles-norm .mark-line path").evaluate_all(
        "nodes => nodes.map((node) => node.getAttribute('stroke-dasharray'))"
    )
    legend = page.locator("#plot-attention-roles-norm .role-legend-symbol path").evaluate_all(
        "nodes => nodes.map((node) => node.getAttribute('stroke-dasharray'))"
    )
    names = page.locator("#plot-attention-roles-norm .role-legend-label text").all_text_contents()
    assert [name for name, dash in zip(names, legend, strict=True) if dash == "5,3"] == ["position 0 and BOS"]
    assert sorted(map(str, legend)) == sorted(map(str, drawn))


def test_a_phone_shows_the_slider_with_each_picture_that_it_changes(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page, width=360)
    page.set_viewport_size({"width": 360, "height": 740})
    for side in ("norm", "weight"):
        page.locator(f"#plot-attention-patches-{side} svg").evaluate("node => node.scrollIntoView({ block: 'end' })")
        places = (
            "#attention-maps-at_block",
            f"#plot-attention-patches-{side} svg",
            "#attention-maps-at_block + output",
        )
        slider, picture, number = (page.locator(name).bounding_box() for name in places)
        assert slider["x"] + slider["width"] <= number["x"] < number["x"] + number["width"] <= 360
        assert 0 <= slider["y"] < slider["y"] + slider["height"] <= picture["y"]
        assert picture["y"] + picture["height"] <= 741


def test_packed_values_are_unpacked_as_they_were(hostile_page: Path, opened: Open) -> None:
    value = {"texts": [*HOSTILE, "é 猫 🙂"], "numbers": [0, -1.5, 1e-300, 2**53], "nothing": None, "empty": []}
    assert opened(hostile_page).evaluate("text => unpack(text)", pack(value)) == value


def test_drawings_and_numbers_are_saved_by_keyboard(
    hostile: Analysed, hostile_page: Path, opened: Open, tmp_path: Path
) -> None:
    page = opened(hostile_page)
    drawing = ET.fromstring(save_by_keyboard(page, "phase-diagram", tmp_path / "figure.svg"))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert "script" not in {node.tag.rsplit("}", 1)[-1] for node in drawing.iter()}
    page.get_by_text("curves.csv").first.focus()
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    download.value.save_as(tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pd.read_parquet(hostile.results / "contextualization.parquet")
    means = table[~table["normed"]].groupby(["prompt_kind", "pair", "layer"])["cosine"].mean()
    assert len(rows) == len(means)
    for row in rows:
        mean = means[row["prompt"], row["pair"].replace("–", "-"), int(row["layer"])]
        assert float(row["mean"]) == pytest.approx(mean, rel=1e-3, abs=1e-4)
        assert row["store"].endswith("script> · coco")


def test_everything_is_reached_by_tab_and_has_a_name(two_page: Path, opened: Open) -> None:
    page = opened(two_page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, img, [role=grid]')].filter((node) =>
           !(node.labels?.length && [...node.labels].some((label) => label.textContent.trim()))
           && !node.getAttribute('aria-label') && !node.textContent.trim() && !node.alt)
           .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    described = "plots => plots.map((plot) => plot.querySelector('[aria-label]')?.ariaLabel ?? '')"
    assert all(len(text) > 40 for text in page.locator(".plot").evaluate_all(described))
    wanted = {"explorer-grid", "explorer-layer", "explorer-picture", "explorer-words"}
    kinds = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        name, kind = page.evaluate("[document.activeElement.id, document.activeElement.tagName]")
        wanted.discard(name)
        kinds.add(kind)
    assert wanted == set()
    assert {"A", "BUTTON", "INPUT", "SELECT", "SUMMARY"} <= kinds


def test_stores_of_different_depth_share_an_axis_of_depth(
    deep_and_flat: Analysed, two_page: Path, opened: Open
) -> None:
    page = opened(two_page)
    title = page.locator("#plot-phase-comparison .role-axis-title").first
    assert title.text_content() == "depth (layer / blocks)"
    assert len(lines(page, "phase-comparison")) == 4
    ends = page.evaluate("views['phase-comparison'].data('curves').map((row) => [row.s, row.layer, row.x])")
    blocks = [open_store(store).block_count for store in deep_and_flat.stores]
    assert all(x == pytest.approx(layer / blocks[s], rel=1e-3) for s, layer, x in ends)
    assert {(s, layer) for s, layer, x in ends if x == 1} == {(0, 6), (1, 9)}
    first = lines(page, "phase-diagram")
    page.select_option("#phase-diagram-store", index=1)
    redraw(page, "phase-diagram")
    assert lines(page, "phase-diagram") != first


def test_print_says_what_is_chosen_and_cuts_no_table(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page, width=700)
    page.emulate_media(media="print")
    assert page.locator("#attention-maps-prompt").is_visible()
    assert not page.locator("nav").is_visible()
    table = page.locator("#figure-phase-diagram table").first
    assert table.bounding_box()["width"] <= page.locator("#figure-phase-diagram").bounding_box()["width"]
