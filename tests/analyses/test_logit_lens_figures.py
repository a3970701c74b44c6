from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from analyses.figure_style import COLUMN_INCHES
from analyses.kept_parts import KeptParts
from analyses.lens_glyphs import drawable, fit
from analyses.lens_patches import ImagePieces, image_pieces
from analyses.logit_lens import analyze_store
from analyses.logit_lens_figure import draw_curves
from analyses.logit_lens_panels import ALL_PROMPTS, draw_legend
from analyses.logit_lens_patches_figure import draw_patches
from analyses.logit_lens_plan import LensChoice, plan_tasks
from analyses.logit_lens_results import CURVES, GroupCurves, StoreLens, group_curves
from analyses.logit_lens_trajectory_figure import draw_trajectory
from analyses.opening import open_all
from analyses.prompt_groups import prompt_groups
from analyses.resources import Resources
from analyses.results import write_figures
from tests.analyses.attention_builders import Spec
from tests.analyses.lens_builders import CAPTIONS, PIECES, LensModelSpec, lens_samples, write_lens
from tests.analyses.test_figures import assert_nothing_is_cut_or_overlaps, only, texts, words

KINDS = ("normal-1", "normal-2", "question", "noisy-1", "empty")
GRID = ((4, 4, False),)
HOSTILE = ("$x_{$", "\\frac{", "草草", "\x00\n", "🙂", "a" * 60, "مرحبا", "", "\u0301", "<&>", "%s{}")


def results_of(
    folder: Path,
    *,
    depends: bool,
    stores: int = 1,
    captions: bool = True,
    layers: tuple[str, ...] = (),
    kinds: Sequence[str] = KINDS,
) -> tuple[list[StoreLens], list[list[GroupCurves]]]:
    specs = [Spec(image, kind, f"sp{'i' * 16}nnt", GRID) for image in "abc" for kind in kinds]
    samples = lens_samples(specs, layers=9, depends=depends)
    paths = [
        write_lens(folder / f"s{n}", specs, samples, depends=depends, captions=CAPTIONS if captions else {})
        for n in range(stores)
    ]
    opened, identities = open_all([str(path) for path in paths], Resources())
    choice = LensChoice(2, layers, "auto", True)
    results = [
        StoreLens(identity, analyze_store(own, plan_tasks(own, choice), resources=Resources(), kept=KeptParts(folder)))
        for identity, own in zip(identities, opened, strict=True)
    ]
    return results, [
        [group_curves(own, chosen, 20, 0) for _, chosen in prompt_groups(own.samples)] for _, own in results
    ]


@pytest.mark.parametrize("stores", [1, 3])
@pytest.mark.parametrize("depends", [False, True])
def test_all_curves_are_labelled_and_nothing_overlaps(tmp_path: Path, stores: int, depends: bool) -> None:
    results, curves = results_of(tmp_path, depends=depends, stores=stores)
    for draw in (draw_curves, draw_trajectory):
        figure = only(draw(results, curves))
        assert_nothing_is_cut_or_overlaps(figure)
        assert figure.get_figheight() <= (4.5 if stores == 1 else 2.4 * stores)


def test_what_cannot_depend_on_the_prompt_is_drawn_once_and_said_so(tmp_path: Path) -> None:
    free, bound = (results_of(tmp_path / str(flag), depends=flag) for flag in (False, True))
    once, each = only(draw_curves(*free)), only(draw_curves(*bound))
    assert [len(ax.lines) for ax in once.axes] == [3, 2, 1]
    assert [len(ax.lines) for ax in each.axes] == [4, 4, 4]
    assert "the table has the other variants" in words(each)
    (legend,) = once.legends  # one curve needs no name
    assert [text.get_text() for text in legend.get_texts()] == ["unique", "token", "prefix"]
    assert "by construction" in words(once)
    assert "by construction" not in words(each)
    trajectory = only(draw_trajectory(*free))
    assert [len(ax.lines) for ax in trajectory.axes] == [1, 4, 1, 4]  # the last text token sees every prompt
    assert [len(ax.collections) for ax in trajectory.axes] == [2, 4, 2, 4]  # one curve has a band of deviations too
    assert trajectory.axes[0].get_ylim() == trajectory.axes[1].get_ylim()
    assert ALL_PROMPTS in words(trajectory)
    assert "by construction" in words(trajectory)


