"""Attention of one sample on its own image, against the rows that were written, and the figure of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analyses.image_attention import ImageAttention, read_image_attention
from analyses.norm_attention_image_figure import draw_image
from analyses.opening import open_all
from analyses.picture import Picture, choose_image, crop_to_grid, show_on_grid, show_picture
from analyses.registry import run
from analyses.resources import Resources
from engine.errors import UsageError
from tests.analyses.attention_builders import Spec, attention_samples, is_sink, write_attention
from tests.analyses.test_figures import assert_nothing_is_cut_or_overlaps, only, words

SPECS = [
    Spec("a", "normal-1", f"sp{'i' * 12}nnt", ((3, 4, False),)),
    Spec("b", "normal-1", f"sp{'i' * 6}nnnt", ((2, 3, False),)),
    Spec("c", "normal-1", f"sp{'i' * 5}nt"),
]


def read(folder: Path, image: str, *, without_sinks: bool = False) -> ImageAttention | None:
    samples = attention_samples(SPECS)
    (store,), _ = open_all([str(write_attention(folder / "s", SPECS, samples))], Resources())
    return read_image_attention(store, image, without_sinks=without_sinks)


@pytest.mark.parametrize("without_sinks", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_shares_are_those_of_the_sample_s_rows(tmp_path: Path, number: int, without_sinks: bool) -> None:
    spec, sample = SPECS[number], attention_samples(SPECS)[number]
    found = read(tmp_path, spec.image, without_sinks=without_sinks)
    assert found is not None
    assert (found.sample_id, found.prompt_id) == (spec.sample_id, spec.prompt)
    rows, cols, _ = spec.grids[0]
    assert found.shares.shape == (2, len(found.queries), 3, rows, cols)
    blocks = sample.blocks
    assert blocks is not None
    for query, name in enumerate(found.queries):
        for block in range(3):
            place = blocks.queries.index(name)
            weights = np.asarray(blocks.values["attention"][block, place], np.float64).mean(axis=0)
            norms = np.asarray(blocks.values["attention_norm"][block, place], np.float64)
            for measure, row in enumerate((weights, norms)):
                counted = [0 if without_sinks and is_sink(p, spec.codes) else v for p, v in enumerate(row)]
                patches = [value for value, letter in zip(counted, spec.roles, strict=True) if letter == "i"]
                expected = np.reshape(patches, (rows, cols)) / np.sum(counted)
                np.testing.assert_allclose(found.shares[measure, query, block], expected, rtol=1e-6)


def test_the_first_image_is_taken_where_none_is_named(tmp_path: Path) -> None:
    (store,), _ = open_all([str(write_attention(tmp_path / "s", SPECS, attention_samples(SPECS)))], Resources())
    assert choose_image([store], "") == "a"
    assert choose_image([store], "b") == "b"


@pytest.mark.parametrize("image", ["c", "nowhere"])
def test_no_grid_or_no_such_image(tmp_path: Path, image: str) -> None:
    assert read(tmp_path, image) is None


def test_an_image_of_no_store_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    store = write_attention(tmp_path / "s", SPECS, attention_samples(SPECS))
    with pytest.raises(UsageError, match=r"--image z: no committed sample of these stores shows it"):
        run("norm-attention", [str(store)], tmp_path / "out", memory=2**30, without_sinks=False, image="z")
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize("pixels", [None, np.full((30, 40, 3), 200, np.uint8)])
def test_the_figure_is_labelled_and_says_whether_there_is_a_picture(tmp_path: Path, pixels: np.ndarray | None) -> None:
    samples = attention_samples(SPECS)
    (store,), (identity,) = open_all([str(write_attention(tmp_path / "s", SPECS, samples))], Resources())
    item = read_image_attention(store, "a", without_sinks=False)
    assert item is not None
    item = item._replace(picture=item.picture._replace(pixels=pixels))
    figure = only(draw_image([(identity, item)], without_sinks=True))
    assert_nothing_is_cut_or_overlaps(figure)
    said = words(figure)
    assert ("--thumbnails" in said) == (pixels is None)
    assert "a/normal-1, last text token: attention weight" in said
    assert "without position 0" in said


def test_panels_of_all_lines_are_as_wide_whatever_their_bars_say(tmp_path: Path) -> None:
    """Labels of 3 letters beside the first line, of 7 beside the second."""
    (store,), (identity,) = open_all(
        [str(write_attention(tmp_path / "s", SPECS, attention_samples(SPECS)))], Resources()
    )
    item = read_image_attention(store, "a", without_sinks=False)
    assert item is not None
    ramp = np.geomspace(0.1, 0.9, item.shares[0, 0].size).reshape(item.shares[0, 0].shape)
    item = item._replace(shares=np.stack([ramp, ramp / 8000])[:, None], queries=("last_text",))
    figure = only(draw_image([(identity, item)], without_sinks=False))
    assert_nothing_is_cut_or_overlaps(figure)
    assert {"0.1", "3.7e-05", "0.00011"} <= set(words(figure).split("\n"))
    lines = [[ax.get_window_extent().x0 for ax in part.axes if ax.images] for part in figure.subfigs]
    assert len(lines[0]) == 3
    np.testing.assert_allclose(lines[0], lines[1], atol=0.5)


def test_images_of_several_stores_fill_pages_on_which_nothing_overlaps(tmp_path: Path) -> None:
    written = write_attention(tmp_path / "s", SPECS, attention_samples(SPECS))
    (store,), (identity,) = open_all([str(written)], Resources())
    item = read_image_attention(store, "a", without_sinks=False)
    assert item is not None
    item = item._replace(picture=item.picture._replace(pixels=np.full((30, 40, 3), 200, np.uint8)))
    found = [(replace(identity, store=f"runs/{name}", source=name), item) for name in ("coco", "winoground")]
    pages = draw_image(found, without_sinks=False)
    assert len(pages) == 2
    for number, page in enumerate(pages, 1):
        assert_nothing_is_cut_or_overlaps(page)
        assert f"Page {number} of 2." in words(page)
    assert sum(words(page).count("attention weight") for page in pages) == 2 * len(item.queries)


def test_patches_lie_where_they_were_cut_from_the_picture() -> None:
    """A grid on the right half of a wide picture: its left patch begins in the middle."""
    ax = Figure().subplots()
    show_picture(ax, Picture(np.zeros((10, 20, 3), np.uint8), 40, 20), beneath=True)
    heat = show_on_grid(ax, np.eye(2), {"x0": 20.0, "y0": 0.0, "x1": 40.0, "y1": 20.0})
    assert list(heat.get_extent()) == [20, 40, 20, 0]
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 40), (20, 0))


def test_what_a_grid_covers_is_cut_out_and_white_beyond_the_image() -> None:
    """A thumbnail of half size; the grid covers the right half and as much again beyond it."""
    pixels = np.arange(5 * 10 * 3, dtype=np.uint8).reshape(5, 10, 3)
    cut = crop_to_grid(Picture(pixels, 20, 10), {"x0": 10.0, "y0": 2.0, "x1": 30.0, "y1": 10.0})
    assert cut is not None
    np.testing.assert_array_equal(cut[:, :5], pixels[1:, 5:])
    assert cut.shape == (4, 10, 3)
    assert (cut[:, 5:] == 255).all()
    assert crop_to_grid(Picture(None, 20, 10), {"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0}) is None
