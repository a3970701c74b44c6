"""One task per part, each kept on disk as soon as it is finished, and all handed back in the order of the parts.

Nothing piles up: a worker writes a part's numbers to disk and forgets them, and whoever adds them up reads one part at
a time. The order in which parts finish therefore changes no bit of a sum over them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from analyses.anisotropy import PairSums
from analyses.centring import StateMeans, part_means
from analyses.execution import run_tasks
from analyses.kept_parts import KeptParts
from analyses.part_cosines import PartCosines, part_cosines
from analyses.part_task import PartTask
from analyses.resources import Resources
from engine.errors import StrataError
from engine.store import Part

__all__ = ["cosines_of_parts", "means_of_parts"]

R = TypeVar("R")
Arrays = Mapping[str, NDArray[Any]]


class _Work(NamedTuple, Generic[R]):
    """What is computed of each part, and how its result becomes arrays with names and back."""

    name: str
    function: Callable[[PartTask], R]
    to_arrays: Callable[[R], Arrays]
    from_arrays: Callable[[Arrays], R]


def cosines_of_parts(
    parts: Sequence[Part], tasks: Sequence[PartTask], resources: Resources, kept: KeptParts
) -> Iterator[PartCosines]:
    """Run `part_cosines` on every task whose result is not kept, then yield all results in order."""
    return _run(_Work("cosines", part_cosines, _cosine_arrays, _cosines_of), parts, tasks, resources, kept)


def means_of_parts(
    parts: Sequence[Part], tasks: Sequence[PartTask], resources: Resources, kept: KeptParts
) -> Iterator[StateMeans]:
    """Run `part_means` on every task whose result is not kept, then yield all results in order."""
    work = _Work("means", part_means, StateMeans._asdict, lambda arrays: StateMeans(**arrays))
    return _run(work, parts, tasks, resources, kept)


def _run(
    work: _Work[R], parts: Sequence[Part], tasks: Sequence[PartTask], resources: Resources, kept: KeptParts
) -> Iterator[R]:
    names = {(part.url, part.name): kept.name(work.name, part, task) for part, task in zip(parts, tasks, strict=True)}

    def name_of(task: PartTask) -> str:
        return names[task.url, task.name]

    missing = [task for task in tasks if not kept.holds(name_of(task))]
    run_tasks(
        work.function,
        missing,
        resources,
        finished=lambda task, result: kept.save(name_of(task), work.to_arrays(result)),
    )
    for task in tasks:
        arrays = kept.load(name_of(task))
        if arrays is None:
            raise StrataError(
                f"a finished part of {task.url} was removed from the results folder while the analysis ran: run it "
                "again, and no other analysis into the same folder at the same time"
            )
        yield work.from_arrays(arrays)


def _cosine_arrays(result: PartCosines) -> Arrays:
    *fields, pairs = result
    named = dict(zip(PartCosines._fields, fields, strict=False))
    return named if pairs is None else {**named, **{f"pairs_{key}": value for key, value in pairs._asdict().items()}}


def _cosines_of(arrays: Arrays) -> PartCosines:
    pairs = {key: arrays[f"pairs_{key}"] for key in PairSums._fields if f"pairs_{key}" in arrays}
    return PartCosines(arrays["cosine"], arrays["normed"], arrays["counts"], PairSums(**pairs) if pairs else None)
