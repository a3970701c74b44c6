"""Every value of a part's arrays: decoded, finite where it is kept, absent where not, and what its array means.

Each shard is streamed through one chunk's memory. What is said of an array elsewhere (its attributes, the sample table,
the counts of pooled tokens) says which of its values there must be.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from engine.errors import StrataError
from engine.store.deep_axes import Axes
from engine.store.deep_norm import FinalNorm
from engine.store.deep_pooled import STATES, PooledCheck
from engine.store.deep_rows import MASS, ROWS, RowSums, sum_error
from engine.store.deep_runs import PooledRuns
from engine.store.inventory import Problem
from engine.store.layout import LEADING_DIMS, PARTS_FOLDER
from engine.store.part import Part
from engine.store.stream import Chunk, shard_count, stream_chunks
from engine.vocabulary import ROLE_CODES

__all__ = ["Task", "check_values", "value_tasks"]

_NEVER_NEGATIVE = ("key/attention", "key/attention_norm", "token/value_norm", "token/attention_mass")
_UNIT_LENGTH = 1 + 1e-3


class Task(NamedTuple):
    """One shard to look at: of which part, which array, which index along the shards' leading axis."""

    part: Part
    path: str
    shard: int

    @property
    def file(self) -> str:
        """The shard, relative to the store."""
        rest = "/0" * (len(self.part.manifest["arrays"][self.path]["shape"]) - 1)
        return f"{PARTS_FOLDER}/{self.part.name}.zarr/{self.path}/c/{self.shard}{rest}"


class _Array(NamedTuple):
    """What is known of an array before its values are read.

    Attributes
    ----------
    file, path, entry
        The shard, the array, what the manifest says of it.
    axes
        The part's.
    lead
        Layer or block numbers along its leading axis, where it has one; else empty.
    kept
        ``kept(chunk)`` is where a chunk must hold values, broadcastable to it; None where nothing is known of it.
    sum_error
        How far a sum along the last axis may be off, where it is known.
    """

    file: str
    path: str
    entry: dict[str, Any]
    axes: Axes
    lead: np.ndarray
    kept: Callable[[Chunk], np.ndarray] | None
    sum_error: float


def value_tasks(part: Part) -> list[Task]:
    """List the shards of all data arrays of a part.

    Raises
    ------
    StrataError
        When an array's description is not what its manifest says.
    """
    entries = part.manifest["arrays"]
    data = [path for path, entry in entries.items() if not entry["coordinate"]]
    return [Task(part, path, shard) for path in data for shard in range(shard_count(part, path))]


def check_values(
    task: Task, axes: Axes, kinds: np.ndarray, pooled: PooledRuns | None = None, norm: FinalNorm | None = None
) -> list[Problem]:
    """Look at every value of one shard.

    Parameters
    ----------
    task
        The shard.
    axes
        The part's axes.
    kinds
        (vocab) text: kind of each vocabulary piece.
    pooled
        Which hidden states the part's pooled states are means of; None where it has not both.
    norm
        The model's final norm, where it is known.

    Returns
    -------
    list of Problem
        One for each layer or block and each kind of damage, with the first place that has it.
    """
    array = _describe(task, axes)
    found: dict[str, Problem] = {}
    sums = _sums_of(task, axes, pooled, norm)
    try:
        for chunk in stream_chunks(task.part, task.path, task.shard):
            for what, wrong in _wrong_values(array, chunk, kinds):
                for problem in _name(array, chunk, what, wrong):
                    found.setdefault(problem.message.split(":")[0], problem)
            if sums is not None:
                found |= {problem.message: problem for problem in sums.add(chunk)}
    except StrataError as error:
        return [*found.values(), Problem(task.file, f"cannot be decoded: {error}")]
    if sums is not None:
        found |= {problem.message: problem for problem in sums.finish()}
    return list(found.values())


def _sums_of(task: Task, axes: Axes, pooled: PooledRuns | None, norm: FinalNorm | None) -> PooledCheck | RowSums | None:
    """Make what adds values up, of an array whose sums are known."""
    if task.path == STATES and pooled is not None:
        return PooledCheck(task.part, axes, pooled, norm)
    return RowSums(task.part, axes, task.file) if task.path == ROWS else None


def _describe(task: Task, axes: Axes) -> _Array:
    entry = task.part.manifest["arrays"][task.path]
    group, name = task.path.split("/")
    leads = entry["dims"][0] in LEADING_DIMS
    lead = axes.coordinates.get(f"{group}/{entry['dims'][0]}", np.zeros(0)) if leads else np.zeros(0)
    kept = {"token": _kept_tokens, "key": _kept_keys, "sample": _kept_samples}.get(group)
    rule = None if kept is None or name == "token_count" else kept(entry, axes, lead)
    return _Array(task.file, task.path, entry, axes, lead, rule, sum_error(task.part, task.path))


