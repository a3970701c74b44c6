"""Where everything in a store lies, and how its arrays are cut: pure numbers, no disk.

A part's array is cut along one axis only, the part's axis (``token``, ``key`` or ``sample``). The inner chunk is what
one read must decode (1 to 4 MiB), the shard is what one file holds: one layer or block where that is at least 32 MiB,
else the whole array. Zarr demands shards that are multiples of the inner chunk, so a shard may be longer than the
array; the array keeps its true length.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

__all__ = [
    "FORMAT_VERSION",
    "INNER_CHUNK_BYTES",
    "KEY_COORDINATES",
    "LEADING_DIMS",
    "MODEL_GROUP",
    "PARTS_FOLDER",
    "PLAN_FILE",
    "SHARD_BYTES",
    "STAGING_FOLDER",
    "STORE_FILE",
    "TENSOR_ARRAYS",
    "TOKEN_COORDINATES",
    "VOCABULARY_FILE",
    "ArrayShape",
    "BlockTensors",
    "ChunkPlan",
    "KeptOf",
    "PartSize",
    "model_arrays",
    "part_arrays",
    "part_name",
    "plan_chunks",
    "plan_row_blocks",
    "predict_size",
]

FORMAT_VERSION = "1.0"
STORE_FILE = "store.json"
PLAN_FILE = "plan.parquet"
VOCABULARY_FILE = "vocab.parquet"
MODEL_GROUP = "model.zarr"
PARTS_FOLDER = "parts"
STAGING_FOLDER = ".staging"

INNER_CHUNK_BYTES = 4 * 2**20
SHARD_BYTES = 32 * 2**20

LEADING_DIMS = ("layer", "block")
PART_DIMS = ("token", "key", "sample")
TOKEN_COORDINATES = ("token_id", "role", "position", "grid", "patch_row", "patch_col")
KEY_COORDINATES = ("role", "grid", "patch_row", "patch_col")
"""What is said of keys on their own axis, because the tokens of some may not be stored."""


TENSOR_ARRAYS: dict[str, tuple[str, ...]] = {
    "residual": ("token/hidden_states",),
    "attention": ("key/attention", "key/attention_norm", "token/value_norm"),
    "attention-mass": ("token/attention_mass",),
    "attention-output": ("token/attention_output",),
    "mlp-output": ("token/mlp_output",),
    "lens": ("token/lens_token_id", "token/lens_logit"),
}
"""Paths of the arrays of each tensor whose roles and layers or blocks can be chosen; of all but lens the dtype too."""


def part_name(number: int) -> str:
    """Name of a part's folder and files, without suffix: eight digits."""
    return f"{number:08d}"


class ChunkPlan(NamedTuple):
    """How one array is cut.

    ``shape``, ``inner`` and ``shard`` are array, inner chunk and shard lengths per axis. ``shard`` is None where the
    array is not sharded.
    """

    shape: tuple[int, ...]
    inner: tuple[int, ...]
    shard: tuple[int, ...] | None

    @property
    def files(self) -> int:
        """Number of data files: shards, or chunks where the array is not sharded; 0 for an empty array."""
        return _grid_size(self.shape, self.shard or self.inner)

    @property
    def chunks(self) -> int:
        """Number of inner chunks that hold at least one value of the array."""
        return _grid_size(self.shape, self.inner)

    @property
    def shard_per_leading_index(self) -> bool:
        """Whether each leading index has its own file."""
        return self.shard is not None and self.shard[0] == 1 and len(self.shape) > 1


