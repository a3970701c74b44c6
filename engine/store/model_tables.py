"""What is needed to read activations without the model: unembedding, final norm, vocabulary.

``model.zarr`` holds the arrays, ``vocab.parquet`` one row per row of the unembedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from engine.store.codecs import create_array
from engine.store.consolidate import consolidate
from engine.store.layout import plan_row_blocks

__all__ = ["MODEL_ATTRIBUTES", "ModelMatrix", "write_model_group"]

MODEL_ATTRIBUTES = ("norm_kind", "norm_eps", "norm_weight_offset", "logit_softcap", "tied_embeddings")


@dataclass(frozen=True)
class ModelMatrix:
    """A matrix too large to convert at once.

    Attributes
    ----------
    shape
        (rows, columns).
    dtype
        Stored dtype: ``float16`` or ``float32``.
    rows
        ``rows(start, stop)`` is that block of rows in ``dtype`` (bfloat16 weights are widened here).
    """

    shape: tuple[int, int]
    dtype: str
    rows: Callable[[int, int], np.ndarray]


def write_model_group(
    folder: Path,
    *,
    unembedding: ModelMatrix | None,
    final_norm_weight: np.ndarray,
    final_norm_bias: np.ndarray | None,
    attributes: Mapping[str, Any],
) -> None:
    """Write ``model.zarr``; the same input gives the same bytes.

    Parameters
    ----------
    folder
        Folder of the new group.
    unembedding
        (vocab, dim), or None to leave it out.
    final_norm_weight, final_norm_bias
        (dim), float16 or float32; the bias is None where the norm has none.
    attributes
        Exactly the keys of ``MODEL_ATTRIBUTES``: ``norm_kind`` (``rms`` or ``layer``), ``norm_eps``,
        ``norm_weight_offset`` (added to the weight before use), ``logit_softcap`` (None = none), ``tied_embeddings``.

    Raises
    ------
    ValueError
        When an attribute is missing or unknown, or a block of rows is not what was announced.
    """
    if set(attributes) != set(MODEL_ATTRIBUTES):
        raise ValueError(f"model attributes are {sorted(attributes)}, expected {sorted(MODEL_ATTRIBUTES)}")
    group = zarr.create_group(LocalStore(folder), zarr_format=3, attributes=dict(attributes))
    _write_vector(group, "final_norm_weight", final_norm_weight)
    if final_norm_bias is not None:
        _write_vector(group, "final_norm_bias", final_norm_bias)
    if unembedding is not None:
        _write_matrix(group, "unembedding", unembedding)
    consolidate(folder)


def _write_vector(group: zarr.Group, name: str, values: np.ndarray) -> None:
    plan = plan_row_blocks(values.shape, values.dtype.itemsize)
    array = create_array(group, name, plan=plan, dtype=values.dtype.name, dims=("dim",), attributes={})
    array[...] = values


def _write_matrix(group: zarr.Group, name: str, matrix: ModelMatrix) -> None:
    plan = plan_row_blocks(matrix.shape, np.dtype(matrix.dtype).itemsize)
    array = create_array(group, name, plan=plan, dtype=matrix.dtype, dims=("vocab", "dim"), attributes={})
    for start in range(0, matrix.shape[0], plan.inner[0]):
        stop = min(start + plan.inner[0], matrix.shape[0])
        block = matrix.rows(start, stop)
        if block.shape != (stop - start, matrix.shape[1]) or block.dtype != np.dtype(matrix.dtype):
            raise ValueError(f"{name}[{start}:{stop}] is {block.dtype}{block.shape}, announced {matrix}")
        array[start:stop] = block
