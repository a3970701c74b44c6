from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr

from analyses.attention_task import AttentionTask
from analyses.kept_parts import KeptParts
from analyses.key_places import SEGMENTS, key_places
from analyses.norm_attention import MEASURES, analyze_store
from analyses.norm_attention_notes import tell_of_missing
from analyses.norm_attention_results import StoreAttention, to_dataset
from analyses.norm_attention_table import to_tables
from analyses.opening import open_all
from analyses.part_attention import MAP_MEASURES, PartAttention, part_attention
from analyses.registry import run
from analyses.resources import Notify, Resources
from engine.errors import StrataError, UsageError
from engine.vocabulary import ROLES
from tests.analyses.attention_builders import Spec, attention_samples, expected_values, is_sink, write_attention
from tests.engine.store.builders import TinyStore, tiny_store

WrittenStore = Callable[..., TinyStore]
USE: dict[str, Any] = {"workers": 1, "memory": 2 * 2**30}
NAMES = {"norm-attention.zarr", "norm-attention.parquet", "norm-attention.png", "norm-attention.svg"}
POSITIONS = {"norm-attention-positions.png", "norm-attention-positions.svg"}
PATCHES = {f"norm-attention-{what}.{kind}" for what in ("patches", "image") for kind in ("png", "svg")}

LLAVA = [
    Spec("a", "normal-1", "spiiiitnnt", ((2, 2, False),)),
    Spec("a", "normal-2", "spiiiitnnnnt", ((2, 2, False),)),
    Spec("a", "empty", "spiiiitt", ((2, 2, False),)),
    Spec("b", "normal-1", "spiiiiiitnnt", ((2, 3, False),), part=1),
    Spec("b", "normal-2", "spiiiiiitnnnnt", ((2, 3, False),), part=1),
    Spec("c", "normal-1", "spiiiitnt", ((2, 2, False),), part=2),
    Spec("c", "empty", "spiiiitt", ((2, 2, False),), part=2),
]


def analyse(
    stores: Sequence[Path], out: Path, *, without_sinks: bool = False, notify: Notify | None = None
) -> tuple[pd.DataFrame, xr.Dataset]:
    """Table and dataset, without waiting for figures."""
    resources = Resources(notify=notify)
    opened, identities = open_all([str(store) for store in stores], resources)
    results = [
        StoreAttention(
            identity, analyze_store(own, without_sinks=without_sinks, resources=resources, kept=KeptParts(out))
        )
        for identity, own in zip(identities, opened, strict=True)
    ]
    for item in results:
        tell_of_missing(item, resources)
    return pa.concat_tables(to_tables(results)).to_pandas(), to_dataset(results, {})


@pytest.mark.parametrize("without_sinks", [False, True])
@pytest.mark.parametrize("shared_prefix", [False, True])
def test_every_row_is_what_loops_over_keys_give(
    written_store: WrittenStore, tmp_path: Path, shared_prefix: bool, without_sinks: bool
) -> None:
    tiny = written_store(shared_prefix=shared_prefix, capture=("attention",), parts=3, empty_parts=1)
    table, dataset = analyse([tiny.path], tmp_path, without_sinks=without_sinks)
    assert table["without_sinks"].eq(without_sinks).all()
    assert len(table) == len(tiny.samples) * 2 * 4 * 5
    for _, row in table.iterrows():
        sample = tiny.samples[row["sample_id"]]
        blocks = sample.blocks
        assert blocks is not None
        query = blocks.queries.index(row["query"])
        block = blocks.numbers.index(row["block"])
        expected = expected_values(blocks, sample.roles, query, block, row["role"], without_sinks=without_sinks)
        np.testing.assert_allclose([row[name] for name in MEASURES], [expected[name] for name in MEASURES], rtol=1e-5)
        assert (row["image_id"], row["prompt_id"]) == (sample.image_id, sample.prompt_id)
    shares = table.groupby(["sample_id", "query", "block"])[["attention_share", "attention_norm_share"]].sum()
    np.testing.assert_allclose(shares, 1, rtol=1e-5)
    for name in MEASURES:
        np.testing.assert_array_equal(dataset[name].values.ravel(), table[name])
    first = tiny.samples[str(dataset["sample_id"].values[0])]
    counts = [int((first.roles == ROLES.index(str(role))).sum()) for role in dataset["role"].values]
    assert dataset["keys"].values[0].tolist() == counts


