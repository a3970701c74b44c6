"""The explorer of patches in a real browser: the words are the table's, by pointer, slider and keys."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analyses.report.builders import PIECES, STEAL
from tests.analyses.report.conftest import IMAGES, Analysed, Open, show


def test_a_piece_that_turns_the_direction_of_text_leaves_its_logit_in_place(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    cells = page.evaluate(
        """() => [...document.querySelectorAll('#explorer-table td')].map((cell) =>
           [cell.firstElementChild.textContent, cell.firstElementChild.getBoundingClientRect().right,
            cell.lastElementChild.getBoundingClientRect().left])"""
    )
    turned = [(end, start) for text, end, start in cells if "\u202e" in text]
    assert turned
    assert all(end <= start for end, start in turned)
    logits = page.locator("#explorer-table small").all_text_contents()
    assert all(float(logit) < 1000 for logit in logits)


def table_words(results: Path, image: str) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """Pieces and logits of an image by layer and position, as `logit-lens` tabled them."""
    words = pd.read_parquet(results / "logit-lens-words.parquet").sort_values("rank")
    own = words[words["sample_id"].astype(str) == f"{image}/normal-1"]
    found = {}
    for key, rows in own.groupby(["layer", "position"]):
        found[key] = list(zip(rows["piece"].astype(str), rows["logit"].tolist(), strict=True))
    return found


def shown_words(page: Any) -> list[list[tuple[str, float]]]:
    """Pieces and logits in the explorer's table, layer after layer."""
    return page.evaluate(
        """() => [...document.querySelectorAll('#explorer-table tbody tr')].map((row) =>
           [...row.querySelectorAll('td')].map((cell) =>
             [cell.firstElementChild.textContent, Number(cell.lastElementChild.textContent)]))"""
    )


@pytest.mark.parametrize("image", ["plain", IMAGES[0]])
def test_the_words_of_every_patch_and_layer_are_the_tables(
    hostile: Analysed, hostile_page: Path, opened: Open, image: str
) -> None:
    page = opened(hostile_page)
    show(page, label=image)
    page.focus("#explorer-grid")
    for _ in range(2):
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
    expected = table_words(hostile.results, image)
    texts = {piece: piece[1:] if piece.startswith("▁") else f"-{piece}" for piece in PIECES}
    for key, (row, col) in zip(
        ("", "ArrowRight", "ArrowDown", "ArrowLeft"), ((0, 0), (0, 1), (1, 1), (1, 0)), strict=True
    ):
        if key:
            page.keyboard.press(key)
        assert page.locator("#explorer-where").text_content().endswith(f"patch row {row + 1}, column {col + 1}")
        shown = shown_words(page)
        assert len(shown) == 7
        for layer, words in enumerate(shown):
            tabled = expected[layer, 2 + 2 * row + col]  # two tokens stand before the image
            assert [text for text, _ in words] == [texts[piece] for piece, _ in tabled]
            assert [logit for _, logit in words] == pytest.approx([logit for _, logit in tabled], abs=0.006)
    marked = set(page.locator("#explorer-table mark").all_text_contents())
    plain = set(page.locator("#explorer-table td > span").all_text_contents())
    in_captions = {"red", "&amp;", f"<script>{STEAL}</script>"}
    assert marked <= in_captions
    assert "red" in marked
    assert not plain & in_captions


def test_pointing_sliding_and_keys_change_what_is_shown(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    where, current = page.locator("#explorer-where"), page.locator("#explorer-table tr.current th")
    page.hover("#explorer-patch-0")
    assert "row 1, column 1" in where.text_content()
    page.click("#explorer-patch-3")
    assert where.text_content().endswith("row 2, column 2 (held)")
    page.hover("#explorer-patch-1")
    assert "row 2, column 2" in where.text_content()
    page.click("#explorer-patch-3")
    page.hover("#explorer-patch-1")
    assert "row 1, column 2" in where.text_content()
    page.focus("#explorer-layer")
    page.keyboard.press("Home")
    assert current.text_content() == "0"
    before = page.locator(".patch").first.get_attribute("aria-label")
    page.keyboard.press("End")
    assert current.text_content() == "6"
    assert page.locator("#explorer-layer-name").text_content() == "6 of 6"
    assert page.locator(".patch").first.get_attribute("aria-label") != before
    page.focus("#explorer-grid")
    page.keyboard.press("PageDown")
    assert current.text_content() == "5"
    said = page.locator("#explorer-status").text_content()
    assert said.startswith("patch row 1, column 2, layer 5: ")


def test_the_last_of_quick_choices_is_shown(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    page.evaluate(
        """() => { const choice = document.querySelector('#explorer-picture');
           for (const value of ['1', '2', '3']) {
             choice.value = value;
             choice.dispatchEvent(new Event('change'));
           } }"""
    )
    page.wait_for_selector("#explorer-grid[data-picture='3']")
    page.wait_for_timeout(200)
    assert page.locator("#explorer-grid").get_attribute("data-picture") == "3"


def test_the_grid_lies_on_the_picture_where_the_patches_were_cut(hostile_page: Path, opened: Open) -> None:
    page = opened(hostile_page)
    picture, grid = (page.locator(f"#explorer-{name}").bounding_box() for name in ("image", "grid"))
    assert picture["width"] / picture["height"] == pytest.approx(64 / 48, rel=0.01)
    assert (grid["x"] - picture["x"]) / picture["width"] == pytest.approx(8 / 64, abs=0.01)
    assert grid["width"] / picture["width"] == pytest.approx(48 / 64, abs=0.01)
    assert grid["height"] == pytest.approx(picture["height"], rel=0.01)
    patch = page.locator("#explorer-patch-3").bounding_box()
    assert patch["x"] + patch["width"] == pytest.approx(grid["x"] + grid["width"], abs=1)


def test_without_thumbnails_the_grid_stands_alone(two_page: Path, opened: Open) -> None:
    page = opened(two_page)
    labels = page.locator("#explorer-picture optgroup").evaluate_all("groups => groups.map((group) => group.label)")
    assert labels == ["flat · coco", "deep · coco"]
    assert not page.locator("#explorer-image").is_hidden()
    last = page.locator("#explorer-picture option").last.get_attribute("value")
    show(page, value=last)
    assert len(shown_words(page)) == 10
    assert page.locator("#explorer-image").is_hidden()
    assert page.locator("#explorer-grid").bounding_box()["width"] > 200
    assert "--thumbnails" in page.locator("#figure-lens-explorer figcaption").text_content()


def test_pages_of_llavas_shape_show_every_patch_and_layer(large: Analysed, large_page: Path, opened: Open) -> None:
    assert large_page.stat().st_size < 4 * 2**20
    page = opened(large_page)
    assert page.locator(".patch").count() == 24 * 24
    first = page.locator("#explorer-picture option").first.text_content()
    page.focus("#explorer-grid")
    for _ in range(12):  # from the middle to the corner
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    assert page.locator("#explorer-where").text_content().endswith("patch row 24, column 24")
    shown, expected = shown_words(page), table_words(large.results, first)
    assert len(shown) == 33
    for layer, words in enumerate(shown):
        logits = [logit for _, logit in expected[layer, 2 + 24 * 24 - 1]]
        assert [logit for _, logit in words] == pytest.approx(logits, abs=0.006)
    assert page.evaluate("views['attention-patches-norm'].data('patches')[0].norm.length") == 24 * 24
    page.focus("#attention-maps-at_block")
    page.keyboard.press("End")
    page.wait_for_function("views['attention-patches-weight'].signal('at_block') == 32")
