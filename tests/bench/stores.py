"""Synthetic states for the real writer: whole stores of one prompt per image, and single parts of states alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.capture.part_slabs import STORED_DTYPES
from engine.store import (
    PART_SAMPLES_SCHEMA,
    PLAN_SCHEMA,
    Coordinate,
    PartArray,
    PartContent,
    create_store,
    write_part,
)
from engine.vocabulary import ROLE_CODES
from tests.bench.states import make_states
from tests.engine.store.builders import TinySample, in_stored_dtype, tiny_part, tiny_record, tiny_vocabulary

__all__ = ["create_plain_store", "states_content", "write_store"]


def write_store(
    path: Path, *, dtype: str, parts: int, samples_per_part: int, layers: int, image_tokens: int, dim: int
) -> Path:
    """Write a store of hidden states alone.

    Parameters
    ----------
    path
        The new store.
    dtype
        What the model held: ``float16``, or ``bfloat16`` (stored as float32).
    parts, samples_per_part, layers, image_tokens, dim
        Its size; every sample has 6 tokens before the image and 24 after it.
    """
    roles = ("special", *["preamble"] * 5, *["image"] * image_tokens, *["instruction"] * 16, *["template"] * 8)
    codes = np.array([ROLE_CODES[role] for role in roles], np.int32)
    names = [(f"{number:04d}", number // samples_per_part) for number in range(parts * samples_per_part)]
    plan = [(f"{name}/normal-1", name, "normal-1", part) for name, part in names]
    record = tiny_record(range(layers), layers - 1, dtype, "0" * 64)
    create_plain_store(path, record, list(map(list, zip(*plan, strict=True))), dim=dim)
    for part in range(parts):
        samples = []
        for seed, (sample_id, name, prompt, owner) in enumerate(plan):
            if owner == part:
                states = make_states(seed, layers=layers, tokens=len(codes), dim=dim)
                samples.append(TinySample(sample_id, name, prompt, part, in_stored_dtype(states, dtype), codes))
        content = tiny_part(
            part, samples, layers=range(layers), dim=dim, dtype=dtype, shared_prefix=False, pooled=False
        )
        write_part(path, content, plan_sha256=str(record["plan_sha256"]))
    return path


def create_plain_store(path: Path, record: Mapping[str, Any], plan: Sequence[Any], *, dim: int) -> None:
    """Create a store without parts and without unembedding; ``plan`` has the columns of ``PLAN_SCHEMA``."""
    create_store(
        path,
        record=record,
        plan=pa.table(plan, schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary(),
        unembedding=None,
        final_norm_weight=np.linspace(0.5, 2.0, dim, dtype=np.float32),
        final_norm_bias=None,
        attributes={
            "norm_kind": "rms",
            "norm_eps": 1e-5,
            "norm_weight_offset": 0.0,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )


def states_content(
    number: int, shape: tuple[int, int, int], dtype: str, slab: Callable[[int], np.ndarray]
) -> PartContent:
    """A part of hidden states (layer, token, dim) of a captured dtype and nothing else, not even a sample."""
    stored = STORED_DTYPES[dtype]
    states = PartArray("token/hidden_states", ("layer", "token", "dim"), shape, stored, slab, slab_dtype=dtype)
    role = Coordinate("token/role", ("token",), np.zeros(shape[1], np.int32))
    return PartContent(number, (states,), (role,), PART_SAMPLES_SCHEMA.empty_table(), (), {}, 0.0)
