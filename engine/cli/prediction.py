"""What a planned run will write and take, from shapes alone; ``strata estimate`` prints it.

Bytes before compression, parts and files are exact where every image makes as many tokens as one of common size, which
is so for models that resize images; the NaN of what an array does not keep (``ArrayShape.kept``) counts for nothing.
Bytes on disk and time rest on measured shares and an assumed speed, and say so.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from engine.capture.prefix_cache import cache_bytes
from engine.capture.sink import QUEUE_BYTES
from engine.cli.planning import Planned
from engine.plan import PlannedPart
from engine.store import ArrayShape, model_arrays, predict_size, writing_bytes

__all__ = [
    "CAPTURED_ITEMSIZE",
    "WRITTEN_PER_SECOND",
    "FilesPrediction",
    "Prediction",
    "predict",
    "predict_parts",
    "predict_tables",
]

CAPTURED_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}
WRITTEN_PER_SECOND = 0.5e9
"""Raw bytes that one process compresses and writes per second, as measured on two CPU cores."""

# Measured share that stays after compression: of the captured bytes of states and weights, by dtype (float32 hardly
# compresses; ids out of 32,000 leave two of their bytes empty), and of pooled means, most of whose roles have no token.
_KEPT = {"float16": 0.87, "bfloat16": 0.69, "float32": 0.92, "int32": 0.35}
_KEPT_OF_POOLED = 0.5

# Peak of a process over the sum of its captured states, measured with states small enough to share heaps.
_ALLOCATED = 1.5

# plan.parquet, vocab.parquet, store.json
_COMMON_FILES = 3


class ArrayPrediction(NamedTuple):
    """One array over all parts, or of the model's tables: raw bytes of what it keeps, and about how many on disk."""

    array: ArrayShape
    on_disk: float

    @property
    def raw_bytes(self) -> int:
        """Bytes of the kept values before compression."""
        return self.array.raw_bytes


class Prediction(NamedTuple):
    """What a run will write and take.

    Attributes
    ----------
    arrays
        Arrays of the parts, each over all parts together.
    coordinate_bytes
        Raw bytes of the coordinates among them.
    model_arrays
        Arrays of ``model.zarr``.
    parts, images_per_part, files
        Number of parts, images in the largest, files of the whole store.
    host_memory
        Bytes that a run takes beside the model: the part that fills and what the writer may hold, as captured, one
        batch, what the writer's threads hold, and what the allocator cannot give back. With the prefix cache, as if the
        host ran the model.
    prefix_cache
        Bytes of keys and values of the prefixes that run once, on the device that runs the model; 0 without such.
    captured_bytes
        Bytes that cross from the model to the writer.
    lens_states
        States that are decoded: stored tokens times layers of the lens; 0 without it.
    """

    arrays: tuple[ArrayPrediction, ...]
    coordinate_bytes: int
    model_arrays: tuple[ArrayPrediction, ...]
    parts: int
    images_per_part: int
    files: int
    host_memory: int
    prefix_cache: int
    captured_bytes: int
    lens_states: int

    @property
    def raw_bytes(self) -> int:
        """Bytes of all arrays of the store before compression."""
        return sum(item.raw_bytes for item in (*self.arrays, *self.model_arrays))

    @property
    def on_disk(self) -> float:
        """Bytes after compression, about."""
        return sum(item.on_disk for item in (*self.arrays, *self.model_arrays))


def predict(planned: Planned, *, batch_size: int, unembedding: bool) -> Prediction:
    """Predict a run.

    Parameters
    ----------
    planned
        The plan, with what it was made from.
    batch_size
        Samples per forward pass.
    unembedding
        Whether the unembedding is stored.
    """
    parts = predict_parts(planned, planned.plan.parts)
    tables = predict_tables(planned, unembedding=unembedding)
    largest = max(_images_of(part) for part in planned.plan.parts)
    return Prediction(
        arrays=parts.arrays,
        coordinate_bytes=sum(item.raw_bytes for item in parts.arrays if len(item.array.shape) == 1),
        model_arrays=tables.arrays,
        parts=len(planned.plan.parts),
        images_per_part=largest,
        files=parts.files + tables.files,
        host_memory=_host_memory(planned, planned.part_arrays(largest), batch_size),
        prefix_cache=_prefix_cache(planned, batch_size),
        captured_bytes=sum(_captured_bytes(planned, item.array) for item in parts.arrays),
        lens_states=sum(
            math.prod(item.array.kept_shape[:2]) for item in parts.arrays if item.array.path == "token/lens_logit"
        ),
    )


class FilesPrediction(NamedTuple):
    """Some of a store's files: the arrays in them, and how many files these and what stands beside them are."""

    arrays: tuple[ArrayPrediction, ...]
    files: int

    @property
    def on_disk(self) -> float:
        """Bytes of the arrays after compression, about."""
        return sum(item.on_disk for item in self.arrays)


def predict_parts(planned: Planned, parts: Sequence[PlannedPart]) -> FilesPrediction:
    """Predict some parts of a run, each array over all of them together; there must be at least one."""
    sizes = Counter(_images_of(part) for part in parts)
    shapes = {images: planned.part_arrays(images) for images in sizes}
    whole = _over_parts([(shapes[images], count) for images, count in sizes.items()])
    part_sizes = {images: predict_size(shapes[images]) for images in sizes}
    return FilesPrediction(
        tuple(ArrayPrediction(array, _on_disk(planned, array)) for array in whole),
        sum(count * (part_sizes[n].data_files + part_sizes[n].metadata_files) for n, count in sizes.items()),
    )