def expected_map(
    specs: list[Spec], samples: list[Any], measure: str, place: Callable[[Spec, int], object], without_sinks: bool
) -> dict[object, tuple[float, int]]:
    """Mean and number of samples per place, of block 2 and query last_text, key by key."""
    found: dict[object, list[float]] = {}
    for spec, sample in zip(specs, samples, strict=True):
        weights = sample.blocks.values["attention"][1, 0].astype(float).mean(0)
        norms = sample.blocks.values["attention_norm"][1, 0].astype(float)
        keys = [key for key in range(len(spec.roles)) if not (without_sinks and is_sink(key, spec.codes.tolist()))]
        values = {
            "attention_share": weights / sum(weights[key] for key in keys),
            "attention_norm": norms,
            "attention_norm_share": norms / sum(norms[key] for key in keys),
        }
        for key in keys:
            where = place(spec, key)
            if where is not None:
                found.setdefault(where, []).append(values[measure][key])
    return {where: (float(np.mean(own)), len(own)) for where, own in found.items()}


@pytest.mark.parametrize("without_sinks", [False, True])
def test_maps_are_means_over_the_samples_that_have_the_place(tmp_path: Path, without_sinks: bool) -> None:
    samples = attention_samples(LLAVA)
    store = write_attention(tmp_path / "store", LLAVA, samples)
    _, dataset = analyse([store], tmp_path, without_sinks=without_sinks)
    assert dataset["curve_prompt_kind"].values.tolist() == ["normal", "empty"]

    def place(spec: Spec, key: int) -> tuple[str, int]:
        own = key_places(spec.codes)
        return SEGMENTS[own.segment[key]], int(own.offset[key])

    def patch(spec: Spec, key: int) -> tuple[int, int] | None:
        grid, row, col = spec.cells[key]
        return (row, col) if spec.grids[0][:2] == (2, 2) and grid == 0 else None

    for curve, kind in enumerate(("normal", "empty")):
        chosen = [number for number, spec in enumerate(LLAVA) if spec.prompt.startswith(kind)]
        specs, own = [LLAVA[n] for n in chosen], [samples[n] for n in chosen]
        for number, measure in enumerate(MAP_MEASURES):
            expected = expected_map(specs, own, measure, place, without_sinks)
            values = dataset["position_map"].isel(curve=curve, map_measure=number).sel(query="last_text", block=2)
            counts = dataset["position_samples"].isel(curve=curve).sel(query="last_text")
            names = zip(dataset["place_segment"].values, dataset["place_offset"].values, strict=True)
            for at, (segment, offset) in enumerate(names):
                mean, count = expected.pop((str(segment), int(offset)), (np.nan, 0))
                np.testing.assert_allclose(values.values[at], mean, rtol=1e-6)
                assert counts.values[at] == count
            assert not expected
            expected = expected_map(specs, own, measure, patch, without_sinks)
            grid = dataset["patch_map"].isel(curve=curve, map_measure=number).sel(query="last_text", block=2).values
            assert grid.shape == (2, 2)  # of image b, whose grid is another, nothing is drawn
            for (row, col), (mean, _) in expected.items():
                np.testing.assert_allclose(grid[row, col], mean, rtol=1e-6)
        assert dataset["patch_samples"].values[curve].tolist() == [sum(LLAVA[n].image != "b" for n in chosen)] * 2


