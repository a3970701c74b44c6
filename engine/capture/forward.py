"""One forward pass over a padded batch, and what is kept of it.

Whole language sequences are left-padded with an attention mask and explicit positions; the text of a side encoder is
right-padded, because its positions count from its first token. Padding is dropped as soon as a layer's states leave the
hook, so it never reaches the host. Nor do the states of a sample that turns out to be unusable: what is kept is decided
when the pass is over. The shared prefix of an image comes with its first usable sample, because one NaN makes every
position of its sample NaN, earlier ones too (attention adds 0 · NaN). States wait for that on the device that computed
them, and go through the lens only then: each stored token once, however many samples of the batch share it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.block_capture import BlockCollector, BlockRows
from engine.capture.hooks import residual_hooks
from engine.capture.lens import Lens, Pieces
from engine.capture.probe import Probe
from engine.capture.rows import OnDevices, select_rows
from engine.models.final_norm import normed_states
from engine.models.load import LoadedModel
from engine.models.tokens import TokenLayout
from engine.vocabulary import ROLES

__all__ = ["BatchCapture", "BatchItem", "Pooled", "capture_batch", "collate"]


class BatchItem(NamedTuple):
    """One sample of a batch.

    Attributes
    ----------
    image
        Number of its image within the part.
    side_text
        Inputs of a text encoder beside the language model by name, (token,) int64 each; empty where there is none.
    wanted
        (token,) bool: the tokens that are stored, those of all tensors together.
    prefix
        Leading tokens that it shares with its image's other samples.
    """

    sample_id: str
    image: int
    layout: TokenLayout
    pixel_values: torch.Tensor
    side_text: Mapping[str, np.ndarray]
    wanted: np.ndarray
    prefix: int


class Pooled(NamedTuple):
    """Pooled states of a batch's usable samples, float32, NaN where a sample has no token of a role.

    Attributes
    ----------
    unit_mean, mean
        (layer, role, sample, dim): mean of unit vectors, mean of states.
    normed_unit_mean
        (role, sample, dim): mean of unit vectors of layer L after the final norm; None where L is not captured.
    token_count
        (role, sample) int32.
    """

    unit_mean: np.ndarray
    mean: np.ndarray
    normed_unit_mean: np.ndarray | None
    token_count: np.ndarray


@dataclass(frozen=True)
class BatchCapture:
    """What one forward pass leaves.

    Attributes
    ----------
    states
        Per captured layer the kept rows of all usable samples, (row, dim) on the host; empty without ``residual``. Of
        tokens whose role the probe's ``tensor_roles`` leave out there are none.
    pieces
        Per layer of the lens the best pieces of the kept rows of all usable samples, on the host; of the roles of the
        lens. Empty without it.
    pooled
        Pooled states of the usable samples, or None.
    block_rows
        What is kept of the blocks, or None.
    kept
        Per sample (token,) bool: the stored tokens; ``states``, ``pieces`` and each of ``block_rows.token`` have rows
        of those of them that they are kept of. The shared prefix of an image is kept with its first usable sample only,
        and nothing of an unusable one.
    problems
        Per sample a reason why its values are unusable, or None.
    """

    states: list[torch.Tensor]
    pieces: list[Pieces]
    pooled: Pooled | None
    block_rows: BlockRows | None
    kept: tuple[np.ndarray, ...]
    problems: tuple[str | None, ...]


def collate(items: Sequence[BatchItem], *, pad_id: int, padding: int = 0) -> dict[str, torch.Tensor]:
    """Pad a batch.

    Parameters
    ----------
    items
        The samples.
    pad_id
        Token id of padding.
    padding
        Positions of padding before the longest sample too.

    Returns
    -------
    dict
        input_ids, attention_mask, position_ids (sample, position), left-padded; pixel_values; the inputs of a side
        encoder (sample, side position), right-padded with zeros.
    """
    length = padding + max(len(item.layout) for item in items)
    input_ids = torch.full((len(items), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(items), length), dtype=torch.long)
    for row, item in enumerate(items):
        input_ids[row, length - len(item.layout) :] = torch.from_numpy(item.layout.token_id.astype(np.int64))
        attention_mask[row, length - len(item.layout) :] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "pixel_values": torch.cat([item.pixel_values for item in items]),
        **{name: _right_padded([item.side_text[name] for item in items]) for name in items[0].side_text},
    }


def _right_padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return padded


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
    """
    inputs = collate(items, pad_id=pad_id, padding=padding)
    collector = _Collector(loaded, items, probe, inputs["attention_mask"], images_kept, lens=lens)
    inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, loaded.dtype))
    with collector.listening():
        loaded.model(**inputs, use_cache=False, logits_to_keep=1)
    return collector.finish(to_host)


