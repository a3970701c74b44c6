"""Figures of several stores: what stands on which axis, and that everything can be read."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses.contextualization_comparison import draw_comparison
from analyses.contextualization_figure import draw_contextualization
from analyses.contextualization_results import StoreResult
from analyses.phases import find_phases
from analyses.phases_figure import draw_phases
from analyses.prompt_groups import PromptGroup
from tests.analyses.builders import planted_result
from tests.analyses.test_figures import assert_nothing_is_cut_or_overlaps, only, words

KINDS = ("normal", "question", "noisy")
MODELS = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "Salesforce/instructblip-vicuna-7b",
    "a/long-model-name",
)


def stores(count: int, *, blocks: tuple[int, ...] = (32, 40), kinds: tuple[str, ...] = KINDS) -> list[StoreResult]:
    """Stores of models × sources, the sources in turn."""
    return [
        planted_result(
            ((0, own * 3 / 40, own / 4, own * 7 / 8, own), (0.0, 0.1, 0.02, 0.5 + number / 50, 0.3)),
            store=f"/data/run-{number}/store",
            kinds=kinds,
            images=6,
            blocks=own,
            model=MODELS[number // 2 % len(MODELS)],
            source=("karpathy", "winoground")[number % 2],
            depends=number % 4 < 2,
            seed=number,
        )
        for number, own in enumerate(np.resize(blocks, count).tolist())
    ]


def drawn(figure: Figure, axes: int) -> list[tuple[str, object]]:
    return [(str(line.get_color()), line.get_linestyle()) for line in figure.axes[axes].lines]


@pytest.mark.parametrize(
    ("count", "blocks", "kinds"), [(2, (8,), KINDS), (8, (12, 16), KINDS), (11, (40,), ("normal",))]
)
def test_all_figures_of_several_stores_can_be_read(count: int, blocks: tuple[int, ...], kinds: tuple[str, ...]) -> None:
    results = stores(count, blocks=blocks, kinds=kinds)
    for pages in (draw_comparison(results), draw_contextualization(results)):
        axes = [ax for page in pages for ax in page.axes]
        assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1
        for page in pages:
            assert_nothing_is_cut_or_overlaps(page)
            assert ("depth (layer / blocks)" in words(page)) == (len(blocks) > 1)
    overview = only(draw_phases(find_phases(results, bootstraps=5)))
    assert_nothing_is_cut_or_overlaps(overview)
    assert len(overview.axes) == 1


def test_colours_tell_stores_and_styles_tell_prompt_kinds() -> None:
    results = stores(8)
    figure = only(draw_comparison(results))
    inter = drawn(figure, 0)
    assert len(set(inter)) == len(inter) == 8 * 3
    assert len({colour for colour, _ in inter}) == 8
    assert len({style for _, style in inter}) == 3
    # One image-image curve where image states do not see the prompt, drawn solid.
    images = drawn(figure, 1)
    assert len(images) == 4 * 3 + 4
    (piece,) = figure.subfigs
    names = [text.get_text() for text in piece.legends[0].get_texts()]
    assert sorted(filter(None, names)) == sorted(
        {f"{MODELS[k // 2].split('/')[-1]} · {('karpathy', 'winoground')[k % 2]}" for k in range(8)} | set(KINDS)
    )


def test_a_line_is_the_mean_over_images_where_its_layer_lies() -> None:
    results = stores(2, blocks=(20, 40))
    figure = only(draw_comparison(results))
    for item, number in zip(results, (0, 3), strict=True):
        line = figure.axes[0].lines[number]
        chosen = (item.result.samples["prompt_kind"] == "normal").to_numpy()
        np.testing.assert_allclose(line.get_ydata(), item.result.cosine[chosen, :, 0].mean(axis=0))
        np.testing.assert_allclose(line.get_xdata(), item.result.layers / item.result.block_count)
    same = only(draw_comparison(stores(2, blocks=(20,))))
    np.testing.assert_array_equal(same.axes[0].lines[0].get_xdata(), np.arange(21))


def test_more_stores_than_colours_are_rows_by_source() -> None:
    figure = only(draw_comparison(stores(11, kinds=("normal",))))
    rows = [[text.get_text() for text in piece.legends[0].get_texts()] for piece in figure.subfigs]
    assert [len(list(filter(None, row))) for row in rows] == [6, 5]
    assert all("karpathy" in name for name in rows[0] if name)
    assert all("winoground" in name for name in rows[1] if name)


def test_curves_of_stores_that_coincide_are_all_marked() -> None:
    first, *others = stores(3, blocks=(12,), kinds=("normal",))
    same = [StoreResult(item.identity, first.result) for item in (first, *others)]
    (figure,) = draw_comparison(same)
    assert_nothing_is_cut_or_overlaps(figure)
    marks = figure.axes[0].collections
    colours = [str(line.get_color()) for line in figure.axes[0].lines]
    assert [to_hex(own.get_facecolor()[0]).upper() for own in marks] == colours
    layers = [own.get_offsets()[:, 0].tolist() for own in marks]
    assert sorted(layer for own in layers for layer in own) == list(range(13))  # none lies on another
    top = max(line.get_zorder() for line in figure.axes[0].lines)
    assert all(own.get_zorder() > top for own in marks)
    named = [line for line in figure.subfigs[0].legends[0].get_lines() if line.get_linestyle() != "None"]
    assert [(line.get_color(), line.get_marker()) for line in named] == [
        (colour, marker) for colour, marker in zip(colours, "os^", strict=True)
    ]


def test_rows_of_stores_and_overviews_that_are_too_long_go_on_on_further_pages() -> None:
    sources = ("a", "b", "c")
    results = [
        planted_result(store=f"{source}{number}", images=2, source=source, noise=0.001)
        for source in sources
        for number in range(3)
    ]
    pages = draw_comparison(results)
    assert [len(page.subfigs) for page in pages] == [2, 1]
    found = find_phases([planted_result(images=3, blocks=10)], bootstraps=5)
    (curve,) = [curve for curve in found if curve.pair == "image-text"]
    many = [
        curve._replace(identity=replace(curve.identity, store=f"s{number}"), group=PromptGroup(kind, kind))
        for number in range(12)
        for kind in ("normal", "question", "noisy", "empty")
    ]
    overview = draw_phases(many)
    assert [len(page.axes[0].get_yticks()) for page in overview] == [36, 12]
    for number, page in enumerate((*pages, *overview)):
        assert_nothing_is_cut_or_overlaps(page)
        assert f"Page {number % 2 + 1} of 2." in words(page)


def test_prompts_of_the_users_own_are_titled_by_their_id() -> None:
    item = planted_result(kinds=("normal", "colours", "a prompt with a very long name indeed"), prompts=1)
    for figure in (only(draw_contextualization([item])), only(draw_phases(find_phases([item], bootstraps=5)))):
        assert_nothing_is_cut_or_overlaps(figure)
        assert "colours-0 (40 images)" in words(figure)
    many = planted_result(kinds=("normal", "b", "c", "d", "an extraordinarily long name of a prompt"), images=5)
    for figure in (only(draw_contextualization([many])), only(draw_phases(find_phases([many], bootstraps=5)))):
        assert_nothing_is_cut_or_overlaps(figure)
        assert "an ex" in words(figure)


def without_text(item: StoreResult, kind: str) -> StoreResult:
    cosine = item.result.cosine.copy()
    chosen = (item.result.samples["prompt_kind"] == kind).to_numpy()
    cosine[chosen] = np.nan
    return StoreResult(item.identity, replace(item.result, cosine=cosine))


@pytest.mark.parametrize("count", [1, 3])
def test_a_kind_without_any_curve_is_an_empty_panel(count: int) -> None:
    results = [without_text(item, "empty") for item in stores(count, kinds=("empty", "normal"))]
    figure = only(draw_contextualization(results))
    assert_nothing_is_cut_or_overlaps(figure)
    assert words(figure).count("no image has a curve") == count
    phases = only(draw_phases(find_phases(results, bootstraps=5)))
    assert_nothing_is_cut_or_overlaps(phases)
    assert "empty" not in words(phases)
    if count > 1:
        comparison = only(draw_comparison(results))
        assert_nothing_is_cut_or_overlaps(comparison)
        assert len(comparison.axes[0].lines) == count
    nothing = [without_text(item, "normal") for item in results]
    for figure in (only(draw_contextualization(nothing)), only(draw_comparison(nothing))):
        assert_nothing_is_cut_or_overlaps(figure)


def test_the_overview_shows_layers_support_and_intervals() -> None:
    results = stores(2)
    found = find_phases(results, bootstraps=20)
    headline = [curve for curve in found if curve.pair == "image-text"]
    figure = only(draw_phases(found))
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(bars) == 4 * len(headline) == 24
    shown = words(figure)
    for curve in headline:
        phases = curve.detection.phases
        assert ", ".join(str(phase.end) for phase in phases[:-1]) in shown
        own, bars = bars[:4], bars[4:]
        for bar, phase in zip(own, phases, strict=True):
            assert bar.get_x() == pytest.approx(phase.start / curve.block_count)
            assert bar.get_x() + bar.get_width() == pytest.approx(phase.end / curve.block_count)
            assert bool(bar.get_hatch()) == (not phase.supported)


def test_the_overview_colours_segments_without_numeral_by_direction() -> None:
    knots = (((0, 20, 40), (0.0, 0.5, 0.2)), ((0, 20, 40), (0.5, 0.0, 0.4)))
    items = [
        planted_result(shape, store=f"store {n}", kinds=("normal", "question", "noisy"), noise=0.001)
        for n, shape in enumerate(knots)
    ]
    figure = only(draw_phases(find_phases(items, pattern="auto", bootstraps=20)))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Rise", "Decline"]
    rise, decline = (patch.get_facecolor() for patch in legend.get_patches())
    assert rise != decline
    drawn = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert drawn == [rise, decline] * 3 + [decline, rise] * 3


@pytest.mark.parametrize("adjustment", ["anisotropy", "mean-centred"])
def test_figures_say_what_was_adjusted(adjustment: str) -> None:
    results = [
        StoreResult(item.identity, replace(item.result, adjustment=adjustment)) for item in stores(2, kinds=("normal",))
    ]
    phrase = {"anisotropy": "Subtracted: mean cosine", "mean-centred": "less the layer's mean"}[adjustment]
    figures = [only(draw_contextualization(results)), only(draw_comparison(results))]
    found = find_phases(results, bootstraps=5)
    for figure in (*figures, only(draw_phases(found, adjustment)), only(draw_phases(found * 3, adjustment))):
        assert_nothing_is_cut_or_overlaps(figure)
        assert phrase in words(figure)