def test_curves_are_over_images_whose_prompts_are_averaged_first(tmp_path: Path) -> None:
    store = write_attention(tmp_path / "store", LLAVA, attention_samples(LLAVA))
    table, dataset = analyse([store], tmp_path)
    rows = table[(table["query"] == "last_image") & (table["block"] == 3) & (table["role"] == "image")]
    for curve, kind in enumerate(("normal", "empty")):
        images = rows[rows["prompt_kind"] == kind].groupby("image_id")[list(MEASURES)].mean()
        own = dataset.isel(curve=curve).sel(query="last_image", block=3, role="image")
        np.testing.assert_allclose(own["curve_mean"], images.mean(), rtol=1e-5)
        np.testing.assert_allclose(own["curve_std"], images.std(), rtol=1e-4)
        assert int(own["curve_images"]) == len(images)
        assert (own["curve_low"] <= own["curve_mean"] + 1e-6).all()
        assert (own["curve_mean"] <= own["curve_high"] + 1e-6).all()


def test_a_query_that_a_sample_lacks_is_nan_and_in_no_mean(tmp_path: Path) -> None:
    samples = attention_samples(LLAVA, queries=("last_text", "instruction:3"))
    store = write_attention(tmp_path / "store", LLAVA, samples)
    notes: list[str] = []
    table, dataset = analyse([store], tmp_path, notify=notes.append)
    lacking = {spec.sample_id for spec in LLAVA if spec.roles.count("n") < 4}
    rows = table[table["query"] == "instruction:3"]
    assert set(rows[rows["attention"].isna()]["sample_id"]) == lacking
    assert rows[list(MEASURES)].isna().eq(rows["sample_id"].isin(lacking), axis=0).all(axis=None)
    assert not table[table["query"] == "last_text"][list(MEASURES)].isna().any(axis=None)
    assert notes == ["store: 5 of 7 samples have no query instruction:3; they are NaN and in no mean"]
    own = dataset.sel(query="instruction:3")
    assert own["curve_images"].values.tolist() == [2, 0]
    assert own["curve_mean"].isel(curve=1).isnull().all()
    assert own["position_samples"].max("place").values.tolist() == [2, 0]
    assert own["position_map"].isel(curve=1).isnull().all()
    assert own["patch_samples"].values.tolist() == [1, 0]  # image b has another grid


def test_image_tokens_before_bos_and_no_grid(tmp_path: Path) -> None:
    specs = [Spec("a", "normal-1", "iiisnnn"), Spec("b", "normal-1", "iiisnn")]
    samples = attention_samples(specs)
    notes: list[str] = []
    store = write_attention(tmp_path / "store", specs, samples, depends=True)
    written = run("norm-attention", [str(store)], tmp_path / "r", notify=notes.append, **USE)
    assert {path.name for path in written} == NAMES | POSITIONS
    assert notes == ["store holds no grid that shows a whole image, so there is no map over patches"]
    dataset = xr.open_zarr(tmp_path / "r" / "norm-attention.zarr").load()
    assert dataset.sizes["patch_row"] == 0
    sinks = dataset["sink_share"].sel(query="last_text").isel(sample=0)
    blocks = samples[0].blocks
    assert blocks is not None
    weights = blocks.values["attention"][:, 0].mean(axis=1)
    np.testing.assert_allclose(sinks.sel(role="image"), weights[:, 0], rtol=1e-5)
    np.testing.assert_allclose(sinks.sel(role="special"), weights[:, 3], rtol=1e-5)
    np.testing.assert_array_equal(sinks.sel(role="instruction"), 0)


def test_of_several_grids_the_thumbnail_is_the_image(tmp_path: Path) -> None:
    grids = ((1, 2, False), (1, 2, False), (2, 1, True))
    specs = [Spec("a", "normal-1", "siiiiiin", grids), Spec("b", "normal-1", "siiiin", grids[:2])]
    samples = attention_samples(specs)
    _, dataset = analyse([write_attention(tmp_path / "store", specs, samples)], tmp_path)
    assert dataset["patch_samples"].values.tolist() == [[1, 1]]  # the other has tiles alone
    blocks = samples[0].blocks
    assert blocks is not None
    maps = dataset["patch_map"].isel(curve=0).sel(query="last_text", map_measure="attention_norm")
    np.testing.assert_allclose(maps[:, :, 0], blocks.values["attention_norm"][:, 0, 5:7], rtol=1e-6)


