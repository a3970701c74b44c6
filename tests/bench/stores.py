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
    VOCABULARY_SCHEMA,
    Coordinate,
    ModelMatrix,
    PartArray,
    PartContent,
    create_store,
    write_part,
)
from engine.vocabulary import ROLE_CODES
from tests.bench.lens_data import unembedding_weights
from tests.bench.states import make_states
from tests.engine.store.builders import TinySample, in_stored_dtype, tiny_part, tiny_record, tiny_vocabulary

__all__ = ["create_plain_store", "states_content", "write_store"]


def write_store(
    path: Path,
    *,
    dtype: str,
    parts: int,
    samples_per_part: int,
    layers: int,
    image_tokens: int,
    dim: int,
    vocab: int = 0,
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
    vocab
        Rows of the unembedding, a piece for each; 0 for none.
    """
    roles = ("special", *["preamble"] * 5, *["image"] * image_tokens, *["instruction"] * 16, *["template"] * 8)
    codes = np.array([ROLE_CODES[role] for role in roles], np.int32)
    names = [(f"{number:04d}", number // samples_per_part) for number in range(parts * samples_per_part)]
    plan = [(f"{name}/normal-1", name, "normal-1", part) for name, part in names]
    record = tiny_record(range(layers), layers - 1, dtype, "0" * 64)
    create_plain_store(path, record, list(map(list, zip(*plan, strict=True))), dim=dim, vocab=vocab)
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


def create_plain_store(path: Path, record: Mapping[str, Any], plan: Sequence[Any], *, dim: int, vocab: int = 0) -> None:
    """Create a store without parts; ``plan`` has the columns of ``PLAN_SCHEMA``, ``vocab`` is as of `write_store`."""
    weights = unembedding_weights(vocab, dim) if vocab else None
    pieces = [list(range(vocab)), [f"▁{number}" for number in range(vocab)], ["normal"] * vocab, [True] * vocab]
    create_store(
        path,
        record=record,
        plan=pa.table(plan, schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary() if weights is None else pa.table(pieces, schema=VOCABULARY_SCHEMA),
        unembedding=None
        if weights is None
        else ModelMatrix(weights.shape, "float16", lambda start, stop: weights[start:stop]),
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