def _kept_tokens(entry: dict[str, Any], axes: Axes, lead: np.ndarray) -> Callable[[Chunk], np.ndarray]:
    attributes = entry["attributes"]
    role = axes.coordinates["token/role"]
    roles = attributes.get("roles")
    codes = np.unique(role) if roles is None else [ROLE_CODES[name] for name in roles if name in ROLE_CODES]
    of_token = np.isin(role, codes)
    numbers = attributes.get("layers" if entry["dims"][0] == "layer" else "blocks")
    of_lead = np.ones(len(lead), bool) if numbers is None else np.isin(lead, numbers)
    along = [1] * len(entry["dims"])
    along[entry["dims"].index("token")] = -1

    def kept(chunk: Chunk) -> np.ndarray:
        leading = of_lead[chunk.first : chunk.first + len(chunk.values)].reshape(-1, *[1] * (len(along) - 1))
        return np.asarray(leading & of_token[chunk.start : chunk.stop].reshape(along))

    return kept


def _kept_keys(entry: dict[str, Any], axes: Axes, _lead: np.ndarray) -> Callable[[Chunk], np.ndarray]:
    heads = "head" in entry["dims"]

    def kept(chunk: Chunk) -> np.ndarray:
        there = axes.key_present[:, chunk.start : chunk.stop]
        return np.asarray(there[:, np.newaxis] if heads else there)[np.newaxis]

    return kept


def _kept_samples(entry: dict[str, Any], axes: Axes, _lead: np.ndarray) -> Callable[[Chunk], np.ndarray]:
    counts = axes.counts

    def kept(chunk: Chunk) -> np.ndarray:
        if counts is None:
            return np.isfinite(chunk.values)
        there = counts[:, chunk.start : chunk.stop, np.newaxis] > 0
        return there[np.newaxis] if entry["dims"][0] in LEADING_DIMS else there

    return kept


def _wrong_values(array: _Array, chunk: Chunk, kinds: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Tell what is wrong with a chunk and where, of the chunk's shape."""
    values = chunk.values
    if array.kept is not None:
        kept = np.broadcast_to(array.kept(chunk), values.shape)
        if values.dtype.kind == "i":
            yield "a value where none is kept", ~kept & (values != -1)
            yield "no value where one is kept", kept & (values < 0)
        else:
            yield "a value where none is kept", ~kept & ~np.isnan(values)
            yield "NaN or infinity where a value is kept", kept & ~np.isfinite(values)
    if array.path in _NEVER_NEGATIVE:
        yield "a negative value", values < 0
    if array.entry["attributes"].get("captured_dtype") == "bfloat16" and values.dtype == np.float32:
        bits = np.ascontiguousarray(values).view(np.uint32)
        yield "a value that no bfloat16 has", np.isfinite(values) & (bits & 0xFFFF != 0)
    if array.path == "token/lens_token_id":
        named = values >= 0
        yield "a piece that is not normal", named & (kinds[np.clip(values, 0, len(kinds) - 1)] != "normal")
        yield "a piece outside of the vocabulary", values >= len(kinds)
    if array.path == "token/lens_logit":
        yield "a logit above the one before it", np.diff(values, axis=-1, prepend=values[..., :1]) > 0
    if array.path in ("sample/unit_mean", "sample/normed_unit_mean"):
        lengths = np.linalg.norm(values.astype(np.float64), axis=-1, keepdims=True)
        yield "a mean of unit vectors that is longer than one", np.broadcast_to(lengths > _UNIT_LENGTH, values.shape)
    if array.path == MASS:
        wrong = np.abs(values.sum(axis=-1, keepdims=True, dtype=np.float64) - 1) > array.sum_error
        yield "masses that do not add up to 1", np.broadcast_to(wrong, values.shape)
    if array.path == "sample/token_count":
        yield "a negative count", values < 0


def _name(array: _Array, chunk: Chunk, what: str, wrong: np.ndarray) -> Iterator[Problem]:
    """One problem for each leading index that something is wrong with."""
    if not wrong.any():
        return
    dims, axes = array.entry["dims"], array.axes
    for index in np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1)) if len(array.lead) else [None]:
        places = np.argwhere(wrong if index is None else wrong[index])
        place = [int(at) for at in (places[0] if index is None else (index, *places[0]))]
        axis = next(number for number, dim in enumerate(dims) if dim in ("token", "key", "sample"))
        place[axis] += chunk.start
        owners = {"token": axes.token_sample, "key": axes.key_sample}
        sample = place[axis] if dims[axis] == "sample" else int(owners[dims[axis]][place[axis]])
        lead = "" if index is None else f"{dims[0]} {array.lead[chunk.first + int(index)]} "
        named = ", ".join(f"{dim} {at}" for dim, at in list(zip(dims, place, strict=True))[0 if index is None else 1 :])
        yield Problem(
            array.file,
            f"{array.path} {lead}holds {what}: sample {axes.name(sample)}, {named}",
        )