def test_the_commonest_grid_is_chosen_over_all_parts(tmp_path: Path) -> None:
    specs = [
        Spec("a", "normal-1", "siin", ((1, 2, False),)),
        Spec("b", "normal-1", "siiin", ((1, 3, False),), part=1),
        Spec("c", "normal-1", "siiin", ((1, 3, False),), part=2),
    ]
    _, dataset = analyse([write_attention(tmp_path / "store", specs, attention_samples(specs))], tmp_path)
    assert dataset["patch_map"].shape[-2:] == (1, 3)
    assert dataset["patch_samples"].values.tolist() == [[2, 2]]


def test_a_query_that_sees_only_sinks_has_no_share_without_them(tmp_path: Path) -> None:
    specs = [Spec("a", "normal-1", "isn"), Spec("b", "normal-1", "iisn")]
    store = write_attention(tmp_path / "store", specs, attention_samples(specs))
    table, dataset = analyse([store], tmp_path, without_sinks=True)
    own = table[(table["sample_id"] == "a/normal-1") & (table["query"] == "last_image")]
    assert own["attention_norm_share"].isna().all()
    assert own["sink_norm_share"].sum() == pytest.approx(3)  # all of it, in each of three blocks
    assert dataset["curve_images"].sel(query="last_image").values.tolist() == [1]
    shares = dataset["position_map"].sel(query="last_image", map_measure="attention_norm_share").isel(curve=0)
    np.testing.assert_array_equal(shares[:, dataset["place_segment"].values == "image"][:, 1], 1)  # the other sample's


def test_stores_of_other_blocks_queries_and_grids_stack(tmp_path: Path) -> None:
    specs = LLAVA[:1]
    stores = []
    for name, blocks, queries, own in (
        ("x", (1, 3), ("last_text",), specs),
        ("y", (2, 3), ("last_image", "last_text"), [Spec("q", "noisy-1", "iiisn", ((1, 3, False),))]),
    ):
        samples = attention_samples(own, blocks=blocks, queries=queries)
        stores.append(write_attention(tmp_path / name, own, samples))
    table, dataset = analyse(stores, tmp_path)
    assert dataset["block"].values.tolist() == [1, 2, 3]
    assert dataset["query"].values.tolist() == ["last_text", "last_image"]
    for _, row in table.iterrows():
        sample = int(np.flatnonzero(dataset["sample_id"].values == row["sample_id"])[0])
        at = dataset.isel(sample=sample).sel(query=row["query"], block=row["block"], role=row["role"])
        assert float(at["attention_norm"]) == row["attention_norm"]
    assert int(dataset["attention"].notnull().sum()) == len(table)
    for name, query, places in (("x", "last_text", 10), ("y", "last_image", 5)):
        curve = dataset["curve_store"].values.tolist().index(name)
        assert int(dataset["position_samples"].isel(curve=curve).sel(query=query).sum()) == places
    assert dataset["patch_map"].shape[-2:] == (2, 3)
    assert dataset["patch_map"].isel(curve=1, patch_row=1).isnull().all()


@pytest.mark.parametrize("roles", [("image",), ("instruction", "template")])
def test_a_store_of_some_roles_gives_what_a_store_of_all_gives(tmp_path: Path, roles: tuple[str, ...]) -> None:
    found = []
    for name, kept in (("whole", None), ("some", roles)):
        tiny = tiny_store(tmp_path / name / "store", capture=("attention",), roles=kept)
        found.append(analyse([tiny.path], tmp_path / name))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    xr.testing.assert_equal(found[0][1], found[1][1])


def test_before_format_0_4_roles_of_keys_are_those_of_their_tokens(tmp_path: Path) -> None:
    found = []
    for name in ("new", "old"):
        tiny = tiny_store(tmp_path / name / "store", capture=("attention",), key_places=name == "new")
        found.append(analyse([tiny.path], tmp_path / name))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    xr.testing.assert_equal(found[0][1], found[1][1])


