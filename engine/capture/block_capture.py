"""What is kept of the blocks in one forward pass: attention rows, norms, attention per role, outputs of their halves.

Rows are cut to the samples' own positions as soon as they are computed, so padding never leaves the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.capture.attention_calls import attention_calls
from engine.capture.attention_rows import (
    AttentionCall,
    query_blocks,
    softmax_rows,
    summed_norms,
    value_norms,
    visible_keys,
)
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.capture.rows import OnDevices, select_rows
from engine.errors import StrataError
from engine.models.load import LanguageModel
from engine.vocabulary import ROLES

__all__ = ["KEY_TENSORS", "TOKEN_TENSORS", "BlockCollector", "BlockRows"]

KEY_TENSORS = ("attention", "attention_norm")
TOKEN_TENSORS = ("value_norm", "attention_mass", "attention_output", "mlp_output")

_HALVES = {"attention_output": "self_attn", "mlp_output": "mlp"}


class BlockRows(NamedTuple):
    """Rows of a batch's usable samples, on the host, by name, one tensor per block of which the array is kept.

    Attributes
    ----------
    key
        ``attention`` (row, head, query), ``attention_norm`` (row, query), float32: a row per position of every sample;
        NaN where a sample lacks a query.
    token
        ``value_norm`` (row, head), ``attention_mass`` (row, head, source role), float32; ``attention_output``,
        ``mlp_output`` (row, dim) in the dtype of the model: a row per token of which the array is kept.
    """

    key: Mapping[str, list[torch.Tensor]]
    token: Mapping[str, list[torch.Tensor]]


class BlockCollector:
    """Turns what the blocks do into kept rows, on the device they are on.

    Parameters
    ----------
    language
        The language model.
    probe
        What to keep.
    roles
        Per sample the (token,) role codes of its sequence.
    attention_mask
        (sample, position), 1 where there is no padding.
    """

    def __init__(
        self, language: LanguageModel, probe: Probe, roles: Sequence[np.ndarray], attention_mask: torch.Tensor
    ) -> None:
        self._language = language
        self._probe = probe
        self._role = np.concatenate(roles)
        sample, place = attention_mask.nonzero(as_tuple=True)
        self._sample, self._place = OnDevices(sample), OnDevices(place)
        self._role_of_key = OnDevices(_one_hot_roles(roles, attention_mask))
        own = torch.from_numpy(np.stack([query_positions(role, probe.queries) for role in roles])).long()
        padding = attention_mask.shape[1] - attention_mask.sum(dim=1)
        self._queries = OnDevices(own.clamp(min=0) + padding[:, None])
        self._missing = OnDevices((own < 0)[sample])
        self._any_missing = bool((own < 0).any())
        self._visible: dict[tuple[object, ...], tuple[torch.Tensor | None, list[torch.Tensor]]] = {}
        self._rows: dict[str, dict[int, torch.Tensor]] = {}
        self._finite: dict[str, dict[int, torch.Tensor]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the blocks of every forward pass inside the context."""
        probe, language = self._probe, self._language
        with ExitStack() as stack:
            if probe.attention or probe.mass:
                stack.enter_context(attention_calls(language, probe.attended_blocks, self._attend))
            for name, half in _HALVES.items():
                if getattr(probe, name):
                    for block in probe.blocks_of(name):
                        handle = _half(language.blocks[block - 1], half).register_forward_hook(self._hook(name, block))
                        stack.callback(handle.remove)
            yield

    def problems(self, lengths: Sequence[int], hint: str) -> list[str | None]:
        """Name per sample the first value that is not finite.

        Raises
        ------
        StrataError
            Where a block was never heard.
        """
        found: list[str | None] = [None] * len(lengths)
        for block in self._probe.blocks:
            for name in self._names_of(block):
                if block not in self._finite.get(name, {}):
                    raise StrataError(
                        f"{type(self._language.blocks[block - 1]).__name__} {block} does not attend through "
                        "transformers' AttentionInterface, so its attention cannot be read: leave attention and "
                        "attention-mass out of --capture."
                    )
                for sample, finite in enumerate(self._finite[name][block].cpu().split(list(lengths))):
                    if found[sample] is None and not finite.all():
                        position = int((~finite).nonzero()[0])
                        found[sample] = f"{name} of block {block}, position {position} holds NaN or Inf{hint}"
        return found

    def finish(
        self, usable_rows: np.ndarray, kept_rows: np.ndarray, to_host: Callable[[torch.Tensor], torch.Tensor]
    ) -> BlockRows:
        """Bring rows to the host.

        Parameters
        ----------
        usable_rows, kept_rows
            (row,) bool over all positions of all samples: those of usable samples, and those whose tokens are stored.
        to_host
            Brings a tensor to the host.
        """
        probe = self._probe

        def taken(name: str, chosen: np.ndarray) -> list[torch.Tensor]:
            return [to_host(select_rows(self._rows[name][block], chosen)) for block in probe.blocks_of(name)]

        names = self._names()
        return BlockRows(
            key={name: taken(name, usable_rows) for name in KEY_TENSORS if name in names},
            token={
                name: taken(name, kept_rows & probe.keeps(name, self._role)) for name in TOKEN_TENSORS if name in names
            },
        )

    def _names(self) -> list[str]:
        probe = self._probe
        rows = ["attention", "attention_norm", "value_norm"] if probe.attention else []
        mass = ["attention_mass"] if probe.mass else []
        return [*rows, *mass, *(name for name in _HALVES if getattr(probe, name))]

    def _names_of(self, block: int) -> list[str]:
        return [name for name in self._names() if block in self._probe.blocks_of(name)]

    def _keep(self, name: str, block: int, rows: torch.Tensor) -> None:
        self._rows.setdefault(name, {})[block] = rows
        self._finite.setdefault(name, {})[block] = torch.isfinite(rows).flatten(1).all(dim=1)

    def _hook(self, name: str, block: int) -> Any:
        def hook(_module: torch.nn.Module, _arguments: object, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._keep(name, block, states[self._sample.at(states.device), self._place.at(states.device)])

        return hook

    def _attend(self, call: AttentionCall) -> None:
        names = self._names_of(call.block)
        if "attention" in names:
            self._keep_rows(call)
        if "attention_mass" in names:
            self._keep("attention_mass", call.block, self._mass(call))

    def _keep_rows(self, call: AttentionCall) -> None:
        device = call.key.device
        sample, place = self._sample.at(device), self._place.at(device)
        weights = softmax_rows(call, self._queries.at(device))[sample, :, :, place]
        values = call.value[sample, :, place]
        visible = self._visible_rows(call)
        norms = [summed_norms(call.module, values, weights[..., query], rows) for query, rows in enumerate(visible)]
        self._keep("attention", call.block, weights)
        self._keep("attention_norm", call.block, torch.stack(norms, dim=1))
        self._keep("value_norm", call.block, value_norms(call.module, values, weights.shape[1]))
        if self._any_missing:
            missing = self._missing.at(device)
            self._rows["attention"][call.block].masked_fill_(missing[:, None], torch.nan)
            self._rows["attention_norm"][call.block].masked_fill_(missing, torch.nan)

    def _visible_rows(self, call: AttentionCall) -> list[torch.Tensor]:
        """Per query the rows whose weight is not 0 by the mask; found once per mask, because that stops the host."""
        device = call.key.device
        case = (id(call.mask), device, call.causal, call.window)
        if case not in self._visible:
            visible = visible_keys(call, self._queries.at(device))
            rows = visible[self._sample.at(device), :, self._place.at(device)]
            # The mask is kept with them, so that no other can get its identity.
            self._visible[case] = (call.mask, [rows[:, query].nonzero().squeeze(1) for query in range(rows.shape[1])])
        return self._visible[case][1]

    def _mass(self, call: AttentionCall) -> torch.Tensor:
        """Sum the attention of every position to each role, (row, head, source role) float32."""
        keys = call.key.float()
        roles = self._role_of_key.at(keys.device)[:, None]
        blocks = [softmax_rows(call, positions, keys) @ roles for positions in query_blocks(call)]
        mass = torch.cat(blocks, dim=2)
        return mass[self._sample.at(keys.device), :, self._place.at(keys.device)]


def _half(block: torch.nn.Module, name: str) -> torch.nn.Module:
    half = getattr(block, name, None)
    if half is None:
        raise StrataError(
            f"{type(block).__name__} has no module {name}, whose output is asked for: leave attention-output and "
            "mlp-output out of --capture."
        )
    return half


def _one_hot_roles(roles: Sequence[np.ndarray], attention_mask: torch.Tensor) -> torch.Tensor:
    """(sample, position, role) float32: 1 at the role of each position, nothing at padding."""
    one_hot = torch.zeros(*attention_mask.shape, len(ROLES))
    sample, place = attention_mask.nonzero(as_tuple=True)
    one_hot[sample, place, torch.from_numpy(np.concatenate(roles)).long()] = 1.0
    return one_hot
