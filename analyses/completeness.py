"""How much of what was planned a store holds: an analysis of half a store must say that it is one."""

from dataclasses import dataclass

from engine.store import Store, summarise

__all__ = ["Completeness", "completeness"]


@dataclass(frozen=True)
class Completeness:
    """Planned and committed parts and samples; bad samples could not be stored, and their parts say so."""

    planned_parts: int
    stored_parts: int
    planned_samples: int
    stored_samples: int
    bad_samples: int

    def note(self, url: str) -> str | None:
        """Say in a sentence what is missing; None where nothing is."""
        missing = self.planned_samples - self.stored_samples - self.bad_samples
        lacks = []
        if missing:
            lacks.append(f"{_samples(missing, 'planned')} missing (strata inspect {url})")
        if self.bad_samples:
            lacks.append(f"{_samples(self.bad_samples, 'bad')} left out (strata inspect --bad {url})")
        if not lacks:
            return None
        return (
            f"{url} holds {self.stored_parts} of {self.planned_parts} parts, {self.stored_samples} of "
            f"{self.planned_samples} samples; {'; '.join(lacks)}"
        )


def completeness(store: Store) -> Completeness:
    """Count what a store holds; reads its plan and no part."""
    summary = summarise(store)
    return Completeness(
        planned_parts=summary.planned_parts,
        stored_parts=summary.committed_parts,
        planned_samples=summary.planned_samples,
        stored_samples=summary.samples,
        bad_samples=len(summary.bad_samples),
    )


def _samples(count: int, kind: str) -> str:
    return f"{count} {kind} sample{' is' if count == 1 else 's are'}"