def predict_tables(planned: Planned, *, unembedding: bool) -> FilesPrediction:
    """Predict what a store has beside its parts."""
    text_config = planned.checkpoint.config.get_text_config()
    tables = model_arrays(
        vocab=text_config.vocab_size if unembedding else 0,
        dim=planned.checkpoint.dim,
        dtype=planned.stored_dtype,
        bias=planned.checkpoint.family.norm_kind == "layer",
    )
    return FilesPrediction(
        tuple(ArrayPrediction(table, _on_disk(planned, table)) for table in tables),
        _COMMON_FILES + 1 + sum(table.chunk_plan.files + 1 for table in tables),
    )


def _images_of(part: PlannedPart) -> int:
    return part.stop - part.start


def _over_parts(parts: list[tuple[tuple[ArrayShape, ...], int]]) -> list[ArrayShape]:
    """Join the arrays of all parts: ``(arrays, number of such parts)`` in, one shape per array out.

    A coordinate of a fixed axis (layer, role) is stored by every part; joined, it counts as many times.
    """
    joined = []
    for same in zip(*(arrays for arrays, _ in parts), strict=True):
        counts = [count for _, count in parts]
        axis = same[0].part_axis or 0
        shapes, kept = ([getattr(array, name) for array in same] for name in ("shape", "kept_shape"))
        shape, kept_shape = (_summed(lengths, counts, axis) for lengths in (shapes, kept))
        joined.append(same[0]._replace(shape=shape, kept=None if kept_shape == shape else kept_shape))
    return joined


def _summed(shapes: Sequence[tuple[int, ...]], counts: Sequence[int], axis: int) -> tuple[int, ...]:
    """Put so many arrays of each shape one after the other along an axis."""
    length = sum(shape[axis] * count for shape, count in zip(shapes, counts, strict=True))
    return (*shapes[0][:axis], length, *shapes[0][axis + 1 :])


def _on_disk(planned: Planned, array: ArrayShape) -> float:
    if array.path.startswith("sample/"):
        return _KEPT_OF_POOLED * array.raw_bytes
    if len(array.shape) == 1:
        return float(array.raw_bytes)
    # A bfloat16 that was widened to float32 compresses to less than its own 16 bits.
    held = planned.dtype if _is_widened(planned, array) else array.dtype
    return math.prod(array.kept_shape) * CAPTURED_ITEMSIZE[held] * _KEPT[held]


def _is_widened(planned: Planned, array: ArrayShape) -> bool:
    return planned.dtype == "bfloat16" and array.dtype == "float32" and _is_state(array)


def _is_state(array: ArrayShape) -> bool:
    """Whether values come in the model's own dtype; all that is computed from attention is float32."""
    return array.dims[-1] == "dim" and not array.path.startswith("sample/")


def _captured_itemsize(planned: Planned, array: ArrayShape) -> int:
    return CAPTURED_ITEMSIZE[planned.dtype if _is_state(array) else "float32"]


def _captured_bytes(planned: Planned, array: ArrayShape) -> int:
    if len(array.shape) == 1 or array.path.startswith("sample/"):
        return array.raw_bytes
    return math.prod(array.kept_shape) * _captured_itemsize(planned, array)


def _bytes_per_position(planned: Planned, array: ArrayShape) -> int:
    assert array.part_axis is not None
    return _captured_bytes(planned, array) // max(array.kept_shape[array.part_axis], 1)


def _decoded_bytes(planned: Planned) -> int:
    """Bytes of one position's states that wait for the lens and are not stored; on a GPU they are not the host's."""
    capture = planned.capture
    waiting = capture.lens_topk is not None and "residual" not in capture.tensors
    return len(capture.token_layers) * planned.checkpoint.dim * CAPTURED_ITEMSIZE[planned.dtype] if waiting else 0


def _prefix_cache(planned: Planned, batch_size: int) -> int:
    """Bytes of keys and values of a batch's prefixes, one per image."""
    config, itemsize = planned.checkpoint.config.get_text_config(), CAPTURED_ITEMSIZE[planned.dtype]
    return cache_bytes(config, min(batch_size, len(planned.plan.images)) * planned.prefix_once, itemsize)


def _host_memory(planned: Planned, arrays: tuple[ArrayShape, ...], batch_size: int) -> int:
    """Two parts in the captured dtype, or several small ones, one batch, and what the threads that write hold.

    A batch has the rows of the longest sequence for each sample; where prefixes run once, those of as many prefixes and
    of the text behind them.

    Blocks that are freed here and asked for there leave holes, for which the allocator keeps half as much again.
    """
    part = sum(_captured_bytes(planned, array) for array in arrays)
    written = max(part, min(QUEUE_BYTES, part * (len(planned.plan.parts) - 1)))
    along = [array for array in arrays if len(array.shape) > 1 and not array.path.startswith("sample/")]
    position = sum(_bytes_per_position(planned, array) for array in along) + _decoded_bytes(planned)
    batch = batch_size * planned.sequence * position + _prefix_cache(planned, batch_size)
    return int(_ALLOCATED * (part + written + batch)) + writing_bytes()
