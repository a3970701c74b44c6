"""Cutting arrays is pure arithmetic: checked over all sizes, without a disk."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.store import open_store
from engine.store.layout import (
    INNER_CHUNK_BYTES,
    SHARD_BYTES,
    ArrayShape,
    BlockTensors,
    KeptOf,
    part_arrays,
    part_name,
    plan_chunks,
    plan_row_blocks,
    predict_size,
)
from tests.engine.store.block_tensors import BLOCK_CAPTURES
from tests.engine.store.builders import tiny_store

lengths = st.integers(0, 200_000)
widths = st.integers(1, 8192)


@settings(max_examples=60)
@given(st.integers(1, 81), lengths, widths, st.sampled_from([2, 4]))
def test_hidden_states_are_cut_along_tokens_only(layers: int, tokens: int, dim: int, itemsize: int) -> None:
    plan = plan_chunks(("layer", "token", "dim"), (layers, tokens, dim), itemsize)
    assert plan.shard is not None
    slab = tokens * dim * itemsize
    inner = math.prod(plan.inner) * itemsize

    assert plan.inner[0] == 1
    assert plan.inner[2] == dim
    assert inner <= max(INNER_CHUNK_BYTES, dim * itemsize)
    if slab >= 2**20:
        assert inner >= 2**20
    assert all(long % step == 0 for long, step in zip(plan.shard, plan.inner, strict=True))
    assert plan.shard[1] >= tokens
    assert plan.shard[1] - tokens < max(plan.shard[1] // plan.inner[1], 2)
    assert plan.shard[0] == (1 if slab >= SHARD_BYTES else layers)
    assert plan.files == (0 if tokens == 0 else layers // plan.shard[0])


@settings(max_examples=60)
@given(st.integers(1, 81), st.integers(0, 5000), st.integers(1, 8192))
def test_pooled_arrays_are_cut_along_samples_only(layers: int, samples: int, dim: int) -> None:
    plan = plan_chunks(("layer", "role", "sample", "dim"), (layers, 7, samples, dim), 4)
    assert plan.inner[:2] == (1, 7)
    assert plan.inner[3] == dim
    assert math.prod(plan.inner) * 4 <= INNER_CHUNK_BYTES
    assert plan.shard is not None
    assert plan.shard[2] >= samples


@settings(max_examples=60)
@given(st.integers(0, 5000), st.integers(1, 8192))
def test_an_array_without_layers_is_one_shard(samples: int, dim: int) -> None:
    plan = plan_chunks(("role", "sample", "dim"), (7, samples, dim), 4)
    assert plan.files == min(samples, 1)
    assert plan.inner[0] == 7


@settings(max_examples=60)
@given(st.integers(1, 300_000), widths, st.sampled_from([2, 4]))
def test_row_blocks_are_whole_rows(rows: int, columns: int, itemsize: int) -> None:
    plan = plan_row_blocks((rows, columns), itemsize)
    block = math.prod(plan.inner) * itemsize
    assert plan.shard is None
    assert plan.inner[1] == columns
    assert block <= INNER_CHUNK_BYTES
    if rows * columns * itemsize >= 2**20:
        assert block >= 2**20
    assert plan.files == -(-rows // plan.inner[0])


def test_llava_13b_part() -> None:
    """41 layers of 3100 tokens of width 5120 in float16: one file a layer, chunks of 2 to 4 MiB, hardly any padding."""
    plan = plan_chunks(("layer", "token", "dim"), (41, 3100, 5120), 2)
    assert plan.inner == (1, 388, 5120)
    assert plan.shard == (41, 3104, 5120)
    assert plan_chunks(("layer", "token", "dim"), (41, 5000, 5120), 2).shard == (1, 5005, 5120)


def test_names_sort_as_numbers() -> None:
    assert part_name(7) == "00000007"
    assert sorted(map(part_name, [10, 9, 100])) == ["00000009", "00000010", "00000100"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("residual", "pooled"), [(True, True), (True, False), (False, True)])
def test_prediction_is_what_is_written(tmp_path, dtype: str, residual: bool, pooled: bool) -> None:
    tiny = tiny_store(tmp_path / "store", images=3, parts=1, dtype=dtype, residual=residual, pooled=pooled)
    part = open_store(tiny.path).parts[0]
    arrays = part_arrays(
        tokens=part.tokens,
        samples=len(part.samples),
        layers=5,
        dim=16,
        roles=7,
        dtype="float16" if dtype == "float16" else "float32",
        residual=residual,
        pooled=pooled,
    )
    stored = part.manifest["arrays"]
    assert {array.path: (list(array.shape), array.dtype, list(array.dims)) for array in arrays} == {
        path: (entry["shape"], entry["dtype"], entry["dims"]) for path, entry in stored.items()
    }
    size = predict_size(arrays)
    files = [path for path in (tiny.path / "parts").rglob("*") if path.is_file()]
    metadata = [path for path in files if path.suffix in {".json", ".parquet"}]
    assert size.metadata_files == len(metadata)
    assert size.data_files == len(files) - len(metadata)
    assert size.raw_bytes == {path: np.dtype(e["dtype"]).itemsize * math.prod(e["shape"]) for path, e in stored.items()}


@pytest.mark.parametrize("capture", [BLOCK_CAPTURES, ("attention",), ("attention-mass",), ("mlp-output",)])
def test_prediction_of_what_is_of_blocks(tmp_path: Path, capture: tuple[str, ...]) -> None:
    tiny = tiny_store(
        tmp_path / "store", parts=1, heads=3, capture=capture, queries=("last_text", "target:0", "image:0")
    )
    part = open_store(tiny.path).parts[0]
    blocks = BlockTensors(
        blocks=4,
        heads=3,
        attention="attention" in capture,
        queries=3,
        keys=part.keys,
        mass="attention-mass" in capture,
        attention_output="attention-output" in capture,
        mlp_output="mlp-output" in capture,
    )
    counts = {"tokens": part.tokens, "samples": len(part.samples), "layers": 5, "dim": 16, "roles": 7}
    arrays = part_arrays(**counts, dtype="float16", residual=True, pooled=True, blocks=blocks)
    stored = part.manifest["arrays"]
    assert {array.path: (list(array.shape), array.dtype, list(array.dims)) for array in arrays} == {
        path: (entry["shape"], entry["dtype"], entry["dims"]) for path, entry in stored.items()
    }
    files = [path for path in (tiny.path / "parts").rglob("*") if path.is_file()]
    size = predict_size(arrays)
    assert size.data_files + size.metadata_files == len(files)


def test_dtypes_can_be_chosen_per_tensor() -> None:
    counts = {"tokens": 5, "samples": 2, "layers": 3, "dim": 4, "roles": 7}
    blocks = BlockTensors(blocks=2, heads=2, attention=True, queries=1, keys=7, mlp_output=True)
    arrays = part_arrays(
        **counts,
        dtype="float32",
        residual=True,
        pooled=True,
        blocks=blocks,
        dtypes={"attention": "float16", "residual": "float16"},
    )
    narrow = {"key/attention", "key/attention_norm", "token/value_norm", "token/hidden_states"}
    assert {array.path for array in arrays if array.dtype == "float16"} == narrow


@settings(max_examples=60)
@given(st.integers(1, 80), st.integers(1, 4), st.integers(1, 64), st.integers(0, 300_000))
def test_attention_is_cut_along_keys_only(blocks: int, queries: int, heads: int, keys: int) -> None:
    plan = plan_chunks(("block", "query", "head", "key"), (blocks, queries, heads, keys), 4)
    assert plan.inner[:3] == (1, queries, heads)
    assert math.prod(plan.inner) * 4 <= INNER_CHUNK_BYTES
    assert plan.shard is not None
    assert plan.shard[0] == (1 if queries * heads * keys * 4 >= SHARD_BYTES else blocks)
    assert plan.shard[3] >= keys
    assert plan.shard[3] - max(keys, 1) < plan.inner[3]


def test_without_the_last_layer_nothing_is_normed() -> None:
    options = {"tokens": 5, "samples": 2, "layers": 3, "dim": 4, "roles": 7, "dtype": "float16"}
    both = [part_arrays(**options, residual=False, pooled=True, last_layer=last) for last in (True, False)]
    assert {array.path for array in both[0]} - {array.path for array in both[1]} == {"sample/normed_unit_mean"}


def test_raw_bytes_of_one_array() -> None:
    dims = ("layer", "token", "dim")
    whole = ArrayShape("token/hidden_states", dims, (2, 3, 4), "float16")
    assert whole.raw_bytes == 48
    fewer = whole._replace(kept=(2, 1, 4))
    assert fewer.raw_bytes == 16
    assert fewer.chunk_plan == whole.chunk_plan


def test_what_is_kept_of_single_tensors() -> None:
    blocks = BlockTensors(
        blocks=4, heads=2, attention=True, queries=1, keys=9, mass=True, attention_output=True, mlp_output=True
    )
    kept = {
        "residual": KeptOf(tokens=3),
        "attention": KeptOf(blocks=2, tokens=1),
        "attention-mass": KeptOf(blocks=1),
        "mlp-output": KeptOf(blocks=4, tokens=5),
    }
    arrays = part_arrays(
        tokens=5,
        samples=2,
        layers=3,
        dim=4,
        roles=7,
        dtype="float16",
        residual=True,
        pooled=True,
        blocks=blocks,
        kept=kept,
    )
    shapes = {array.path: (array.shape, array.kept) for array in arrays if array.kept or "attention" in array.path}
    assert shapes == {
        "token/hidden_states": ((3, 5, 4), (3, 3, 4)),
        "key/attention": ((2, 1, 2, 9), None),
        "key/attention_norm": ((2, 1, 9), None),
        "token/value_norm": ((4, 2, 5), (2, 2, 1)),
        "token/attention_mass": ((4, 2, 5, 7), (1, 2, 5, 7)),
        "token/attention_output": ((4, 5, 4), None),
    }
    lengths = {array.path: array.shape for array in arrays if len(array.shape) == 1}
    assert (lengths["token/block"], lengths["key/block"], lengths["key/role"]) == ((4,), (2,), (9,))
