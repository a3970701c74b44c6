"""What one forward pass computes of layers and blocks, kept on the device as long as it may be stored.

Padding is dropped as soon as a layer's states leave the hook, so it never reaches the host.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from inspect import signature

import numpy as np
import torch
from transformers import Cache

from engine.capture.batch import Run
from engine.capture.block_capture import BlockCollector
from engine.capture.hooks import residual_hooks
from engine.capture.pooling import RoleSums
from engine.capture.probe import Probe
from engine.capture.rows import OnDevices
from engine.models.load import LanguageModel, LoadedModel

__all__ = ["PassRows", "holds_pieces", "holds_states"]


class PassRows:
    """Turns hooked states of one pass into rows, norms and sums, on the device the states are on.

    Parameters
    ----------
    language
        The language model.
    probe
        What to capture.
    runs
        What the pass runs.
    attention_mask
        (run, past position + position), 1 where there is no padding.
    past
        Number of past positions, padding included.
    queries
        (run, query) int64 positions in the run's sequence whose attention is kept; −1 where the run has no such.
    wanted
        (row,) bool: rows that may be stored.

    Attributes
    ----------
    held
        (row,) bool: rows whose states are held, of the wanted ones those that an array of layers keeps.
    states
        Per layer of the token axis (held row, dim).
    sums
        Sums per role, or None.
    blocks
        What is kept of the blocks, or None.
    """

    def __init__(
        self,
        language: LanguageModel,
        probe: Probe,
        runs: Sequence[Run],
        attention_mask: torch.Tensor,
        *,
        past: int,
        queries: np.ndarray,
        wanted: np.ndarray,
    ) -> None:
        self._language = language
        self._probe = probe
        self._real = OnDevices(attention_mask[:, past:].flatten().nonzero().squeeze(1))
        role = np.concatenate([run.role for run in runs])
        self.held = wanted & (holds_states(probe, role) | holds_pieces(probe, role))
        held = np.flatnonzero(self.held)
        self._held = None if self.held.all() else OnDevices(torch.from_numpy(held))
        self._norms: list[torch.Tensor] = []
        self.states: list[torch.Tensor] = []
        self.sums = RoleSums([run.role for run in runs]) if probe.pooled else None
        self.blocks: BlockCollector | None = None
        if probe.of_blocks:
            self.blocks = BlockCollector(language, probe, runs, attention_mask, past=past, queries=queries)

    def run(self, loaded: LoadedModel, inputs: Mapping[str, torch.Tensor], cache: Cache | None = None) -> None:
        """Run the model and listen to its layers and blocks.

        Parameters
        ----------
        loaded
            The model.
        inputs
            What :func:`engine.capture.batch.collate` made of the runs.
        cache
            Takes up keys and values, or has those of what precedes the runs; None where neither is wanted.
        """
        inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, loaded.dtype))
        cached = {} if cache is None else {_cache_argument(loaded): cache}
        with (
            residual_hooks(self._language.blocks, self._probe.layers, self._receive),
            nullcontext() if self.blocks is None else self.blocks.listening(),
        ):
            loaded.model(**inputs, **cached, use_cache=cache is not None, logits_to_keep=1)

    def norms(self) -> torch.Tensor:
        """Length of every state, (layer, row) float32 on the host."""
        return torch.cat([torch.empty(0, len(self.held)), *(norms.cpu()[None] for norms in self._norms)])

    def _receive(self, layer: int, states: torch.Tensor) -> None:
        """Keep the real rows of one layer's states (run, position, dim)."""
        rows = states.reshape(-1, states.shape[-1]).index_select(0, self._real.at(states.device))
        if layer in self._probe.token_layers:
            held = self._held
            self.states.append(rows if held is None else rows.index_select(0, held.at(rows.device)))
        wide = rows.float()
        norms = torch.linalg.vector_norm(wide, dim=-1)
        self._norms.append(norms)
        if self.sums is not None:
            self.sums.add(wide, norms, last_of=self._language if layer == self._probe.block_count else None)


def _cache_argument(loaded: LoadedModel) -> str:
    """Tell what the model calls its cache: transformers renamed it in release 5.24, class by class."""
    return "cache" if "cache" in signature(loaded.model.forward).parameters else "past_key_values"


def holds_states(probe: Probe, role: np.ndarray) -> np.ndarray:
    """Tell of which tokens hidden states are stored, (row,) bool, from their (row,) role codes."""
    return probe.keeps("hidden_states", role) & probe.residual


def holds_pieces(probe: Probe, role: np.ndarray) -> np.ndarray:
    """Tell of which tokens pieces of the lens are stored, (row,) bool, from their (row,) role codes."""
    return probe.keeps("lens_logit", role) & bool(probe.lens_layers)
