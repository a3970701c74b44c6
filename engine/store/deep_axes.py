"""The axes of a part in memory: what each stored position is and whose, checked against one another and the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engine.store.inventory import Problem
from engine.store.layout import KEY_COORDINATES, PARTS_FOLDER, TOKEN_COORDINATES
from engine.store.part import Part
from engine.vocabulary import ROLE_CODES, ROLES

__all__ = ["Axes", "check_axes", "read_axes"]

_PLACE = ("grid", "patch_row", "patch_col")


@dataclass(frozen=True)
class Axes:
    """Coordinates of one part, and the samples that lie on them.

    Attributes
    ----------
    coordinates
        By path, int32.
    samples
        Its sample table.
    token_sample, key_sample
        Row of the (first) sample that each token and each key belongs to; -1 for none.
    key_present
        (query, key): whether the key's sample has the query.
    counts
        (role, sample) as ``sample/token_count`` says; None where there are no pooled states.
    """

    coordinates: Mapping[str, np.ndarray]
    samples: pd.DataFrame
    token_sample: np.ndarray
    key_sample: np.ndarray
    key_present: np.ndarray
    counts: np.ndarray | None

    def name(self, sample: int) -> str:
        """Id of a sample by its row, for a message."""
        return str(self.samples["sample_id"].iloc[sample]) if sample >= 0 else "none"

    def places(self, sample: int) -> np.ndarray:
        """Places of a sample's tokens on the token axis, in order, as far as they are on it."""
        segments = self.samples["segments"].iloc[sample]
        runs = [np.arange(*_clipped(run["start"], run["stop"], len(self.token_sample))) for run in segments]
        return np.concatenate([np.zeros(0, np.int64), *runs])


def read_axes(part: Part) -> Axes:
    """Read the coordinates and the sample table of a part.

    Raises
    ------
    StrataError
        When one cannot be read.
    """
    entries = part.manifest["arrays"]
    paths = [path for path, entry in entries.items() if entry["coordinate"]]
    samples = part.samples
    queries = int(entries["key/query"]["shape"][0]) if "key/query" in entries else 0
    axes = Axes(
        coordinates={path: np.asarray(part.array(path)[...]) for path in paths},
        samples=samples,
        token_sample=np.full(part.tokens, -1, np.int32),
        key_sample=np.full(part.keys, -1, np.int32),
        key_present=np.zeros((queries, part.keys), bool),
        counts=np.asarray(part.array("sample/token_count")[...]) if "sample/token_count" in entries else None,
    )
    for row in reversed(range(len(samples))):
        axes.token_sample[axes.places(row)] = row
        keys, positions = _keys_of(samples, row)
        if len(positions) == queries:
            own = slice(*_clipped(*keys, part.keys))
            axes.key_sample[own] = row
            axes.key_present[:, own] = (positions >= 0)[:, np.newaxis]
    return axes


def _keys_of(samples: pd.DataFrame, row: int) -> tuple[tuple[int, int], np.ndarray]:
    """Where a sample's keys start and stop, and its queries' positions; nothing where it has none."""
    start, stop, positions = (samples[name].iloc[row] for name in ("key_start", "key_stop", "query_positions"))
    if positions is None or pd.isna(start) or pd.isna(stop):
        return (0, 0), np.zeros(0, np.int64)
    return (int(start), int(stop)), np.asarray(positions)


def _clipped(start: int, stop: int, length: int) -> tuple[int, int]:
    """Keep a run within its axis; that it leaves it is a problem of its own."""
    return min(max(int(start), 0), length), min(max(int(stop), 0), length)


def check_axes(part: Part, axes: Axes, kinds: np.ndarray, roles: tuple[str, ...] | None) -> Iterator[Problem]:
    """Find positions that contradict one another.

    Parameters
    ----------
    part, axes
        The part, and what was read of it.
    kinds
        (vocab) text: kind of each vocabulary piece.
    roles
        Names of the roles whose tokens are stored; None for all.
    """
    found = [
        *_segment_problems(part, axes),
        *_token_problems(axes, kinds, roles),
        *_patch_problems(axes),
        *_key_problems(part, axes),
        *_order_problems(axes, whole=roles is None),
        *_count_problems(axes, roles),
    ]
    for where, message in found:
        suffix = ".parquet" if where == "samples" else f".zarr/{where}/zarr.json"
        yield Problem(f"{PARTS_FOLDER}/{part.name}{suffix}", message)


def _segment_problems(part: Part, axes: Axes) -> Iterator[tuple[str, str]]:
    """Segments lie within the token axis and cover it; those of two samples are of one image or apart."""
    for row, segments in enumerate(axes.samples["segments"]):
        for run in segments:
            if not 0 <= run["start"] < run["stop"] <= part.tokens:
                yield (
                    "samples",
                    (f"sample {axes.name(row)} has a segment {run['start']}:{run['stop']} on an axis of {part.tokens}"),
                )
    uncovered = np.flatnonzero(axes.token_sample < 0)
    if len(uncovered):
        yield "samples", f"has {len(uncovered)} tokens that belong to no sample, the first at {uncovered[0]}"
    images = axes.samples["image_id"].to_numpy()
    for row in range(len(images)):
        own = axes.places(row)
        others = np.unique(axes.token_sample[own])
        foreign = [other for other in others if images[other] != images[row]]
        if foreign:
            yield "samples", f"sample {axes.name(row)} shares tokens with {axes.name(foreign[0])} of another image"