class _Collector:
    """Turns hooked states into kept rows and pooled means, on the device the states are on."""

    def __init__(
        self,
        loaded: LoadedModel,
        items: Sequence[BatchItem],
        probe: Probe,
        attention_mask: torch.Tensor,
        images_kept: Collection[int],
        *,
        lens: Lens | None,
    ) -> None:
        self._language = loaded.language
        self._lens = lens
        self._items = items
        self._probe = probe
        self._real = OnDevices(attention_mask.flatten().nonzero().squeeze(1))
        self._images_kept = images_kept
        roles = [item.layout.role for item in items]
        role = np.concatenate(roles)
        self._of_states = probe.keeps("hidden_states", role) & probe.residual
        self._of_lens = probe.keeps("lens_logit", role) & bool(probe.lens_layers)
        candidates = np.concatenate(_kept_tokens(items, [None] * len(items), images_kept, once=False))
        self._candidates = candidates & (self._of_states | self._of_lens)
        chosen = np.flatnonzero(self._candidates)
        self._chosen = None if self._candidates.all() else OnDevices(torch.from_numpy(chosen))
        self._counts = torch.tensor(
            [[int((item.layout.role == role).sum()) for item in items] for role in range(len(ROLES))]
        )
        self._averaging = OnDevices(self._averaging_matrix()) if probe.pooled else None
        self._blocks = BlockCollector(loaded.language, probe, roles, attention_mask) if probe.of_blocks else None
        self._hint = "; try --dtype bfloat16 or float32" if loaded.dtype == "float16" else ""
        self._states: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._unit_means: list[torch.Tensor] = []
        self._means: list[torch.Tensor] = []
        self._normed: torch.Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to layers and blocks of the forward pass inside the context."""
        with (
            residual_hooks(self._language.blocks, self._probe.layers, self._receive),
            nullcontext() if self._blocks is None else self._blocks.listening(),
        ):
            yield

    def _receive(self, layer: int, states: torch.Tensor) -> None:
        """Keep the real rows of one layer's states (sample, position, dim)."""
        rows = states.reshape(-1, states.shape[-1]).index_select(0, self._real.at(states.device))
        if layer in self._probe.token_layers:
            chosen = self._chosen
            self._states.append(rows if chosen is None else rows.index_select(0, chosen.at(rows.device)))
        wide = rows.float()
        norms = torch.linalg.vector_norm(wide, dim=-1)
        self._norms.append(norms)
        if self._averaging is not None:
            self._pool(layer, wide, norms)

    def _pool(self, layer: int, wide: torch.Tensor, norms: torch.Tensor) -> None:
        """Average one layer's states (row, dim) float32, whose norms are (row,)."""
        assert self._averaging is not None
        averaging = self._averaging.at(wide.device)
        # One product serves the whole batch, and 0 · NaN is NaN: an unusable row must not reach the other samples.
        usable = torch.isfinite(norms) & (norms > 0)
        wide, norms = wide.where(usable[:, None], 1.0), norms.where(usable, 1.0)
        self._means.append(averaging @ wide)
        self._unit_means.append((averaging / norms) @ wide)
        if layer == self._probe.block_count:
            normed = normed_states(self._language.final_norm, wide).to(wide.device)
            self._normed = (averaging / torch.linalg.vector_norm(normed, dim=-1)) @ normed

    def finish(self, to_host: Callable[[torch.Tensor], torch.Tensor]) -> BatchCapture:
        """Look for unusable states and bring the rest to the host."""
        lengths = [len(item.layout) for item in self._items]
        norms = torch.cat([torch.empty(0, sum(lengths)), *(norm.cpu()[None] for norm in self._norms)])
        found = [None] * len(lengths) if self._blocks is None else self._blocks.problems(lengths, self._hint)
        problems, pieces = self._decoded(
            [self._problem(part) or other for part, other in zip(norms.split(lengths, dim=1), found, strict=True)]
        )
        kept = _kept_tokens(self._items, problems, self._images_kept, once=True)
        rows = np.concatenate(kept)
        chosen = (rows & self._of_states)[self._candidates]
        usable = np.array([problem is None for problem in problems])
        return BatchCapture(
            states=[to_host(select_rows(states, chosen)) for states in self._states if self._probe.residual],
            pieces=[Pieces(*map(to_host, found)) for found in pieces],
            pooled=self._pooled(usable, to_host) if self._probe.pooled else None,
            block_rows=None if self._blocks is None else self._blocks.finish(np.repeat(usable, lengths), rows, to_host),
            kept=kept,
            problems=problems,
        )

    def _decoded(self, problems: list[str | None]) -> tuple[tuple[str | None, ...], list[Pieces]]:
        """Find the pieces of the kept rows, and add the problems of samples whose logits are not finite.

        Without such a sample the prefix of its image comes with the next one, whose logits are looked at in turn.
        """
        layers = self._probe.lens_layers
        held = [states for layer, states in zip(self._probe.token_layers, self._states, strict=True) if layer in layers]
        while True:
            kept = _kept_tokens(self._items, problems, self._images_kept, once=True)
            rows = np.concatenate(kept) & self._of_lens
            pieces = [self._top(states, rows) for states in held]
            finite = np.ones((len(layers), len(rows)), bool)
            for of_layer, found in zip(finite, pieces, strict=True):
                of_layer[rows] = torch.isfinite(found.logit).all(dim=1).cpu().numpy()
            if finite.all():
                return tuple(problems), pieces
            ends = np.cumsum([len(item.layout) for item in self._items])[:-1]
            for sample, part in enumerate(np.split(finite, ends, axis=1)):
                if not part.all():
                    index, position = np.argwhere(~part)[0].tolist()
                    where = f"lens_logit of layer {layers[index]}, position {position}"
                    problems[sample] = f"{where} holds NaN or Inf{self._hint}"

    def _top(self, states: torch.Tensor, rows: np.ndarray) -> Pieces:
        """Decode rows (row,) bool of all positions, out of held states (candidate, dim)."""
        assert self._lens is not None, "a probe with layers of the lens comes with a lens"
        return self._lens.top(select_rows(states, rows[self._candidates]))

    def _averaging_matrix(self) -> torch.Tensor:
        """(role × sample, row) float32: row r of group g weighs 1/|g|, so that one product gives all means."""
        group = torch.from_numpy(
            np.concatenate([item.layout.role * len(self._items) + index for index, item in enumerate(self._items)])
        )
        matrix = torch.zeros(self._counts.numel(), len(group))
        matrix[group, torch.arange(len(group))] = 1.0
        return matrix / self._counts.flatten().clamp(min=1)[:, None]

    def _pooled(self, usable: np.ndarray, to_host: Callable[[torch.Tensor], torch.Tensor]) -> Pooled:
        absent = OnDevices(self._counts == 0)
        chosen = OnDevices(torch.from_numpy(np.flatnonzero(usable)))

        def shaped(layers: Sequence[torch.Tensor]) -> np.ndarray:
            """Lay out means (role × sample, dim) of layers as (layer, role, usable sample, dim)."""
            device = layers[0].device
            grouped = torch.stack([means.to(device).view(*self._counts.shape, -1) for means in layers])
            grouped.masked_fill_(absent.at(device)[..., None], torch.nan)
            return to_host(grouped.index_select(2, chosen.at(device))).numpy()

        return Pooled(
            unit_mean=shaped(self._unit_means),
            mean=shaped(self._means),
            normed_unit_mean=None if self._normed is None else shaped([self._normed])[0],
            token_count=self._counts.numpy().astype(np.int32)[:, usable],
        )

    def _problem(self, norms: torch.Tensor) -> str | None:
        """Name the first unusable state of one sample; norms is (layer, position)."""
        bad = ~torch.isfinite(norms)
        if bad.any():
            index, position = bad.nonzero()[0].tolist()
            return f"layer {self._probe.layers[index]}, position {position} holds NaN or Inf{self._hint}"
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
