"""LogitLens of a store (nostalgebraist 2020): what image tokens say in words at every layer, and how it fits captions.

lens(h_l) = W_U · norm(h_l), from stored states alone, or pieces that extraction stored. One task per part, on threads
or a cluster; pieces stay on disk, a few numbers per sample and layer come back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.kept_parts import KeptParts
from analyses.kept_runs import Arrays, PartWork, finish_parts, load_parts
from analyses.lens_model import forget_model
from analyses.lens_task import LensSource, LensTask
from analyses.part_lens import COUNTS, UNKNOWN, PartLens, Pieces, part_lens
from analyses.resources import Resources
from engine.store import Part, Store

__all__ = ["SCORES", "LogitLens", "analyze_store", "stored_pieces"]

SCORES: Mapping[str, tuple[str, str]] = {"precision": ("correct", "decoded"), "recall": ("recalled", "references")}
"""Numerator and denominator of each score."""

_NO_PIECES = Pieces(np.zeros((0, 0, 0), np.int32), np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class LogitLens:
    """LogitLens of every sample of one store.

    Attributes
    ----------
    samples : DataFrame
        Columns `contextualization.SAMPLE_COLUMNS`; one row per sample.
    layers : array (layer), int32
    block_count : int
        L, so that depth = layer / L.
    source : ``"lens"`` or ``"hidden_states"``
        Whether pieces were stored by extraction, or found from states.
    topk : int
    counts : mapping
        By `part_lens.COUNTS`: arrays (variant, sample, layer), int32, `part_lens.UNKNOWN` without captions. Variants
        are `lens_scores.VARIANTS`.
    references : array (sample), int32
        `part_lens.UNKNOWN` without captions.
    agreement : array (sample, layer), float32
    image_tokens : array (sample), int32
    trajectory : array (measure, what, sample, layer), float32, or None
        As of `part_lens.PartLens`.
    certified : float
        Share of tokens and layers that the cheap screen decided; NaN where pieces were read.
    """

    samples: pd.DataFrame
    layers: NDArray[np.int32]
    block_count: int
    source: LensSource
    topk: int
    counts: Mapping[str, NDArray[np.int32]]
    references: NDArray[np.int32]
    agreement: NDArray[np.float32]
    image_tokens: NDArray[np.int32]
    trajectory: NDArray[np.float32] | None
    certified: float

    def score(self, name: str) -> NDArray[np.float64]:
        """Return precision or recall (variant, sample, layer); 0 where the denominator is, NaN without captions."""
        numerator, denominator = SCORES[name]
        counted = self.counts[numerator]
        of = self.references[:, np.newaxis] if denominator == "references" else self.counts[denominator]
        ratio = np.divide(counted, of, out=np.zeros(counted.shape), where=of > 0)
        ratio[:, self.references == UNKNOWN] = np.nan
        return ratio

    @property
    def nothing_decoded(self) -> NDArray[np.bool_]:
        """(variant, sample, layer); where precision is 0 because no word was decoded."""
        return self.counts["decoded"] == 0

    @property
    def nothing_referred(self) -> NDArray[np.bool_]:
        """(sample); where recall is 0 because the captions hold stop words only."""
        return self.references == 0


def analyze_store(store: Store, tasks: Sequence[LensTask], *, resources: Resources, kept: KeptParts) -> LogitLens:
    """Compute LogitLens of one store.

    Parameters
    ----------
    store : Store
    tasks : sequence of LensTask
        Of `logit_lens_plan.plan_tasks`.
    resources : Resources
    kept : KeptParts
        Finished parts of an earlier, broken-off call are taken from there, and new ones put there.

    Raises
    ------
    StrataError
        A state is not finite, or the store's tables do not fit each other.
    """
    try:
        finish_parts(_WORK, store.parts, tasks, resources, kept)
    finally:
        forget_model()
    summaries, certified, decoded = [], 0, 0
    for part in load_parts(_WORK, store.parts, tasks, kept):
        certified += int(part.pieces.certified.sum())
        decoded += part.pieces.token_id[:, :, 0].size
        summaries.append(part._replace(pieces=_NO_PIECES))
    counts = np.concatenate([own.counts for own in summaries], axis=2)
    return LogitLens(
        samples=store.samples[list(SAMPLE_COLUMNS)],
        layers=np.array(tasks[0].layers, np.int32),
        block_count=store.block_count,
        source=tasks[0].source,
        topk=tasks[0].topk,
        counts=dict(zip(COUNTS, counts, strict=True)),
        references=np.concatenate([own.references for own in summaries]),
        agreement=np.concatenate([own.agreement for own in summaries]),
        image_tokens=np.concatenate([own.image_tokens for own in summaries]),
        trajectory=np.concatenate([own.trajectory for own in summaries], axis=2) if tasks[0].trajectory else None,
        certified=certified / decoded if tasks[0].source == "hidden_states" and decoded else np.nan,
    )


def stored_pieces(parts: Sequence[Part], tasks: Sequence[LensTask], kept: KeptParts) -> Iterator[tuple[Part, Pieces]]:
    """Yield parts with their pieces, one at a time; only after `analyze_store`."""
    for part, found in zip(parts, load_parts(_WORK, parts, tasks, kept), strict=True):
        yield part, found.pieces


def _to_arrays(result: PartLens) -> Arrays:
    pieces, *others = result
    return {**pieces._asdict(), **dict(zip(PartLens._fields[1:], others, strict=True))}


def _from_arrays(arrays: Arrays) -> PartLens:
    pieces = Pieces(**{name: arrays[name] for name in Pieces._fields})
    return PartLens(pieces, **{name: arrays[name] for name in PartLens._fields[1:]})


_WORK: PartWork[LensTask, PartLens] = PartWork("logit-lens", part_lens, _to_arrays, _from_arrays)
