"""What one forward pass computes of the blocks: attention rows, norms, attention per role, outputs of their halves.

Rows are cut to the runs' own positions, and to the keys that they can see, as soon as they are computed: padding never
leaves the device.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

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
from engine.capture.batch import Run
from engine.capture.probe import Probe
from engine.capture.rows import OnDevices
from engine.errors import StrataError
from engine.models.load import LanguageModel
from engine.vocabulary import ROLES

__all__ = ["BlockCollector"]

_HALVES = {"attention_output": "self_attn", "mlp_output": "mlp"}
_MOST_MASKS = 4  # kept at a time: of a model's kinds of blocks, full and sliding, on two devices


class BlockCollector:
    """Turns what the blocks do into rows, on the device they are on.

    Parameters
    ----------
    language
        The language model.
    probe
        What to keep.
    runs
        What the pass runs.
    attention_mask
        (run, past position + position), 1 where there is no padding.
    past
        Number of past positions, padding included.
    queries
        (run, query) int64 positions in the run's sequence; −1 where the run has no such. The row of such a query is
        NaN.

    Attributes
    ----------
    rows, finite
        By name of the array and number of the block what is kept, and (row,) bool: which rows hold finite numbers
        alone. ``attention`` (row, head, query) and ``attention_norm`` (row, query), float32, have a row per key of each
        run, past ones too; ``value_norm`` (row, head), ``attention_mass`` (row, head, source role), float32, and
        ``attention_output``, ``mlp_output`` (row, dim) one per position of each run.
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
    ) -> None:
        self._language = language
        self._probe = probe
        run, place = attention_mask[:, past:].nonzero(as_tuple=True)
        self._run, self._place = OnDevices(run), OnDevices(place)
        key_run, key_place = attention_mask.nonzero(as_tuple=True)
        self._key_run, self._key_place = OnDevices(key_run), OnDevices(key_place)
        self._own_keys = OnDevices((key_place >= past).nonzero().squeeze(1)) if past else None
        self._role_of_key = OnDevices(
            _one_hot_roles([run.item.layout.role[: run.stop] for run in runs], attention_mask)
        )
        own = torch.from_numpy(queries).long()
        start, stop = (torch.tensor([getattr(run, end) for run in runs])[:, None] for end in ("start", "stop"))
        # Columns of the padded pass; a query that is missing looks at the run's first position, which is no padding.
        self._queries = OnDevices(own.where(own >= 0, start) + attention_mask.shape[1] - past - stop)
        self._missing = OnDevices((own < 0)[key_run])
        self._any_missing = bool((own < 0).any())
        self._visible: dict[tuple[object, ...], tuple[torch.Tensor | None, list[torch.Tensor]]] = {}
        self.rows: dict[str, dict[int, torch.Tensor]] = {}
        self.finite: dict[str, dict[int, torch.Tensor]] = {}

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

    def _keep(self, name: str, block: int, rows: torch.Tensor) -> None:
        self.rows.setdefault(name, {})[block] = rows
        self.finite.setdefault(name, {})[block] = torch.isfinite(rows).flatten(1).all(dim=1)

    def _hook(self, name: str, block: int) -> Any:
        def hook(_module: torch.nn.Module, _arguments: object, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._keep(name, block, states[self._run.at(states.device), self._place.at(states.device)])

        return hook

    def _attend(self, call: AttentionCall) -> None:
        if self._probe.attention and call.block in self._probe.blocks_of("attention"):
            self._keep_rows(call)
        if self._probe.mass and call.block in self._probe.blocks_of("attention_mass"):
            self._keep("attention_mass", call.block, self._mass(call))

    def _keep_rows(self, call: AttentionCall) -> None:
        device = call.key.device
        run, place = self._key_run.at(device), self._key_place.at(device)
        weights = softmax_rows(call, self._queries.at(device))[run, :, :, place]
        values = call.value[run, :, place]
        visible = self._visible_rows(call)
        norms = [summed_norms(call.module, values, weights[..., query], rows) for query, rows in enumerate(visible)]
        own = values if self._own_keys is None else values.index_select(0, self._own_keys.at(device))
        self._keep("attention", call.block, weights)
        self._keep("attention_norm", call.block, torch.stack(norms, dim=1) if norms else weights[:, 0])
        self._keep("value_norm", call.block, value_norms(call.module, own, weights.shape[1]))
        if self._any_missing:
            missing = self._missing.at(device)
            self.rows["attention"][call.block].masked_fill_(missing[:, None], torch.nan)
            self.rows["attention_norm"][call.block].masked_fill_(missing, torch.nan)

    def _visible_rows(self, call: AttentionCall) -> list[torch.Tensor]:
        """Per query the rows whose weight is not 0 by the mask; found once per mask, because that stops the host.

        Spread over several GPUs, each block off the first one gets a mask of its own.
        """
        device = call.key.device
        case = (id(call.mask), device, call.causal, call.window)
        if case not in self._visible:
            if len(self._visible) == _MOST_MASKS:
                del self._visible[next(iter(self._visible))]
            visible = visible_keys(call, self._queries.at(device))
            rows = visible[self._key_run.at(device), :, self._key_place.at(device)] & ~self._missing.at(device)
            # The mask is kept with them, so that no other can get its identity.
            self._visible[case] = (call.mask, [rows[:, query].nonzero().squeeze(1) for query in range(rows.shape[1])])
        return self._visible[case][1]

    def _mass(self, call: AttentionCall) -> torch.Tensor:
        """Sum the attention of every position to each role, (row, head, source role) float32."""
        keys = call.key.float()
        roles = self._role_of_key.at(keys.device)[:, None]
        blocks = [softmax_rows(call, positions, keys) @ roles for positions in query_blocks(call)]
        mass = torch.cat(blocks, dim=2)
        return mass[self._run.at(keys.device), :, self._place.at(keys.device)]


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
