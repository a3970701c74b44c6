"""A forward pass over a padded batch, and what is kept of it.

Samples whose image has its prefix run already (:mod:`engine.capture.prefixes`) run from there on, others in full; what
is kept are rows of whole samples either way. The states of a sample that turns out to be unusable never reach the host:
what is kept is decided when the pass is over. The shared prefix of an image comes with its first usable sample, because
in a full pass one NaN makes every position of its sample NaN, earlier ones too (attention adds 0 · NaN). States wait
for that on the device that computed them, and go through the lens only then: each stored token once, however many
samples of the batch share it.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from engine.capture.batch import BatchCapture, BatchItem, Run, collate, whole_runs
from engine.capture.joined_blocks import JoinedBlocks
from engine.capture.lens import Lens, Pieces
from engine.capture.pass_rows import PassRows, holds_pieces, holds_states
from engine.capture.pooling import Pooled, RoleSums, pool
from engine.capture.prefixes import Prefixes
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.capture.row_places import Computed, Picking, RowPlaces
from engine.models.load import LoadedModel
from engine.store import LARGEST_NORM

__all__ = ["capture_batch"]

_TOO_LARGE = f"Inf, or values too large: their norm exceeds {LARGEST_NORM:.3g}, whose square float32 cannot hold"


@torch.inference_mode()
def capture_batch(
    loaded: LoadedModel,
    items: Sequence[BatchItem],
    probe: Probe,
    *,
    pad_id: int,
    lens: Lens | None = None,
    images_kept: Collection[int] = frozenset(),
    to_host: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.cpu,
    padding: int = 0,
    prefixes: Prefixes | None = None,
) -> BatchCapture:
    """Run the model once over a batch and keep what the probe asks for.

    Parameters
    ----------
    loaded
        The model.
    items
        The samples.
    probe
        What to capture.
    pad_id
        Token id of padding; its states are never looked at.
    lens
        Decodes states of the probe's ``lens_layers``; needed where there are such.
    images_kept
        Images whose shared prefix an earlier batch has kept.
    to_host
        Brings kept rows to the host; may return before their values are there.
    padding
        Positions of padding before the longest sample too.
    prefixes
        What was run of the samples' images before; None where the samples are run in full.
    """
    prefix_of = [] if prefixes is None else [prefixes.number[item.image] for item in items]
    if prefixes is None:
        runs, mask, cache = whole_runs(items), None, None
    else:
        starts = (prefixes.runs[number].stop for number in prefix_of)
        runs = tuple(Run(item, start, len(item.layout)) for item, start in zip(items, starts, strict=True))
        mask, cache = prefixes.mask[prefix_of], prefixes.cache.behind(prefix_of)
    places = RowPlaces(runs, () if prefixes is None else prefixes.runs, prefix_of)
    queries = np.stack([query_positions(item.layout.role, probe.queries) for item in items]).astype(np.int64)
    starts_at = np.array([run.start for run in runs])[:, None]
    candidates = np.concatenate(_kept_tokens(items, [None] * len(items), images_kept, once=False))
    inputs = collate(runs, pad_id=pad_id, padding=padding, past=mask)
    own = PassRows(
        loaded.language,
        probe,
        runs,
        inputs["attention_mask"],
        past=0 if mask is None else mask.shape[1],
        queries=np.where(queries >= starts_at, queries, -1),
        wanted=candidates[~places.in_prefix],
    )
    own.run(loaded, inputs, cache)
    blocks = None
    if own.blocks is not None:
        before = None if prefixes is None else prefixes.rows.blocks
        slots = np.full(queries.shape, -1) if prefixes is None else prefixes.slots(items, queries)
        blocks = JoinedBlocks(loaded.language, probe, places, own.blocks, before, slots)
    batch = _Batch(loaded, items, probe, images_kept, places, own, prefixes, blocks, lens)
    return batch.finish(to_host)


class _Batch:
    """What has been computed of a batch, until it is known what is kept of it."""

    def __init__(  # noqa: PLR0917 - what capture_batch has at hand
        self,
        loaded: LoadedModel,
        items: Sequence[BatchItem],
        probe: Probe,
        images_kept: Collection[int],
        places: RowPlaces,
        own: PassRows,
        prefixes: Prefixes | None,
        blocks: JoinedBlocks | None,
        lens: Lens | None,
    ) -> None:
        self._items = items
        self._probe = probe
        self._images_kept = images_kept
        self._places = places
        self._own = own
        self._prefixes = prefixes
        self._blocks = blocks
        self._lens = lens
        self._lengths = [len(item.layout) for item in items]
        self._role = np.concatenate([item.layout.role for item in items])
        self._hint = "; try --dtype bfloat16 or float32" if loaded.dtype == "float16" else ""

    def finish(self, to_host: Callable[[torch.Tensor], torch.Tensor]) -> BatchCapture:
        """Look for unusable states and bring the rest to the host."""
        probe = self._probe
        norms = self._places.gather(self._own.norms(), None if self._prefixes is None else self._prefixes.norms)
        found = [None] * len(self._items) if self._blocks is None else self._blocks.problems(self._lengths, self._hint)
        problems, pieces = self._decoded(
            [self._problem(part) or other for part, other in zip(norms.split(self._lengths, 1), found, strict=True)]
        )
        kept = _kept_tokens(self._items, problems, self._images_kept, once=True)
        rows = np.concatenate(kept)
        picking = self._picking(rows & holds_states(probe, self._role))
        usable = np.array([problem is None for problem in problems])
        return BatchCapture(
            states=[to_host(picking.rows(states)) for states in self._states() if probe.residual],
            pieces=[Pieces(*map(to_host, found)) for found in pieces],
            pooled=None if self._own.sums is None else self._pooled(self._own.sums, usable, to_host),
            block_rows=None
            if self._blocks is None
            else self._blocks.finish(np.repeat(usable, self._lengths), rows, self._role, to_host),
            kept=kept,
            problems=problems,
        )

    def _states(self) -> list[Computed]:
        """Held states of each layer of the token axis."""
        if self._prefixes is None:
            return [Computed(states, None) for states in self._own.states]
        return [Computed(*both) for both in zip(self._own.states, self._prefixes.rows.states, strict=True)]

    def _picking(self, chosen: np.ndarray) -> Picking:
        held = None if self._prefixes is None else self._prefixes.rows.held
        return Picking(self._places, chosen, own_held=self._own.held, prefix_held=held)

    def _pooled(self, own: RoleSums, usable: np.ndarray, to_host: Callable[[torch.Tensor], torch.Tensor]) -> Pooled:
        if self._prefixes is None:
            return pool(own, usable, to_host)
        prefix_of = [self._prefixes.number[item.image] for item in self._items]
        return pool(own, usable, to_host, prefixes=self._prefixes.rows.sums, prefix_of=prefix_of)

    def _decoded(self, problems: list[str | None]) -> tuple[tuple[str | None, ...], list[Pieces]]:
        """Find the pieces of the kept rows, and add the problems of samples whose logits are not finite.

        Without such a sample the prefix of its image comes with the next one, whose logits are looked at in turn.
        """
        layers = self._probe.lens_layers
        held = [
            states for layer, states in zip(self._probe.token_layers, self._states(), strict=True) if layer in layers
        ]
        while True:
            kept = _kept_tokens(self._items, problems, self._images_kept, once=True)
            rows = np.concatenate(kept) & holds_pieces(self._probe, self._role)
            picking = self._picking(rows)
            pieces = [self._top(picking.rows(states)) for states in held]
            finite = np.ones((len(layers), len(rows)), bool)
            for of_layer, found in zip(finite, pieces, strict=True):
                of_layer[rows] = torch.isfinite(found.logit).all(dim=1).cpu().numpy()
            if finite.all():
                return tuple(problems), pieces
            for sample, part in enumerate(np.split(finite, np.cumsum(self._lengths)[:-1], axis=1)):
                if not part.all():
                    index, position = np.argwhere(~part)[0].tolist()
                    where = f"lens_logit of layer {layers[index]}, position {position}"
                    problems[sample] = f"{where} holds NaN or Inf{self._hint}"

    def _top(self, states: torch.Tensor) -> Pieces:
        assert self._lens is not None, "a probe with layers of the lens comes with a lens"
        return self._lens.top(states)

    def _problem(self, norms: torch.Tensor) -> str | None:
        """Name the first unusable state of one sample; norms is (layer, position)."""
        bad = ~(norms <= LARGEST_NORM)
        if bad.any():
            index, position = bad.nonzero()[0].tolist()
            what = "NaN or Inf" if norms[index, position].isnan() else _TOO_LARGE
            return f"layer {self._probe.layers[index]}, position {position} holds {what}{self._hint}"
        if self._probe.pooled and (norms == 0).any():
            index, position = (norms == 0).nonzero()[0].tolist()
            return f"layer {self._probe.layers[index]}, position {position} is a zero vector, which has no direction"
        return None


def _kept_tokens(
    items: Sequence[BatchItem], problems: Sequence[str | None], images_kept: Collection[int], *, once: bool
) -> tuple[np.ndarray, ...]:
    """Per sample (token,) bool: which of its tokens are stored with it.

    A prefix is left out where ``images_kept`` has it, and, if ``once``, where an earlier sample of the batch brings it.
    """
    images = set(images_kept)
    kept = []
    for item, problem in zip(items, problems, strict=True):
        tokens = item.wanted & (problem is None)
        if item.image in images:
            tokens[: item.prefix] = False
        if once and problem is None:
            images.add(item.image)
        kept.append(tokens)
    return tuple(kept)
