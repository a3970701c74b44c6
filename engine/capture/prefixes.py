"""The shared prefixes of some images, run once: their keys and values, and what is captured of them, on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.batch import BatchItem, Run, collate
from engine.capture.pass_rows import PassRows
from engine.capture.prefix_cache import PrefixCache
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.models.load import LoadedModel
from engine.vocabulary import ROLE_CODES

__all__ = ["Prefixes", "capture_prefixes", "prefix_runs"]


class Prefixes(NamedTuple):
    """What one forward pass over prefixes leaves.

    Attributes
    ----------
    runs
        One per image, the beginning of its first sample.
    number
        Number of an image's run, by number of the image.
    mask
        (prefix, position) int64, 1 where there is no padding.
    positions
        (prefix, slot) int64: positions whose attention was captured for a query of any sample; −1 where there are
        fewer.
    cache
        Keys and values.
    rows
        What was captured.
    norms
        Length of every state, (layer, row) float32 on the host.
    """

    runs: tuple[Run, ...]
    number: dict[int, int]
    mask: torch.Tensor
    positions: np.ndarray
    cache: PrefixCache
    rows: PassRows
    norms: torch.Tensor

    def slots(self, items: Sequence[BatchItem], queries: np.ndarray) -> np.ndarray:
        """Find the slots of samples' queries.

        Parameters
        ----------
        items
            The samples.
        queries
            (sample, query) positions in the sample's sequence.

        Returns
        -------
        ndarray
            (sample, query) int64; −1 where a query is behind the prefix, or missing.
        """
        of_sample = self.positions[[self.number[item.image] for item in items]]
        same = (of_sample[:, None, :] == queries[:, :, None]) & (queries[:, :, None] >= 0)
        return np.where(same.any(axis=2), same.argmax(axis=2), -1) if same.shape[2] else np.full(queries.shape, -1)


def prefix_runs(items: Sequence[BatchItem]) -> tuple[Run, ...] | None:
    """Say what can be run once for all samples of an image: pure.

    Parameters
    ----------
    items
        All samples of some images.

    Returns
    -------
    tuple of Run or None
        The prefix of each image without its last position where a sample has nothing behind it; None where an image
        is alone with its prompt, or its tokens are not all within the prefix.
    """
    first: dict[int, BatchItem] = {}
    shortest: dict[int, int] = {}
    for item in items:
        first.setdefault(item.image, item)
        shortest[item.image] = min(len(item.layout), shortest.get(item.image, len(item.layout)))
    runs = tuple(Run(item, 0, min(item.prefix, shortest[image] - 1)) for image, item in first.items())
    whole = all((run.item.layout.role[run.stop :] != ROLE_CODES["image"]).all() and run.stop > 0 for run in runs)
    return runs if whole else None


@torch.inference_mode()
def capture_prefixes(loaded: LoadedModel, items: Sequence[BatchItem], probe: Probe, *, pad_id: int) -> Prefixes | None:
    """Run the shared prefixes of images once.

    Parameters
    ----------
    loaded
        The model.
    items
        All samples of some images.
    probe
        What to capture.
    pad_id
        Token id of padding.

    Returns
    -------
    Prefixes or None
        None where these samples must be run in full.
    """
    runs = prefix_runs(items)
    if runs is None:
        return None
    number = {run.item.image: index for index, run in enumerate(runs)}
    positions = _positions(runs, items, probe, number)
    inputs = collate(runs, pad_id=pad_id)
    wanted = np.concatenate([run.item.wanted[: run.stop] for run in runs])
    rows = PassRows(loaded.language, probe, runs, inputs["attention_mask"], past=0, queries=positions, wanted=wanted)
    cache = PrefixCache(loaded.language.config)
    rows.run(loaded, inputs, cache.recorder())
    return Prefixes(runs, number, inputs["attention_mask"], positions, cache, rows, rows.norms())


def _positions(runs: Sequence[Run], items: Sequence[BatchItem], probe: Probe, number: dict[int, int]) -> np.ndarray:
    """Collect what the samples of each image ask for within its prefix, (prefix, slot) int64."""
    asked: list[set[int]] = [set() for _ in runs]
    for item in items:
        prefix = number[item.image]
        positions = query_positions(item.layout.role, probe.queries).tolist()
        asked[prefix].update(position for position in positions if 0 <= position < runs[prefix].stop)
    slots = np.full((len(runs), max(map(len, asked))), -1, dtype=np.int64)
    for row, found in zip(slots, asked, strict=True):
        row[: len(found)] = sorted(found)
    return slots