def _token_problems(axes: Axes, kinds: np.ndarray, roles: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Roles are known and stored ones; ``special`` is said of special pieces, text is of the vocabulary."""
    missing = [name for name in TOKEN_COORDINATES if f"token/{name}" not in axes.coordinates]
    if missing:
        yield "token", f"has no coordinate {missing[0]}"
        return
    role, token_id = (axes.coordinates[f"token/{name}"] for name in ("role", "token_id"))
    stored = range(len(ROLES)) if roles is None else [ROLE_CODES[name] for name in roles if name in ROLE_CODES]
    yield from _each("token/role", axes, ~np.isin(role, stored), "has a role that is not stored", role)
    image = role == ROLE_CODES["image"]
    outside = (token_id < 0) | (token_id >= len(kinds)) & ~image
    yield from _each("token/token_id", axes, outside, "has an id outside of the vocabulary", token_id)
    inside = np.clip(token_id, 0, len(kinds) - 1)
    wrong = ~outside & (role == ROLE_CODES["special"]) & (kinds[inside] != "special")
    yield from _each("token/role", axes, wrong, "is special, which vocab.parquet does not say of its id", token_id)


def _patch_problems(axes: Axes) -> Iterator[tuple[str, str]]:
    """Only image tokens lie on grids, each within its own and each on another patch."""
    if any(f"token/{name}" not in axes.coordinates for name in (*_PLACE, "role")):
        return
    grid, row, col = (axes.coordinates[f"token/{name}"] for name in _PLACE)
    text = axes.coordinates["token/role"] != ROLE_CODES["image"]
    yield from _each("token/grid", axes, text & (grid != -1), "lies on a grid and is no image token", grid)
    for number in range(len(axes.samples)):
        own = axes.places(number)
        grids = axes.samples["grids"].iloc[number]
        placed = own[grid[own] >= 0]
        lengths = [(int(each["rows"]), int(each["cols"])) for each in grids]
        inside = [
            grid[at] < len(lengths) and 0 <= row[at] < lengths[grid[at]][0] and 0 <= col[at] < lengths[grid[at]][1]
            for at in placed
        ]
        if not all(inside):
            yield "token/grid", f"sample {axes.name(number)} has a token outside of its grids"
        if len({(grid[at], row[at], col[at]) for at in placed}) < len(placed):
            yield "token/grid", f"sample {axes.name(number)} has two tokens on one patch"


def _order_problems(axes: Axes, *, whole: bool) -> Iterator[tuple[str, str]]:
    """Positions ascend along each sample, without gaps where all its tokens are stored."""
    position = axes.coordinates.get("token/position")
    if position is None:
        return
    for row in range(len(axes.samples)):
        own = axes.places(row)
        steps = position[own]
        expected = np.array_equal(steps, np.arange(len(own))) if whole else bool((np.diff(steps) > 0).all())
        if not expected:
            yield "token/position", f"sample {axes.name(row)} has positions that do not run from its first to its last"


def _count_problems(axes: Axes, roles: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Compare how many tokens were pooled of each role with how many are stored."""
    role, codes = axes.coordinates.get("token/role"), axes.coordinates.get("sample/role")
    if axes.counts is None or role is None or codes is None:
        return
    stored = ROLES if roles is None else roles
    known = [number for number, code in enumerate(codes) if 0 <= code < len(ROLES) and ROLES[code] in stored]
    for row in range(len(axes.samples)):
        tokens = np.bincount(np.clip(role[axes.places(row)], 0, None), minlength=len(ROLES))
        if any(axes.counts[number, row] != tokens[codes[number]] for number in known):
            yield "sample/token_count", f"sample {axes.name(row)} has other counts than its tokens' roles"


def _key_problems(part: Part, axes: Axes) -> Iterator[tuple[str, str]]:
    """Keys of the samples follow each other and cover their axis; they are the tokens that they say."""
    if "key/token" not in axes.coordinates:
        return
    token, stop = axes.coordinates["key/token"], 0
    queries = len(axes.coordinates["key/query"])
    for row in range(len(axes.samples)):
        (start, end), positions = _keys_of(axes.samples, row)
        if start != stop or not start < end <= part.keys:
            yield "samples", f"sample {axes.name(row)} has the keys {start}:{end}, not those from {stop} on"
        stop = end
        if len(positions) != queries or not ((positions >= -1) & (positions < end - start)).all():
            yield (
                "samples",
                f"sample {axes.name(row)} has queries at {positions.tolist()} of {end - start} positions",
            )
        keys = token[slice(*_clipped(start, end, part.keys))]
        if not np.array_equal(keys[keys >= 0], axes.places(row)):
            yield "key/token", f"sample {axes.name(row)} has keys that are not its tokens"
    if stop != part.keys:
        yield "samples", f"has {part.keys - stop} keys that belong to no sample"
    stored = np.flatnonzero((token >= 0) & (token < part.tokens))
    for name in KEY_COORDINATES:
        key, of_token = axes.coordinates.get(f"key/{name}"), axes.coordinates.get(f"token/{name}")
        if key is not None and of_token is not None:
            wrong = np.flatnonzero(key[stored] != of_token[token[stored]])
            if len(wrong):
                owner = axes.name(int(axes.key_sample[stored[wrong[0]]]))
                yield f"key/{name}", f"sample {owner} has keys that are not what their tokens are"


def _each(path: str, axes: Axes, wrong: np.ndarray, what: str, values: np.ndarray) -> Iterator[tuple[str, str]]:
    """One line for all tokens that something is wrong with."""
    places = np.flatnonzero(wrong)
    if len(places):
        first = int(places[0])
        sample = axes.name(int(axes.token_sample[first]))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield path, f"token {first} of sample {sample} {what} ({values[first]}){more}"
