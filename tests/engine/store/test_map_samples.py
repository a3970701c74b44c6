"""A user's function over every sample, against a loop over Store.sample."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StrataError, UsageError
from engine.store import Store, lazy, open_store, write_part
from engine.store.sample_windows import plan_windows
from engine.vocabulary import ROLE_CODES
from tests.engine.store import builders
from tests.engine.store.builders import tiny_store
from tests.engine.store.kept_roles import keep_roles

KEYS = ["store", "sample_id", "image_id", "prompt_id", "prompt_kind"]


def with_gaps(path: Path) -> Path:
    """A store of image tokens, and of the instruction only in its first part, so that positions have gaps."""
    tiny = tiny_store(path, images=4, written=[])
    for number, roles in enumerate((("image", "instruction"), ("image",))):
        samples = [sample for sample in tiny.samples.values() if sample.part == number]
        content = keep_roles(builders.tiny_part(number, samples, layers=range(5), dim=16), roles)
        write_part(path, content, plan_sha256=str(tiny.record["plan_sha256"]))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "shared": lambda path: tiny_store(path, images=5, prompts=3, empty_parts=1).path,
    "apart": lambda path: tiny_store(path, shared_prefix=False, layers=[0, 2, 5], dtype="bfloat16").path,
    "gaps": with_gaps,
}


@pytest.fixture(scope="module", params=MAKERS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(MAKERS[request.param](tmp_path_factory.mktemp("map") / "store"))


@pytest.mark.parametrize("longest", [0, 2**22])  # every image a window of its own; several together
def test_a_sample_is_what_store_sample_gives(store: Store, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.store.layout.INNER_CHUNK_BYTES", longest)
    seen: dict[str, xr.Dataset] = {}

    def see(sample: xr.Dataset) -> None:
        assert isinstance(sample.hidden_states.data, np.ndarray)
        seen[sample.sample_id] = sample

    store.map_samples(see)
    assert len(seen) == len(store.samples)
    for name, sample in seen.items():
        xr.testing.assert_identical(sample, store.sample(name).load())
        assert sample.attrs["references"] == ["a red circle", "a circle"]


def statistics(sample: xr.Dataset) -> dict[str, Any]:
    states = sample.hidden_states.astype("f8")
    image = states.isel(token=(sample.role == ROLE_CODES["image"]).values)
    return {
        "tokens": sample.sizes["token"],
        "norm": np.sqrt((states**2).sum()),
        "image": image.mean("token").sel(layer=2)[3],
        "last": int(sample.position[-1]),
        "text": sample.prompt.upper(),
        "curve": states.mean(("token", "dim")),
    }


def test_a_mapping_becomes_columns_in_the_order_of_samples(store: Store) -> None:
    table = store.map_samples(statistics)
    assert list(table.columns) == [*KEYS, "tokens", "norm", "image", "last", "text", "curve"]
    pd.testing.assert_frame_equal(table[KEYS], store.samples[KEYS])
    assert table["norm"].dtype == table["image"].dtype == np.float64
    for row in table.to_dict("records"):
        expected = statistics(store.sample(row["sample_id"]).load())
        np.testing.assert_array_equal(row.pop("curve"), expected.pop("curve"))
        assert {key: row[key] for key in expected} == {
            key: getattr(v, "item", lambda v=v: v)() for key, v in expected.items()
        }


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (3, 3),
        ("word", "word"),
        (None, None),
        (np.float16(0.5), 0.5),
        (xr.DataArray(2.5), 2.5),
        (torch.tensor(7), 7),
        ([1, 2], [1, 2]),
    ],
)
def test_anything_else_is_the_column_value(store: Store, value: object, cell: object) -> None:
    table = store.map_samples(lambda _: value, arrays=())
    assert list(table.columns) == [*KEYS, "value"]
    found = table["value"].iloc[0]
    assert pd.isna(found) if cell is None else found == cell
    assert not isinstance(found, torch.Tensor | xr.DataArray)


def test_an_array_is_a_cell_and_keeps_no_sample_alive(store: Store) -> None:
    table = store.map_samples(lambda sample: sample.hidden_states[-1, 0])
    for name, vector in zip(table["sample_id"], table["value"], strict=True):
        np.testing.assert_array_equal(vector, store.sample(name).hidden_states[-1, 0])
        assert type(vector) is np.ndarray
        assert vector.base is None


def test_a_function_may_change_its_sample(store: Store) -> None:
    def spoil(sample: xr.Dataset) -> float:
        before = float(sample.hidden_states.astype("f8").sum()) + float(sample.position.sum())
        sample.hidden_states[:] = np.nan
        sample.position[:] = -5
        return before

    table = store.map_samples(spoil)
    assert table["value"].notna().all()
    pd.testing.assert_frame_equal(table, store.map_samples(spoil))


def test_layers_arrays_and_samples_limit_what_is_read(store: Store) -> None:
    layer = int(store.layers[-1])
    table = store.map_samples(lambda sample: sample.hidden_states.values, layers=[layer, 0])
    for name, states in zip(table["sample_id"], table["value"], strict=True):
        np.testing.assert_array_equal(states, store.sample(name).hidden_states.sel(layer=[layer, 0]))
    assert store.map_samples(lambda sample: sample.layer.values.tolist(), layers=2)["value"].iloc[0] == [2]
    assert store.map_samples(lambda sample: sorted(sample.variables), arrays=())["value"].iloc[0] == sorted(
        ["grid", "patch_col", "patch_row", "position", "role", "token_id"]
    )

    some = store.samples.query("prompt_id == 'normal-2'").iloc[::-1]
    found = store.map_samples(statistics, samples=some)
    whole = store.map_samples(statistics)
    pd.testing.assert_frame_equal(found.drop(columns="curve"), whole.loc[some.index].drop(columns="curve"))
    nothing = store.map_samples(statistics, samples=store.samples.iloc[:0])
    assert list(nothing.columns) == KEYS
    assert len(nothing) == 0


def test_several_stores_keep_their_own_samples(tmp_path: Path) -> None:
    paths = [tiny_store(tmp_path / str(seed), seed=seed).path for seed in (1, 2)]
    alone = [open_store(path).map_samples(statistics)["norm"] for path in paths]
    both = open_store(paths).map_samples(statistics)
    assert both["store"].tolist() == [str(path) for path in paths for _ in range(6)]
    np.testing.assert_array_equal(both["norm"], np.concatenate(alone))


def test_a_store_without_hidden_states_has_coordinates(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "store", residual=False).path)
    counts = store.map_samples(lambda sample: (sample.role == ROLE_CODES["image"]).sum(), arrays=())
    assert counts["value"].tolist() == [4] * 6
    with pytest.raises(
        UsageError, match=r"no array 'hidden_states' of tokens or keys: arrays may name none here; with arrays="
    ):
        store.map_samples(statistics)


def test_missing_entries_of_a_mapping_are_nan(store: Store) -> None:
    name = store.samples["sample_id"].iloc[1]
    table = store.map_samples(lambda sample: {"only": 1.0} if sample.sample_id == name else {}, arrays="hidden_states")
    assert table["only"].notna().tolist() == [row == 1 for row in range(len(table))]


def test_an_error_names_the_sample_and_keeps_its_cause(store: Store) -> None:
    third = store.samples["sample_id"].iloc[2]

    def divide(sample: xr.Dataset) -> float:
        return 1 / (sample.sample_id != third)

    with pytest.raises(StrataError, match=rf"^the function failed on sample '{third}' \(ZeroDivisionError: ") as failed:
        store.map_samples(divide)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"arrays": "attention"}, r"no array 'attention' of tokens or keys: arrays may name hidden_states"),
        ({"arrays": ["role"]}, r"no array 'role' of tokens or keys"),
        ({"layers": 99}, "layer 99 is not stored"),
        ({"samples": pd.DataFrame({"sample_id": ["a"]})}, "samples lacks columns: give rows of Store.samples"),
    ],
)
def test_wrong_requests(store: Store, ask: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.map_samples(statistics, **ask)


def test_rows_of_other_stores_and_unknown_samples_are_refused(tmp_path: Path) -> None:
    store, other = (open_store(tiny_store(tmp_path / name).path) for name in ("store", "other"))
    with pytest.raises(UsageError, match=r"samples name part 0 of .*other, which is not open here"):
        store.map_samples(statistics, samples=other.samples)
    with pytest.raises(UsageError, match=r"part 00000000 of .*store holds no sample 'nobody'"):
        store.map_samples(statistics, samples=store.samples.head(1).assign(sample_id="nobody"))


def test_columns_that_every_row_has_are_taken(store: Store) -> None:
    with pytest.raises(UsageError, match=r"gives 'image_id' for sample '.*', which every row has"):
        store.map_samples(lambda sample: {"image_id": 1})


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=5)), max_size=8), st.integers(0, 60))
def test_windows_cover_each_sample_once_and_are_one_image_or_one_chunk(
    layout: list[tuple[int, list[int]]], step: int
) -> None:
    """Images of a shared prefix and the own tokens of some prompts, lengths 0 included."""
    images, segments, spans, end = [], [], {}, 0
    for number, (prefix, owns) in enumerate(layout):
        start = end
        end += prefix
        for own in owns:
            images.append(str(number))
            segments.append([pair for pair in ((start, start + prefix), (end, end + own)) if pair[0] < pair[1]])
            end += own
        spans[str(number)] = end - start
    windows = plan_windows(images, segments, step)
    assert sorted(row for window in windows for row in window.rows) == list(range(len(images)))
    for window in windows:
        assert list(window.rows) == sorted(window.rows)
        assert all(window.start <= a <= b <= window.stop for row in window.rows for a, b in segments[row])
        own = {images[row] for row in window.rows}
        assert window.stop - window.start <= (spans[own.pop()] if len(own) == 1 else step)
    joined = [max(left.stop, right.stop) - left.start for left, right in itertools.pairwise(windows)]
    assert all(length > step for length in joined)  # else they would be one


def test_nothing_is_read_for_every_sample_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tiny_store(tmp_path / "store", images=4, prompts=9).path)
    asked: list[tuple[int, int]] = []
    read = lazy.StoredArray.__getitem__

    def watch(array: lazy.StoredArray, selection: Any) -> np.ndarray:
        if array.path == "token/hidden_states":
            assert array.origin is not None
            asked.append((array.origin[1], selection[0]))
        return read(array, selection)

    monkeypatch.setattr(lazy.StoredArray, "__getitem__", watch)
    store.map_samples(statistics, layers=[2])
    assert asked == [(0, 2)] * 2  # a part is a chunk here, and each of two is read once
    monkeypatch.setattr("engine.store.layout.INNER_CHUNK_BYTES", 0)
    asked.clear()
    store.map_samples(statistics, layers=[2])
    assert len(asked) == 4  # once per image


def test_memory_is_that_of_one_image_however_many_there_are(tmp_path: Path) -> None:
    layers, tokens, dim, peaks = 8, 600, 1024, []
    states = np.random.default_rng(0).standard_normal((layers, tokens, dim), dtype=np.float32).astype(np.float16)
    roles = np.full(tokens, ROLE_CODES["image"], np.int32)
    for images in (2, 6):
        path = tmp_path / str(images)
        tiny = tiny_store(path, images=1, prompts=1, layers=layers, dim=dim, parts=1, written=[])
        samples = [
            builders.TinySample(f"{image}/{prompt}", str(image), str(prompt), 0, states, roles)
            for image in range(images)
            for prompt in range(2)
        ]
        content = builders.tiny_part(0, samples, layers=range(layers), dim=dim, shared_prefix=False, pooled=False)
        write_part(path, content, plan_sha256=str(tiny.record["plan_sha256"]))
        store = open_store(path)
        store.map_samples(len, layers=0, samples=store.samples.iloc[:1])  # imports are not the function's
        tracemalloc.start()
        store.map_samples(lambda sample: sample.hidden_states[0, 0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    sample, chunk = states.nbytes, 4 * 2**20
    assert peaks[1] < peaks[0] + 2 * chunk  # zarr decodes the two chunks of a window at once or one by one
    assert peaks[1] < 2 * sample + sample + 5 * chunk


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as running,
    ):
        yield running


def test_one_task_per_part_on_what_dask_is_set_to(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "store", images=6, parts=3, empty_parts=1).path)
    graphs: list[int] = []

    def scheduler(graph: Any, keys: Any, **options: object) -> Any:
        graphs.append(len(keys))
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=scheduler):
        table = store.map_samples(statistics)
    assert graphs == [3]
    pd.testing.assert_frame_equal(table, store.map_samples(statistics))


def test_a_cluster_gives_the_same_table(tmp_path: Path, client: Client) -> None:
    store = open_store(tiny_store(tmp_path / "store", images=6, parts=3).path)

    def count(sample: xr.Dataset) -> dict[str, Any]:  # not importable there, so it travels with the task
        import os  # noqa: PLC0415

        return {"sum": float(sample.hidden_states.astype("f8").sum()), "process": os.getpid()}

    with client.as_current():
        there = store.map_samples(count)
        with pytest.raises(StrataError, match=r"failed on sample '00./normal-1' \(KeyError: .*nothing"):
            store.map_samples(lambda sample: sample["nothing"])
    with dask.config.set(scheduler="sync"):
        here = store.map_samples(count)
    assert set(there["process"]).isdisjoint(here["process"])
    pd.testing.assert_frame_equal(there.drop(columns="process"), here.drop(columns="process"))