def test_a_legend_of_two_rows_reads_row_by_row() -> None:
    names = ["all prompts", "normal", "question", "noisy", "empty"]
    figure = Figure(figsize=(COLUMN_INCHES, 2), layout="constrained")
    figure.subplots()
    draw_legend(figure, {name: Line2D([], []) for name in names})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    places = {text.get_text(): text.get_window_extent() for text in legend.get_texts()}
    middle = (legend.get_window_extent().y0 + legend.get_window_extent().y1) / 2
    lower = {name: places[name].y0 < middle for name in names}
    assert [*lower.values()] == [False, False, False, True, True]
    assert sorted(names, key=lambda name: (lower[name], places[name].x0)) == names


def test_one_prompt_group_has_neither_a_note_of_identity_nor_a_name_for_its_curve(tmp_path: Path) -> None:
    for name, captions in (("with", True), ("without", False)):
        found = results_of(tmp_path / name, depends=False, captions=captions, kinds=("normal-1", "normal-2"))
        for draw in (draw_curves, draw_trajectory):
            figure = only(draw(*found))
            assert "by construction" not in words(figure)
            named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
            assert named == (["unique", "token", "prefix"] if captions and draw is draw_curves else [])
            assert_nothing_is_cut_or_overlaps(figure)


def test_the_dark_band_is_the_bootstrap_interval_and_the_pale_one_the_deviation(tmp_path: Path) -> None:
    results, curves = results_of(tmp_path, depends=False)
    mean, std, low, high = curves[0][0].statistics[:, 0]
    pale, dark = only(draw_curves(results, curves)).axes[0].collections
    for band, (bottom, top) in {
        pale: (np.maximum(mean - std, 0), np.minimum(mean + std, 1)),
        dark: (low, high),
    }.items():
        edges = band.get_paths()[0].vertices
        at_layer = [edges[edges[:, 0] == layer, 1] for layer in range(len(mean))]
        np.testing.assert_allclose([own.min() for own in at_layer], bottom)
        np.testing.assert_allclose([own.max() for own in at_layer], top)
    assert (low >= mean - std).all()


def test_curves_that_coincide_are_all_seen(tmp_path: Path) -> None:
    """Each next curve is thinner or has gaps, through which those beneath it show; few layers are marked."""
    results, curves = results_of(tmp_path, depends=True)
    for figure in (only(draw_curves(results, curves)), only(draw_trajectory(results, curves))):
        lines = figure.axes[0].lines
        widths, sizes = ([getattr(line, f"get_{name}")() for line in lines] for name in ("linewidth", "markersize"))
        assert widths == sorted(set(widths), reverse=True)
        assert sizes == sorted(set(sizes), reverse=True)
        assert [line.get_zorder() for line in lines] == sorted({line.get_zorder() for line in lines})
        assert all(line.get_marker() == "o" for line in lines)
        solid = [line.get_linestyle() == "-" for line in lines]
        assert solid == [True, False, False, False]
        (legend,) = figure.legends
        assert [line.get_linestyle() == "-" for line in legend.get_lines()].count(True) == 1


@pytest.mark.parametrize("depends", [False, True])
def test_lines_are_the_means_of_the_curves(tmp_path: Path, depends: bool) -> None:
    results, curves = results_of(tmp_path, depends=depends)
    figure = only(draw_curves(results, curves))
    of_measures = ([0], [3], [6]) if depends else ([0, 1, 2], [3, 5], [6])
    for ax, own in zip(figure.axes, of_measures, strict=True):
        expected = [one.statistics[0, number] for one in curves[0][: 4 if depends else 1] for number in own]
        for line, values in zip(ax.lines, expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), values)
    assert [CURVES[number] for number in (0, 5, 6)] == [
        ("precision", "unique"),
        ("recall", "prefix"),
        ("agreement", ""),
    ]


