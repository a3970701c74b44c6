"""What must hold before a run may trust captured attention, checked on the first image that can be read.

Listening must not change what the model computes, and the rows recomputed from the shown tensors must be those the
kernel used: Σ_j Σ_h α^h_ij f^h(x_j) is the output of the output projection without its bias.
"""

from typing import NamedTuple

import torch

from engine.capture.attention_calls import attention_calls
from engine.capture.attention_rows import AttentionCall, output_projection, softmax_rows, summed_norms
from engine.capture.checks import check_item
from engine.capture.forward import BatchItem, collate
from engine.capture.probe import Probe
from engine.capture.queries import DEFAULT_QUERIES, query_positions
from engine.errors import StrataError
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage

__all__ = ["check_attention"]

# Kernel noise, measured: 2e-7, 4e-4 and 3e-3. A mask or a scaling that the rows miss moves a tenth and more.
_SAME_OUTPUT = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
# SDPA and flash run as without strata and give the same bits; eager attention is done in blocks, in other steps.
_SAME_LOGITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


class _Difference(NamedTuple):
    block: int
    value: float


@torch.inference_mode()
def check_attention(loaded: LoadedModel, prepared: PreparedImage, probe: Probe, *, pad_id: int) -> None:
    """Check on a padded batch that listening changes no logits, and that recomputed rows give the attention's output.

    Parameters
    ----------
    loaded
        The model.
    prepared
        An image with its prompts; the first and the last are run.
    probe
        Blocks and queries to check.
    pad_id
        Token id of padding.

    Raises
    ------
    StrataError
        Naming the check that failed and its numbers; also where a block does not attend through transformers'
        interface, or nothing finite comes out.
    """
    items = [check_item(prepared, index) for index in dict.fromkeys((0, len(prepared.layouts) - 1))]
    inputs = collate(items, pad_id=pad_id)
    outputs = _Outputs(items, inputs["attention_mask"], probe.queries or DEFAULT_QUERIES)
    inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, loaded.dtype))
    plain = loaded.model(**inputs, use_cache=False, logits_to_keep=1).logits.float()
    try:
        with attention_calls(loaded.language, probe.blocks, outputs.receive):
            heard = loaded.model(**inputs, use_cache=False, logits_to_keep=1).logits.float()
    finally:
        outputs.remove_hooks()
    if not torch.isfinite(plain).flatten(1).all(dim=1).any():
        raise StrataError(
            f"the logits of the first image hold NaN or Inf in {loaded.dtype}, so its attention cannot be checked: "
            "try --dtype bfloat16 or float32."
        )
    _check_logits(loaded, plain, heard)
    _check_outputs(loaded, probe, outputs.differences)


def _check_logits(loaded: LoadedModel, plain: torch.Tensor, heard: torch.Tensor) -> None:
    finite = torch.isfinite(plain).flatten(1).all(dim=1)
    plain, heard = plain[finite], heard[finite]
    norms = torch.linalg.vector_norm(plain, dim=(1, 2))
    worst = float((torch.linalg.vector_norm(heard - plain, dim=(1, 2)) / norms).max())
    if not worst <= _SAME_LOGITS[loaded.dtype]:
        raise StrataError(
            f"the model's logits change while strata listens to its attention (relative difference {worst:.2e}, at "
            f"most {_SAME_LOGITS[loaded.dtype]:.0e} in {loaded.dtype} under {loaded.attention_kernel}): its attention "
            "cannot be captured; leave attention and attention-mass out of --capture."
        )


def _check_outputs(loaded: LoadedModel, probe: Probe, differences: dict[int, float]) -> None:
    silent = [block for block in probe.blocks if block not in differences]
    if silent:
        raise StrataError(
            f"block {silent[0]} of {type(loaded.model).__name__} does not attend through transformers' "
            "AttentionInterface, so its attention cannot be read: leave attention and attention-mass out of --capture."
        )
    worst = max((_Difference(*pair) for pair in differences.items()), key=lambda pair: pair.value, default=None)
    if worst is not None and not worst.value <= _SAME_OUTPUT[loaded.dtype]:
        raise StrataError(
            "the recomputed attention rows do not give the output of the model's attention (block "
            f"{worst.block}: relative difference {worst.value:.2e}, at most {_SAME_OUTPUT[loaded.dtype]:.0e} in "
            f"{loaded.dtype} under {loaded.attention_kernel}): this attention is more than a softmax over its scores; "
            "leave attention and attention-mass out of --capture."
        )


class _Outputs:
    """Compares Σ_j Σ_h α f of the kept queries with the output projection's output, block by block.

    Relative to Σ_j ‖Σ_h α f‖, because contributions of different keys cancel and rounding does not.
    """

    def __init__(self, items: list[BatchItem], attention_mask: torch.Tensor, queries: tuple[str, ...]) -> None:
        own = torch.stack([torch.from_numpy(query_positions(item.layout.role, queries)) for item in items]).long()
        padding = attention_mask.shape[1] - attention_mask.sum(dim=1)
        self._exists = own >= 0
        self._positions = own.clamp(min=0) + padding[:, None]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.differences: dict[int, float] = {}

    def receive(self, call: AttentionCall) -> None:
        """Compute the rows' output now, and compare when the projection's is there."""
        projection = output_projection(call.module)
        positions, exists = self._positions.to(call.query.device), self._exists.to(call.query.device)
        weights = softmax_rows(call, positions)
        expected, scale = _mixed(call, weights, projection)

        def hook(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> None:
            made = output[torch.arange(len(positions), device=positions.device)[:, None], positions].float()
            if projection.bias is not None:
                made = made - projection.bias.float()
            errors = torch.linalg.vector_norm(made - expected, dim=-1) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
            # A sample that overflows in the model itself says nothing about the rows.
            judged = errors[torch.isfinite(made).all(dim=-1) & exists].nan_to_num(nan=torch.inf)
            self.differences[call.block] = float(judged.max()) if len(judged) else 0.0

        self._handles.append(projection.register_forward_hook(hook))

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()


def _mixed(
    call: AttentionCall, weights: torch.Tensor, projection: torch.nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute Σ_j Σ_h α f, (sample, query, dim), and Σ_j ‖Σ_h α f‖, (sample, query), from weights, all float32."""
    samples, heads, queries, keys = weights.shape
    key_heads = call.value.shape[1]
    grouped = weights.view(samples, key_heads, -1, keys)
    context = (grouped @ call.value.float()).view(samples, heads, queries, -1).transpose(1, 2).flatten(2)
    every_key = torch.arange(keys, device=weights.device)
    scale = [
        [
            summed_norms(call.module, call.value[sample].transpose(0, 1), weights[sample, :, query].T, every_key).sum()
            for query in range(queries)
        ]
        for sample in range(samples)
    ]
    return context @ projection.weight.float().T, torch.stack([torch.stack(row) for row in scale])
