"""One task per part, each kept on disk as soon as it is finished, and all handed back in the order of the parts.

Nothing piles up: a worker writes a part's numbers to disk and forgets them, and whoever adds them up reads one part at
a time. The order in which parts finish therefore changes no bit of a sum over them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from analyses.execution import run_tasks
from analyses.kept_parts import KeptParts, Task
from analyses.resources import Resources
from engine.errors import StrataError
from engine.store import Part

__all__ = ["Arrays", "PartWork", "finish_parts", "load_parts", "run_parts"]

T = TypeVar("T", bound=Task)
R = TypeVar("R")
Arrays = Mapping[str, NDArray[Any]]


class PartWork(NamedTuple, Generic[T, R]):
    """What is computed of each part, and how its result becomes arrays with names and back."""

    name: str
    function: Callable[[T], R]
    to_arrays: Callable[[R], Arrays]
    from_arrays: Callable[[Arrays], R]


def run_parts(
    work: PartWork[T, R], parts: Sequence[Part], tasks: Sequence[T], resources: Resources, kept: KeptParts
) -> Iterator[R]:
    """Run the work on every task whose result is not kept, then yield all results in order.

    Raises
    ------
    StrataError
        Another process removed a kept result; or what the work raises.
    """
    finish_parts(work, parts, tasks, resources, kept)
    yield from load_parts(work, parts, tasks, kept)


def finish_parts(
    work: PartWork[T, R], parts: Sequence[Part], tasks: Sequence[T], resources: Resources, kept: KeptParts
) -> None:
    """Run the work on every task whose result is not kept, and keep it."""
    names = {(part.url, part.name): kept.name(work.name, part, task) for part, task in zip(parts, tasks, strict=True)}

    def name_of(task: T) -> str:
        return names[task.url, task.name]

    missing = [task for task in tasks if not kept.holds(name_of(task))]
    run_tasks(
        work.function,
        missing,
        resources,
        finished=lambda task, result: kept.save(name_of(task), work.to_arrays(result)),
    )


def load_parts(work: PartWork[T, R], parts: Sequence[Part], tasks: Sequence[T], kept: KeptParts) -> Iterator[R]:
    """Yield the results that `finish_parts` kept, one at a time, in the order of the parts.

    Raises
    ------
    StrataError
        Another process removed one.
    """
    for part, task in zip(parts, tasks, strict=True):
        arrays = kept.load(kept.name(work.name, part, task))
        if arrays is None:
            raise StrataError(
                f"a finished part of {task.url} was removed from the results folder while the analysis ran: run it "
                "again, and no other analysis into the same folder at the same time"
            )
        yield work.from_arrays(arrays)
