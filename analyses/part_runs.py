"""What contextualization computes of every part: cosines, and the mean states that they may be measured from."""

from collections.abc import Iterator, Sequence

from analyses.anisotropy import PairSums
from analyses.centring import StateMeans, part_means
from analyses.kept_parts import KeptParts
from analyses.kept_runs import Arrays, PartWork, run_parts
from analyses.part_cosines import PartCosines, part_cosines
from analyses.part_task import PartTask
from analyses.resources import Resources
from engine.store import Part

__all__ = ["cosines_of_parts", "means_of_parts"]


def cosines_of_parts(
    parts: Sequence[Part], tasks: Sequence[PartTask], resources: Resources, kept: KeptParts
) -> Iterator[PartCosines]:
    """Run `part_cosines` on every task whose result is not kept, then yield all results in order."""
    return run_parts(PartWork("cosines", part_cosines, _cosine_arrays, _cosines_of), parts, tasks, resources, kept)


def means_of_parts(
    parts: Sequence[Part], tasks: Sequence[PartTask], resources: Resources, kept: KeptParts
) -> Iterator[StateMeans]:
    """Run `part_means` on every task whose result is not kept, then yield all results in order."""
    work = PartWork("means", part_means, StateMeans._asdict, lambda arrays: StateMeans(**arrays))
    return run_parts(work, parts, tasks, resources, kept)


def _cosine_arrays(result: PartCosines) -> Arrays:
    *fields, pairs = result
    named = dict(zip(PartCosines._fields, fields, strict=False))
    return named if pairs is None else {**named, **{f"pairs_{key}": value for key, value in pairs._asdict().items()}}


def _cosines_of(arrays: Arrays) -> PartCosines:
    pairs = {key: arrays[f"pairs_{key}"] for key in PairSums._fields if f"pairs_{key}" in arrays}
    return PartCosines(arrays["cosine"], arrays["normed"], arrays["counts"], PairSums(**pairs) if pairs else None)