def test_several_stores_fill_pages_that_have_one_scale_and_one_legend(tmp_path: Path) -> None:
    (item,), (own,) = results_of(tmp_path, depends=True, kinds=("normal-1", "noisy-1"))
    results = [item._replace(identity=replace(item.identity, store=f"s{n}", source=f"source {n}")) for n in range(9)]
    unsure = [group._replace(trajectory=3 * group.trajectory) for group in own]
    for draw, sizes in ((draw_curves, [7, 2]), (draw_trajectory, [3, 3, 3])):
        pages = draw(results, [unsure, *[own] * 8])
        labels = [[ax.get_title(loc="left") for ax in page.axes if ax.get_title(loc="left")] for page in pages]
        assert [len(names) for names in labels] == sizes
        assert [name.split(" · ")[1] for names in labels for name in names] == [f"source {n}" for n in range(9)]
        assert len({page.axes[0].get_ylim() for page in pages}) == 1
        assert len({tuple(text.get_text() for text in page.legends[0].get_texts()) for page in pages}) == 1
    assert_nothing_is_cut_or_overlaps(pages[0])


def test_a_measure_that_nobody_has_is_left_out(tmp_path: Path) -> None:
    without = only(draw_curves(*results_of(tmp_path / "a", depends=True, captions=False)))
    assert [ax.get_ylabel() for ax in without.axes] == ["agreement with\nthe last layer"]
    assert "prefix" not in words(without)
    first = only(draw_curves(*results_of(tmp_path / "b", depends=True, layers=("0:4",))))
    assert [ax.get_ylabel() for ax in first.axes] == ["precision", "recall"]
    neither = only(draw_curves(*results_of(tmp_path / "c", depends=True, captions=False, layers=("0:4",))))
    assert "neither captions nor the last layer" in words(neither)
    for figure in (without, first, neither):
        assert_nothing_is_cut_or_overlaps(figure)


def patches_of(folder: Path, grids: tuple[tuple[int, int, bool], ...], tokens: int) -> ImagePieces | None:
    specs = [Spec("a", "normal-1", f"sp{'i' * tokens}nt", grids), Spec("b", "normal-1", f"s{'i' * tokens}nt", grids)]
    store = write_lens(folder / "s", specs, lens_samples(specs, layers=9))
    (opened,), _ = open_all([str(store)], Resources())
    tasks = plan_tasks(opened, LensChoice(2, (), "auto", False))
    analyze_store(opened, tasks, resources=Resources(), kept=KeptParts(folder))
    return image_pieces(opened, tasks, KeptParts(folder), "b", ("0", "8"))


def test_every_patch_shows_its_best_piece_where_it_lies(tmp_path: Path) -> None:
    image = patches_of(tmp_path, ((2, 3, False),), 6)
    assert image is not None
    assert (image.layers, image.shape, image.placed) == ((0, 8), (2, 3), True)
    specs = [Spec("a", "normal-1", "spiiiiiint"), Spec("b", "normal-1", "siiiiiint")]
    states = lens_samples(specs, layers=9)["b/normal-1"].states[[0, 8], 1:7]
    best, logit = (array[..., 0] for array in LensModelSpec().best(states, 1))
    assert list(zip(image.row, image.col, strict=True)) == [(row, col) for row in range(2) for col in range(3)]
    shown = {"dog": "-dog", "affe": "-affe", "\t": "␣", "▁": "␣"}
    assert image.text.tolist() == [[shown.get(PIECES[n], PIECES[n].lstrip("▁")) for n in row] for row in best]
    np.testing.assert_allclose(image.logit, logit, rtol=1e-5)
    matching = {"dog", "▁Blue", "▁square,"}
    assert image.matches.tolist() == [[PIECES[n] in matching for n in row] for row in best]


def test_tokens_without_a_grid_follow_each_other_and_tiles_alone_are_not_drawn(tmp_path: Path) -> None:
    image = patches_of(tmp_path / "queries", (), 20)
    assert image is not None
    assert (image.shape, image.placed) == ((3, 8), False)
    assert image.row.tolist() == [0] * 8 + [1] * 8 + [2] * 4
    assert patches_of(tmp_path / "tiles", ((1, 2, False), (1, 2, False)), 4) is None
    thumbnail = patches_of(tmp_path / "thumbnail", ((1, 2, False), (1, 2, False), (2, 1, True)), 6)
    assert thumbnail is not None
    assert thumbnail.shape == (2, 1)
    assert thumbnail.text.shape == (2, 2)


def some_patches(shape: tuple[int, int], layers: int, text: tuple[str, ...]) -> ImagePieces:
    count = shape[0] * shape[1]
    row, col = np.divmod(np.arange(count), shape[1])
    rng = np.random.default_rng(0)
    return ImagePieces(
        image_id="COCO_val2014_$\x00{_000000391895",
        caption="a caption with $ and \n and 草, which is much longer than any line of a figure may ever be",
        layers=tuple(range(layers)),
        shape=shape,
        placed=True,
        row=row,
        col=col,
        text=rng.choice(np.array(text, object), (layers, count)),
        logit=rng.normal(10, 3, (layers, count)).astype(np.float32),
        matches=rng.random((layers, count)) < 0.2,
        picture=None,
    )


