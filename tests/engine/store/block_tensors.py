"""Attention and block outputs of known values for the samples of a small store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.store import (
    Coordinate,
    PartArray,
    block_coordinate,
    query_coordinate,
    source_role_coordinate,
)
from engine.vocabulary import ROLE_CODES, ROLES

QUERIES = ("last_text", "last_image")
BLOCK_CAPTURES = ("attention", "attention-mass", "attention-output", "mlp-output")
KEY_DIMS = {"attention": ("block", "query", "head", "key"), "attention_norm": ("block", "query", "key")}
TOKEN_DIMS = {
    "value_norm": ("block", "head", "token"),
    "attention_mass": ("block", "head", "token", "source_role"),
    "attention_output": ("block", "token", "dim"),
    "mlp_output": ("block", "token", "dim"),
}
CAPTURE_OF = {
    "attention": "attention",
    "attention_norm": "attention",
    "value_norm": "attention",
    "attention_mass": "attention-mass",
    "attention_output": "attention-output",
    "mlp_output": "mlp-output",
}


@dataclass(frozen=True)
class TinyBlocks:
    """What the blocks did with one sample.

    Attributes
    ----------
    numbers, queries
        Block numbers and names of queries.
    query_positions
        In the sample's own sequence, -1 for a query that it does not have.
    values
        By array name, over the sample's own sequence: ``attention`` (block, query, head, position), ``attention_norm``
        (block, query, position), ``value_norm`` (block, head, position), ``attention_mass`` (block, head, position,
        role), ``attention_output`` and ``mlp_output`` (block, position, dim).
    """

    numbers: tuple[int, ...]
    queries: tuple[str, ...]
    query_positions: tuple[int, ...]
    values: dict[str, np.ndarray]


def find_query(name: str, roles: np.ndarray) -> int:
    """Position of a query in a sequence of role codes, -1 for none; written from the definition."""
    if name in ("last_text", "last_image"):
        wanted, index = (roles == ROLE_CODES["image"]) == (name == "last_image"), -1
    else:
        role, _, number = name.partition(":")
        wanted, index = roles == ROLE_CODES[role], int(number)
    places = np.flatnonzero(wanted)
    return int(places[index]) if -len(places) <= index < len(places) else -1


def tiny_blocks(
    rng: np.random.Generator,
    roles: np.ndarray,
    *,
    numbers: Sequence[int],
    queries: Sequence[str] = QUERIES,
    heads: int = 2,
    dim: int = 16,
    prefix: dict[str, np.ndarray] | None = None,
    prefix_length: int = 0,
) -> TinyBlocks:
    """Draw causal attention with rows that sum to 1, and norms and outputs, for one sample.

    ``prefix`` are the values of another sample of the same image, whose first ``prefix_length`` positions this one
    shares (those on the token axis: rows of attention are its own).
    """
    length, blocks = len(roles), len(numbers)
    positions = tuple(find_query(name, roles) for name in queries)
    attention = np.full((blocks, len(queries), heads, length), np.nan, np.float32)
    norm = np.full((blocks, len(queries), length), np.nan, np.float32)
    for query, position in enumerate(positions):
        if position >= 0:
            weights = rng.exponential(size=(blocks, heads, position + 1))
            attention[:, query] = 0
            attention[:, query, :, : position + 1] = weights / weights.sum(-1, keepdims=True)
            norm[:, query] = 0
            norm[:, query, : position + 1] = rng.exponential(size=(blocks, position + 1))
    weights = rng.exponential(size=(blocks, heads, length, length)) * np.tri(length)
    weights /= weights.sum(-1, keepdims=True)
    values = {
        "value_norm": rng.exponential(size=(blocks, heads, length)),
        "attention_mass": weights @ (roles[:, None] == np.arange(len(ROLES))),
        "attention_output": rng.standard_normal((blocks, length, dim)),
        "mlp_output": rng.standard_normal((blocks, length, dim)),
    }
    for query, position in enumerate(positions):
        if position >= 0:
            values["attention_mass"][:, :, position] = attention[:, query] @ (roles[:, None] == np.arange(len(ROLES)))
    for name, array in values.items():
        if prefix is not None:
            axis = TOKEN_DIMS[name].index("token")
            array[(slice(None),) * axis + (slice(prefix_length),)] = prefix[name].take(range(prefix_length), axis)
    single = {name: array.astype(np.float32) for name, array in values.items()}
    return TinyBlocks(
        tuple(numbers), tuple(queries), positions, {"attention": attention, "attention_norm": norm, **single}
    )


def block_content(
    samples: Sequence[tuple[TinyBlocks, Sequence[dict[str, int]]]],
    runs: Sequence[tuple[TinyBlocks, int, int]],
    *,
    like: TinyBlocks,
    capture: Sequence[str],
    stored: str,
    captured: str,
) -> tuple[list[PartArray], list[Coordinate]]:
    """Lay the samples of a part on its token and key axes.

    Parameters
    ----------
    samples
        Each sample's values and segments.
    runs
        What lies on the token axis, in order: positions [start, stop) of a sample.
    like
        Any sample's values: says shapes where the part has no sample.
    capture
        Out of ``BLOCK_CAPTURES``.
    stored, captured
        dtypes of the states.
    """
    arrays, coordinates = [], [block_coordinate("token", like.numbers)]
    for name, dims in (KEY_DIMS | TOKEN_DIMS).items():
        if CAPTURE_OF[name] not in capture:
            continue
        axis = dims.index("key" if name in KEY_DIMS else "token")
        empty = like.values[name].take([], axis)
        if name in KEY_DIMS:
            pieces = [blocks.values[name] for blocks, _ in samples]
        else:
            pieces = [blocks.values[name].take(range(start, stop), axis) for blocks, start, stop in runs]
        is_state = name.endswith("output")
        joined = np.concatenate([empty, *pieces], axis).astype(stored if is_state else "float32")
        attributes = {"units": "1", "captured_dtype": captured if is_state else "float32"}
        arrays.append(_part_array(f"{'key' if name in KEY_DIMS else 'token'}/{name}", dims, joined, attributes))
    if "attention" in capture:
        tokens = [np.arange(run["start"], run["stop"]) for _, segments in samples for run in segments]
        key_token = np.concatenate([np.zeros(0, np.int32), *tokens]).astype(np.int32)
        coordinates += [
            Coordinate("key/token", ("key",), key_token),
            block_coordinate("key", like.numbers),
            query_coordinate(like.queries),
        ]
    if "attention-mass" in capture:
        coordinates.append(source_role_coordinate())
    return arrays, coordinates


def _part_array(path: str, dims: tuple[str, ...], values: np.ndarray, attributes: dict[str, Any]) -> PartArray:
    return PartArray(
        path, dims, values.shape, str(values.dtype), lambda index: np.ascontiguousarray(values[index]), attributes
    )


def key_columns(samples: Sequence[TinyBlocks | None]) -> list[dict[str, Any]]:
    """Columns of the sample table that find each sample's rows of attention; empty where it has none."""
    columns: list[dict[str, Any]] = []
    start = 0
    for blocks in samples:
        if blocks is None:
            columns.append({})
            continue
        stop = start + blocks.values["attention"].shape[-1]
        columns.append({"key_start": start, "key_stop": stop, "query_positions": list(blocks.query_positions)})
        start = stop
    return columns
