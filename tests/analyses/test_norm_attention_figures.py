from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analyses.figure_style import COLUMN_INCHES
from analyses.kept_parts import KeptParts
from analyses.norm_attention import analyze_store
from analyses.norm_attention_figure import ROLE_COLOURS, draw_shares
from analyses.norm_attention_maps_figure import draw_patches, draw_positions
from analyses.norm_attention_results import StoreAttention
from analyses.opening import open_all
from analyses.resources import Resources
from engine.vocabulary import ROLES
from tests.analyses.attention_builders import Spec, attention_samples, write_attention
from tests.analyses.test_figures import assert_nothing_is_cut_or_overlaps, only, texts, words


def found(folder: Path, *, depends: bool = False, without_sinks: bool = False, stores: int = 1) -> list[StoreAttention]:
    specs = [
        Spec(image, prompt, f"sppp{'i' * 36}t{'n' * length}ttt", ((6, 6, False),))
        for image in ("a", "b", "c")
        for prompt, length in (("normal-1", 9), ("normal-2", 12), ("noisy-1", 11))
    ]
    samples = attention_samples(specs, blocks=range(1, 13))
    paths = [write_attention(folder / f"s{n}", specs, samples, depends=depends, block_count=12) for n in range(stores)]
    opened, identities = open_all([str(path) for path in paths], Resources())
    return [
        StoreAttention(
            identity,
            analyze_store(own, without_sinks=without_sinks, resources=Resources(), kept=KeptParts(folder)),
        )
        for identity, own in zip(identities, opened, strict=True)
    ]


def test_all_figures_are_labelled_and_nothing_overlaps(tmp_path: Path) -> None:
    results = found(tmp_path)
    for draw in (draw_shares, draw_positions, draw_patches):
        figure = only(draw(results))
        assert_nothing_is_cut_or_overlaps(figure)
        (notes,) = [text.get_text() for text in texts(figure) if "\n" in text.get_text()]
        assert all(" " in line for line in notes.split("\n")), "a word stands alone"


def test_several_stores_fill_pages_on_which_nothing_overlaps(tmp_path: Path) -> None:
    (item,) = found(tmp_path)
    results = [item._replace(identity=replace(item.identity, store=f"s{n}", source=f"source {n}")) for n in range(4)]
    for draw in (draw_shares, draw_positions, draw_patches):
        pages = draw(results)
        assert len(pages) == 2
        for number, page in enumerate(pages, 1):
            assert_nothing_is_cut_or_overlaps(page)
            assert f"Page {number} of 2." in words(page)
        said = "".join(map(words, pages))
        assert [said.count(f"source {n}") for n in range(4)] == [3] * 4


def test_maps_on_all_pages_have_the_same_colours(tmp_path: Path) -> None:
    (item,) = found(tmp_path)
    pale = item.result.maps._replace(places=item.result.maps.places._replace(mean=item.result.maps.places.mean / 1000))
    results = [item] * 9 + [item._replace(result=replace(item.result, maps=pale))]
    pages = draw_positions(results)
    scales = [ax.collections[0].get_clim() for page in pages for ax in page.axes[:-1]]  # the last is the bar
    assert len(pages) > 1
    assert len(set(scales)) == 1


def shares_of(figure: Figure, role: str, panel: int) -> np.ndarray:
    (line,) = [line for line in figure.axes[panel].lines if line.get_label() == role]
    return np.asarray(line.get_ydata())


def test_shares_are_means_over_images_of_means_over_prompts(tmp_path: Path) -> None:
    (item,) = found(tmp_path)
    figure = only(draw_shares([item]))
    normal = (item.result.samples["prompt_kind"] == "normal").to_numpy()
    of_image = item.result.roles.index("image")
    expected = item.result.values["attention_norm_share"][normal, 0, :, of_image].mean(axis=0)
    np.testing.assert_allclose(shares_of(figure, "image", 0), expected, rtol=1e-5)
    sinks = item.result.values["sink_share"][normal, 0].sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(shares_of(figure, "position 0 and BOS", 1), sinks, rtol=1e-5)


def test_what_cannot_depend_on_the_prompt_is_drawn_once(tmp_path: Path) -> None:
    free, bound = found(tmp_path / "free"), found(tmp_path / "bound", depends=True)
    for draw in (draw_shares, draw_positions, draw_patches):
        once, twice = words(only(draw(free))), words(only(draw(bound)))
        assert once.count("last image token (") == 1
        assert twice.count("last image token (") == 2
        assert "drawn once" in once
        assert "drawn once" not in twice


def test_sinks_are_named_where_they_are_left_out(tmp_path: Path) -> None:
    with_sinks, without = found(tmp_path / "with"), found(tmp_path / "without", without_sinks=True)
    assert "Shares are of keys other than position 0 and BOS" in words(only(draw_shares(without)))
    assert "position 0" not in words(only(draw_positions(with_sinks)))
    assert "without position 0" in words(only(draw_positions(without)))


def test_a_role_without_keys_is_not_drawn(tmp_path: Path) -> None:
    specs = [Spec("a", "normal-1", "siint"), Spec("a", "empty", "siit")]
    store = write_attention(tmp_path / "s", specs, attention_samples(specs), depends=True)
    (opened,), (identity,) = open_all([str(store)], Resources())
    result = analyze_store(opened, without_sinks=False, resources=Resources(), kept=KeptParts(tmp_path))
    figure = only(draw_shares([StoreAttention(identity, result)]))
    drawn = [{line.get_label() for line in ax.lines} & set(ROLES) for ax in figure.axes]
    assert drawn == [{"special", "image", "instruction", "template"}] * 4 + [{"special", "image", "template"}] * 4


def test_heat_maps_show_the_means_and_leave_no_key_out(tmp_path: Path) -> None:
    (item,) = found(tmp_path)
    figure = only(draw_positions([item]))
    mesh = figure.axes[0].collections[0]
    values = np.ma.filled(mesh.get_array(), 0)
    places = item.result.maps.places
    np.testing.assert_allclose(values, np.nan_to_num(places.mean[2, 0, 0]))
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=0.05)  # not all sequences have all places
    patches = only(draw_patches([item])).axes[0].images[0].get_array()
    assert item.result.maps.grid is not None
    np.testing.assert_allclose(np.ma.filled(patches, 0), item.result.maps.grid.mean[2, 0, 0, 0])


def test_every_role_has_its_own_colour() -> None:
    assert set(ROLE_COLOURS) == set(ROLES)
    assert len(set(ROLE_COLOURS.values())) == len(ROLES)


def test_figures_of_one_store_fit_a_papers_column(tmp_path: Path) -> None:
    results = found(tmp_path)
    for draw in (draw_shares, draw_positions, draw_patches):
        figure = only(draw(results))
        assert figure.get_figwidth() == COLUMN_INCHES
        assert min(text.get_fontsize() for text in texts(figure) if text.get_text()) >= 6