@pytest.mark.parametrize(("shape", "layers"), [((8, 8), 6), ((24, 24), 2), ((2, 2), 4), ((1, 1), 1), ((3, 40), 2)])
def test_pieces_of_any_vocabulary_are_drawn_inside_their_cells(
    tmp_path: Path, shape: tuple[int, int], layers: int
) -> None:
    results, _ = results_of(tmp_path, depends=True)
    image = some_patches(shape, layers, HOSTILE)
    figures = draw_patches(results, [image])
    write_figures(tmp_path, "x", figures)
    drawn: list[Text] = []
    for figure in figures:
        assert_nothing_is_cut_or_overlaps(figure)
        assert figure.get_figheight() <= 4.5
        drawn += [text for text in texts(figure) if text.axes is not None and text is not text.axes._left_title]
    for text in drawn:
        assert text.axes is not None
        box, ax = text.get_window_extent(), text.axes
        middle = ax.transData.transform(text.get_position())
        width, height = np.abs(ax.transData.transform((1, 1)) - ax.transData.transform((0, 0)))
        assert box.width <= width, text.get_text()
        assert abs(box.x0 + box.x1 - 2 * middle[0]) <= width - box.width + 2
        assert box.height <= height, text.get_text()
    shown = [text for text in image.text.ravel() if drawable(text).strip()]
    assert len(drawn) == len(shown), "every patch of every layer is on one of the pages"


def test_pages_of_an_earlier_figure_do_not_stay(tmp_path: Path) -> None:
    results, _ = results_of(tmp_path / "s", depends=True)
    pages = draw_patches(results, [some_patches((24, 24), 2, ("dog",))])
    assert len(pages) == 4
    written = [path.name for path in write_figures(tmp_path, "x", pages)]
    assert written == [f"x{page}{suffix}" for page in ("", "-2", "-3", "-4") for suffix in (".png", ".svg")]
    (tmp_path / "x-words.png").touch()
    (tmp_path / "x-9.parquet").touch()
    assert [path.name for path in write_figures(tmp_path, "x", pages[:2])] == written[:4]
    assert {path.name for path in tmp_path.glob("x*")} == {*written[:4], "x-words.png", "x-9.parquet"}
    (tmp_path / "x.parquet").touch()
    assert write_figures(tmp_path, "x", []) == []
    assert {path.name for path in tmp_path.glob("x*")} == {"x-words.png", "x-9.parquet", "x.parquet"}
    assert [words(page).count("columns 1–12 of 24") for page in pages] == [1, 0, 1, 0]
    assert "(3 of 4)" in words(pages[2])


def test_a_picture_lies_beneath_the_words(tmp_path: Path) -> None:
    results, _ = results_of(tmp_path, depends=True)
    picture = np.zeros((30, 40, 3), np.uint8)
    pages = draw_patches(results, [some_patches((4, 24), 2, ("red",))._replace(picture=picture)])
    axes = [ax for page in pages for ax in page.axes]
    assert [ax.get_xlim() for ax in axes] == [(0, 12), (12, 24)] * 2
    for ax in axes:
        (beneath,) = ax.images
        assert beneath.get_extent() == [0, 24, 4, 0]  # of the whole grid, of which the strip is a part
    assert all("The picture beneath" in words(page) for page in pages)


def test_stores_that_hold_the_image_are_drawn_below_each_other(tmp_path: Path) -> None:
    results, _ = results_of(tmp_path, depends=True, stores=3)
    image = some_patches((2, 2), 2, ("red", "circle"))
    pages = draw_patches(results, [image, None, image])
    assert sum(len(page.axes) for page in pages) == 4
    for page in pages:
        assert_nothing_is_cut_or_overlaps(page)


def test_texts_are_cut_and_cleaned() -> None:
    assert drawable("a$b é") == "a$b é"
    assert drawable("\n草\u0301🙂x") == "□□□□x"
    assert fit("triangle", 8) == "triangle"
    assert fit("triangles", 8) == "triangl…"
