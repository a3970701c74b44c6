"""The long check of a store: every chunk is decoded, and what its files say is compared with one another.

Hashes find rot; this finds what was wrong when it was hashed. One part is looked at at a time, its coordinates in
memory, its shards on several threads, each through one chunk's memory.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from engine.cores import part_threads
from engine.errors import StrataError
from engine.store.deep_axes import Axes, check_axes, read_axes
from engine.store.deep_nodes import check_nodes, check_numbers
from engine.store.deep_norm import read_final_norm
from engine.store.deep_pooled import STATES
from engine.store.deep_runs import find_pooled_runs
from engine.store.deep_store import check_common, check_contents
from engine.store.deep_values import check_values, value_tasks
from engine.store.inventory import Problem
from engine.store.layout import PARTS_FOLDER, TOKEN_COORDINATES
from engine.store.part import Part
from engine.store.reader import Store, open_store

__all__ = ["check_deeply"]


def check_deeply(path: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[Problem]:
    """Look at every value of a store whose files are as they were written.

    Parameters
    ----------
    path
        The store's folder.
    progress
        Called with (bytes looked at, bytes to look at), as stored, after each shard.

    Yields
    ------
    Problem
        The file; and the array, layer or block, and sample where there is one.
    """
    store = open_store(path)
    common = list(check_common(store))
    yield from common
    try:
        plan, kinds = store.plan, store.model.vocabulary["kind"].to_numpy()
    except StrataError:
        return  # it is said above, and nothing of the parts can be judged without
    norm = read_final_norm(store)
    total = sum(_bytes(part, name) for part in store.parts for name in part.manifest["files"] if _is_data(part, name))
    done = 0
    with ThreadPoolExecutor(part_threads()) as pool:
        for listed in store.parts:
            part = Part(listed.location, listed.name, listed.manifest)  # whose table goes when it is done
            found, axes = _check_part(store, part, plan[plan["part"] == part.number])
            yield from found
            if axes is None:
                continue
            try:
                tasks = value_tasks(part)
            except StrataError as error:
                yield _unreadable(part, error)
                continue
            pooled = find_pooled_runs(part, axes, STATES)
            check = partial(check_values, axes=axes, kinds=kinds, pooled=pooled, norm=norm)
            results = pool.map(check, tasks)
            for task, problems in zip(tasks, results, strict=True):
                yield from problems
                done += _bytes(part, task.file.removeprefix(f"{PARTS_FOLDER}/"))
                if progress is not None:
                    progress(done, total)


def _check_part(store: Store, part: Part, plan: pd.DataFrame) -> tuple[list[Problem], Axes | None]:
    """Check all of a part but its values; the axes are None where nothing can be said of those."""
    problems: list[Problem] = []
    capture = store.record["capture"]
    roles = None if capture.get("roles") is None else tuple(capture["roles"])
    kinds = store.model.vocabulary["kind"].to_numpy()
    try:
        problems += check_contents(part, plan, capture)
        problems += check_nodes(part)
        axes = read_axes(part)
        problems += check_axes(part, axes, kinds, roles)
        problems += check_numbers(part, axes, capture)
    except StrataError as error:
        return [*problems, _unreadable(part, error)], None
    complete = all(f"token/{name}" in axes.coordinates for name in TOKEN_COORDINATES)
    return problems, axes if complete else None


def _unreadable(part: Part, error: StrataError) -> Problem:
    """Say it of the part, so that the other parts are still looked at."""
    return Problem(f"{PARTS_FOLDER}/{part.name}.json", f"lists what cannot be read: {error}")


def _is_data(part: Part, file: str) -> bool:
    """Whether a file holds values of an array that is no coordinate."""
    path, chunk, _ = file.partition("/c/")
    entry = part.manifest["arrays"].get(path.partition("/")[2])
    return bool(chunk) and entry is not None and not entry["coordinate"]


def _bytes(part: Part, file: str) -> int:
    return int(part.manifest["files"].get(file, {"bytes": 0})["bytes"])