def test_before_format_0_4_keys_of_unknown_role_are_refused(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", capture=("attention",), roles=("image",), key_places=False)
    with pytest.raises(StrataError, match=r"does not say the role of \d+ of its \d+ keys.*extract the store again"):
        analyse([tiny.path], tmp_path)


def test_a_row_with_a_hole_is_refused_and_named(tmp_path: Path) -> None:
    samples = attention_samples(LLAVA[:2])
    blocks = samples[1].blocks
    assert blocks is not None
    values = {name: array.copy() for name, array in blocks.values.items()}
    values["attention_norm"][2, 1, 4] = np.nan
    samples[1] = replace(samples[1], blocks=replace(blocks, values=values))
    store = write_attention(tmp_path / "store", LLAVA[:2], samples)
    message = (
        r"key/attention_norm of sample a/normal-2, block 3, query last_image is not finite at key 4.*strata verify"
    )
    with pytest.raises(StrataError, match=message):
        analyse([store], tmp_path)


def test_a_store_without_attention_is_refused_and_all_leaves_the_analysis_out(
    written_store: WrittenStore, tmp_path: Path
) -> None:
    plain = str(written_store(layers=9).path)
    with pytest.raises(UsageError, match=r"holds no key/attention.* it captured residual, pooled.*--capture attention"):
        run("norm-attention", [plain], tmp_path / "r", **USE)
    notes: list[str] = []
    names = {path.name for path in run("all", [plain], tmp_path / "r", notify=notes.append, bootstraps=5, **USE)}
    assert names >= {"contextualization.zarr", "phases.zarr"}
    assert not names & NAMES
    assert notes[0] == f"norm-attention is left out: {plain} holds no key/attention and no key/attention_norm"
    only = str(written_store(residual=False, pooled=False, capture=("attention",)).path)
    assert {path.name for path in run("all", [only], tmp_path / "only", **USE)} == NAMES | POSITIONS | PATCHES


def test_results_of_other_stores_may_not_lie_beside_it(written_store: WrittenStore, tmp_path: Path) -> None:
    one, other = (str(written_store(layers=9, capture=("attention",), seed=seed).path) for seed in (0, 1))
    run("norm-attention", [one], tmp_path, **USE)
    run("contextualization", [one], tmp_path, text_roles=("instruction",), **USE)
    (tmp_path / "contextualization.zarr").rename(tmp_path / "aside")
    for name in ("norm-attention", "contextualization"):
        with pytest.raises(
            UsageError, match=r"norm-attention.zarr holds .* of store store \(plan 0+\), asked is store "
        ):
            run(name, [other], tmp_path, **USE)


def test_what_is_written_is_what_was_found(written_store: WrittenStore, tmp_path: Path) -> None:
    store = written_store(capture=("attention",)).path
    written = run("norm-attention", [str(store)], tmp_path / "r", without_sinks=True, **USE)
    assert {path.name for path in written} == NAMES | POSITIONS | PATCHES
    table, dataset = analyse([store], tmp_path, without_sinks=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "r" / "norm-attention.parquet"), table)
    stored = xr.open_zarr(tmp_path / "r" / "norm-attention.zarr").load()
    for name in dataset.data_vars:
        np.testing.assert_array_equal(stored[name], dataset[name])
    assert (stored.attrs["analysis"], stored.attrs["without_sinks"]) == ("norm-attention", 1)


def test_a_broken_off_analysis_goes_on_and_other_settings_begin_anew(
    written_store: WrittenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = written_store(images=4, parts=4, capture=("attention",)).path
    computed: list[str] = []

    def break_off_at_the_third(task: AttentionTask) -> PartAttention:
        computed.append(task.name)
        if len(computed) == 3:
            raise StrataError("the cluster went away")
        return part_attention(task)

    monkeypatch.setattr("analyses.norm_attention.part_attention", break_off_at_the_third)
    with pytest.raises(StrataError, match="went away"):
        analyse([store], tmp_path)
    found, _ = analyse([store], tmp_path)
    assert len(set(computed)) == 4  # each once but the one that failed
    assert sorted(computed) == sorted([*set(computed), computed[2]])
    pd.testing.assert_frame_equal(found, analyse([store], tmp_path / "whole")[0])
    before = len(computed)
    analyse([store], tmp_path, without_sinks=True)
    assert len(computed) == before + 4