def _grid_size(shape: tuple[int, ...], step: tuple[int, ...]) -> int:
    return math.prod(-(-length // part) for length, part in zip(shape, step, strict=True))


def plan_chunks(dims: tuple[str, ...], shape: tuple[int, ...], itemsize: int) -> ChunkPlan:
    """Cut one data array of a part.

    Parameters
    ----------
    dims
        Dimension names; exactly one of them is the part's axis (``token``, ``key`` or ``sample``).
    shape
        Length of each dimension; the part's axis may be 0 (a part all of whose images were unreadable).
    itemsize
        Bytes per value.

    Returns
    -------
    ChunkPlan
        The inner chunk has length 1 along a leading ``layer`` or ``block``, is whole along every other axis but the
        part's, and along that one has the largest near-equal pieces of at most 4 MiB (so never under 2 MiB where the
        slab is larger than 4 MiB).
    """
    axis = next(index for index, dim in enumerate(dims) if dim in PART_DIMS)
    leads = dims[0] in LEADING_DIMS
    step = [max(length, 1) for length in shape]
    if leads:
        step[0] = 1
    step[axis] = 1
    entry_bytes = math.prod(step) * itemsize
    longest = max(1, INNER_CHUNK_BYTES // entry_bytes)
    pieces = max(1, -(-shape[axis] // longest))
    step[axis] = max(1, -(-shape[axis] // pieces))

    shard = list(step)
    shard[axis] = step[axis] * -(-max(shape[axis], 1) // step[axis])
    slab_bytes = entry_bytes * shape[axis]
    if leads and slab_bytes < SHARD_BYTES:
        shard[0] = max(shape[0], 1)
    return ChunkPlan(shape, tuple(step), tuple(shard))


def plan_row_blocks(shape: tuple[int, ...], itemsize: int) -> ChunkPlan:
    """Cut a model matrix (rows first) into unsharded blocks of whole rows of at most 4 MiB."""
    row_bytes = math.prod(shape[1:]) * itemsize
    longest = max(1, INNER_CHUNK_BYTES // row_bytes)
    blocks = max(1, -(-shape[0] // longest))
    return ChunkPlan(shape, (max(1, -(-shape[0] // blocks)), *shape[1:]), None)


class ArrayShape(NamedTuple):
    """One array of a part before it exists.

    Attributes
    ----------
    path, dims, shape, dtype
        Path in the part, dimension names, lengths, stored dtype.
    kept
        How much of each dimension is kept, where that is less than ``shape``: an array may be of fewer layers, blocks
        or tokens than its axes hold, and is NaN (-1 where it is of integers) in the others. None where everything is.
    """

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    kept: tuple[int, ...] | None = None

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """``kept``, or ``shape`` where everything is."""
        return self.shape if self.kept is None else self.kept

    @property
    def raw_bytes(self) -> int:
        """Bytes of the kept values before compression; the NaN of what is not kept counts for nothing."""
        return math.prod(self.kept_shape) * np.dtype(self.dtype).itemsize

    @property
    def part_axis(self) -> int | None:
        """The axis along which parts differ; None where they share it."""
        return next((axis for axis, dim in enumerate(self.dims) if dim in PART_DIMS), None)

    @property
    def chunk_plan(self) -> ChunkPlan:
        """How the array is cut; a one-dimensional array is a coordinate, hence one unsharded chunk."""
        if len(self.shape) == 1:
            return ChunkPlan(self.shape, (max(self.shape[0], 1),), None)
        itemsize = np.dtype(self.dtype).itemsize
        if self.part_axis is None:
            return plan_row_blocks(self.shape, itemsize)
        return plan_chunks(self.dims, self.shape, itemsize)


class KeptOf(NamedTuple):
    """How much a tensor keeps, where that is less than the axes of its part hold; None for all."""

    blocks: int | None = None
    tokens: int | None = None
    layers: int | None = None


class BlockTensors(NamedTuple):
    """What a part keeps of its blocks, and how much there is of it.

    Attributes
    ----------
    blocks, heads
        Captured blocks, of all tensors together; query heads of each.
    attention
        Rows of the kept queries with their norms, and norms of values.
    queries, keys
        Kept queries, and the sum of the lengths of all samples' sequences; both 0 without ``attention``.
    mass, attention_output, mlp_output
        Attention per role of every token, and what the two halves of each block add to the residual stream.
    """

    blocks: int
    heads: int
    attention: bool = False
    queries: int = 0
    keys: int = 0
    mass: bool = False
    attention_output: bool = False
    mlp_output: bool = False


def part_arrays(
    *,
    tokens: int,
    samples: int,
    layers: int,
    dim: int,
    roles: int,
    dtype: str,
    residual: bool,
    pooled: bool,
    last_layer: bool = True,
    token_layers: int | None = None,
    lens_ranks: int = 0,
    blocks: BlockTensors | None = None,
    dtypes: Mapping[str, str] = MappingProxyType({}),
    kept: Mapping[str, KeptOf] = MappingProxyType({}),
) -> tuple[ArrayShape, ...]:
    """List the arrays of one part from its counts alone.

    Parameters
    ----------
    tokens, samples, layers, dim, roles
        Stored positions, samples, captured layers, width of the residual stream, number of roles.
    dtype
        Stored dtype of the hidden states (``float16`` or ``float32``).
    residual, pooled
        Which captures are on. Token coordinates are there with either.
    last_layer
        Whether the last layer is among the captured ones; only then are there pooled states after the final norm.
    token_layers
        Layers of the token axis: of hidden states, or of the lens alone, where these are fewer than those of pooled
        states.
    lens_ranks
        Vocabulary pieces per token and layer; 0 without lens.
    blocks
        What is captured of the blocks; None where nothing is.
    dtypes
        Stored dtype of tensors of ``TENSOR_ARRAYS`` that are not stored in their usual one.
    kept
        By tensor of ``TENSOR_ARRAYS``, those of which fewer layers, blocks or tokens are kept.
    """
    arrays = [ArrayShape(f"token/{name}", ("token",), (tokens,), "int32") for name in TOKEN_COORDINATES]
    stored = layers if token_layers is None else token_layers
    if residual:
        arrays.append(ArrayShape("token/hidden_states", ("layer", "token", "dim"), (stored, tokens, dim), dtype))
    if lens_ranks:
        lens_dims, lens_shape = ("layer", "token", "rank"), (stored, tokens, lens_ranks)
        arrays.append(ArrayShape("token/lens_token_id", lens_dims, lens_shape, "int32"))
        arrays.append(ArrayShape("token/lens_logit", lens_dims, lens_shape, "float32"))
    if residual or lens_ranks:
        arrays.append(ArrayShape("token/layer", ("layer",), (stored,), "int32"))
    if pooled:
        pooled_dims, pooled_shape = ("layer", "role", "sample", "dim"), (layers, roles, samples, dim)
        arrays += [
            ArrayShape("sample/unit_mean", pooled_dims, pooled_shape, "float32"),
            ArrayShape("sample/mean", pooled_dims, pooled_shape, "float32"),
            ArrayShape("sample/token_count", ("role", "sample"), (roles, samples), "int32"),
            ArrayShape("sample/layer", ("layer",), (layers,), "int32"),
            ArrayShape("sample/role", ("role",), (roles,), "int32"),
        ]
    if pooled and last_layer:
        arrays.append(ArrayShape("sample/normed_unit_mean", pooled_dims[1:], pooled_shape[1:], "float32"))
    if blocks is not None:
        own_blocks = kept.get("attention", KeptOf()).blocks
        arrays += _key_arrays(blocks, blocks.blocks if own_blocks is None else own_blocks)
        arrays += _block_arrays(blocks, tokens=tokens, dim=dim, roles=roles, dtype=dtype)
    chosen = {path: dtypes[tensor] for tensor in dtypes for path in TENSOR_ARRAYS[tensor]}
    fewer = {path: kept[tensor] for tensor in kept for path in TENSOR_ARRAYS[tensor] if path.startswith("token/")}
    return tuple(
        array._replace(
            dtype=chosen.get(array.path, array.dtype),
            kept=_kept_lengths(array, fewer[array.path]) if array.path in fewer else None,
        )
        for array in arrays
    )


def _kept_lengths(array: ArrayShape, kept: KeptOf) -> tuple[int, ...] | None:
    counts = (("layer", kept.layers), ("block", kept.blocks), ("token", kept.tokens))
    fewer = {dim: count for dim, count in counts if count is not None}
    chosen = tuple(fewer.get(dim, length) for dim, length in zip(array.dims, array.shape, strict=True))
    return None if chosen == array.shape else chosen


def _key_arrays(tensors: BlockTensors, blocks: int) -> list[ArrayShape]:
    """List the arrays of the key axis, of attention's own blocks."""
    if not tensors.attention:
        return []
    heads, keys, queries = tensors.heads, tensors.keys, tensors.queries
    return [
        ArrayShape("key/attention", ("block", "query", "head", "key"), (blocks, queries, heads, keys), "float32"),
        ArrayShape("key/attention_norm", ("block", "query", "key"), (blocks, queries, keys), "float32"),
        ArrayShape("key/token", ("key",), (keys,), "int32"),
        *(ArrayShape(f"key/{name}", ("key",), (keys,), "int32") for name in KEY_COORDINATES),
        ArrayShape("key/block", ("block",), (blocks,), "int32"),
        ArrayShape("key/query", ("query",), (queries,), "int32"),
    ]


def _block_arrays(tensors: BlockTensors, *, tokens: int, dim: int, roles: int, dtype: str) -> list[ArrayShape]:
    """List the arrays of the token axis whose leading axis is the block, and the coordinates that they bring."""
    blocks, heads = tensors.blocks, tensors.heads
    arrays = []
    if tensors.attention:
        arrays.append(ArrayShape("token/value_norm", ("block", "head", "token"), (blocks, heads, tokens), "float32"))
    if tensors.mass:
        mass_dims, mass_shape = ("block", "head", "token", "source_role"), (blocks, heads, tokens, roles)
        arrays.append(ArrayShape("token/attention_mass", mass_dims, mass_shape, "float32"))
        arrays.append(ArrayShape("token/source_role", ("source_role",), (roles,), "int32"))
    for name, wanted in (("attention_output", tensors.attention_output), ("mlp_output", tensors.mlp_output)):
        if wanted:
            arrays.append(ArrayShape(f"token/{name}", ("block", "token", "dim"), (blocks, tokens, dim), dtype))
    if arrays:
        arrays.append(ArrayShape("token/block", ("block",), (blocks,), "int32"))
    return arrays


def model_arrays(*, vocab: int, dim: int, dtype: str, bias: bool) -> tuple[ArrayShape, ...]:
    """List the arrays of ``model.zarr``.

    Parameters
    ----------
    vocab, dim
        Rows of the unembedding, 0 where it is not stored; width of the residual stream.
    dtype
        Stored dtype of the weights (``float16`` or ``float32``).
    bias
        Whether the final norm has one.
    """
    names = ("final_norm_weight", "final_norm_bias") if bias else ("final_norm_weight",)
    vectors = tuple(ArrayShape(name, ("dim",), (dim,), dtype) for name in names)
    matrix = ArrayShape("unembedding", ("vocab", "dim"), (vocab, dim), dtype)
    return (*vectors, matrix) if vocab else vectors


class PartSize(NamedTuple):
    """What a part will take: raw bytes of kept values per array path, data files, and metadata files beside them."""

    raw_bytes: dict[str, int]
    data_files: int
    metadata_files: int


def predict_size(arrays: Iterable[ArrayShape]) -> PartSize:
    """Sum up the arrays of one part, without touching a disk.

    Metadata files are one ``zarr.json`` per array, per group and for the root, the sample table and the manifest.
    """
    arrays = tuple(arrays)
    groups = {array.path.split("/")[0] for array in arrays}
    return PartSize(
        raw_bytes={array.path: array.raw_bytes for array in arrays},
        data_files=sum(array.chunk_plan.files for array in arrays),
        metadata_files=len(arrays) + len(groups) + 1 + 2,
    )
