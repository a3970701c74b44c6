"""What must hold before a run may trust captured attention, checked on the first image that can be read.

Listening must change neither which keys a query sees nor the logits. The rows recomputed from the shown tensors must be
those of the kernel: Σ_j α^h_ij v^h_j is what the model's own attention puts out, and that, unaltered, is what the
output projection gets and multiplies with its weight. Attention is computed in float32 for this, on the model's own
queries, keys and values, so that a softcap, a scaling or an order of heads that the rows miss is no less visible in a
16-bit model: there, kernels alone differ by as much as a softcap of 50 changes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from engine.capture.attention_calls import attention_calls, attention_in_float32, runs_in_blocks
from engine.capture.attention_rows import (
    AttentionCall,
    blocked_attention,
    output_projection,
    softmax_rows,
    visible_keys,
)
from engine.capture.batch import BatchItem, collate, whole_runs
from engine.capture.checks import check_item
from engine.capture.probe import Probe
from engine.capture.queries import DEFAULT_QUERIES, query_positions
from engine.errors import StrataError
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage

__all__ = ["check_attention"]

# Of float32 arithmetic, measured: 1e-6, in models of 16 bits too.
_SAME_ROWS = 1e-4
# Of flash attention, which knows 16 bits alone, measured: 4e-4 and 3e-3.
_SAME_ROWS_OF_FLASH = {"float16": 5e-3, "bfloat16": 3e-2}
# A product rounded to the dtype, measured: 3e-7, 2e-4 and 2e-3.
_SAME_PRODUCT = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
# SDPA and flash run as without strata and give the same bits; eager attention is done in blocks, in other steps.
_SAME_LOGITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

_LEAVE_OUT = "leave attention and attention-mass out of --capture."


@torch.inference_mode()
def check_attention(loaded: LoadedModel, prepared: PreparedImage, probe: Probe, *, pad_id: int) -> None:
    """Check on a padded batch that listening changes nothing, and that recomputed rows give the attention's output.

    Parameters
    ----------
    loaded
        The model.
    prepared
        An image with its prompts; the first one is run, and the one whose length differs most, so that one is padded.
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
    items = _of_two_lengths(prepared)
    inputs = collate(whole_runs(items), pad_id=pad_id)
    queries = _Queries(items, inputs["attention_mask"], probe.queries or DEFAULT_QUERIES)
    inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, loaded.dtype))

    def run() -> torch.Tensor:
        logits: torch.Tensor = loaded.model(**inputs, use_cache=False, logits_to_keep=1).logits
        return logits.float()

    masks = _Masks(queries)
    with attention_calls(loaded.language, probe.blocks, masks.receive):
        heard = run()
    _check_heard(loaded, probe, masks)
    with masks.of_the_model():
        plain = run()
    if not torch.isfinite(plain).flatten(1).all(dim=1).any():
        raise StrataError(
            f"the logits of the first image hold NaN or Inf in {loaded.dtype}, so its attention cannot be checked: "
            "try --dtype bfloat16 or float32."
        )
    _check_masks(masks)
    _check_logits(loaded, plain, heard)
    outputs = _Outputs(queries, loaded.attention_kernel)
    try:
        with attention_in_float32(loaded.language, probe.blocks, outputs.receive):
            run()
    finally:
        outputs.remove_hooks()
    _check_outputs(loaded, outputs)


def _of_two_lengths(prepared: PreparedImage) -> list[BatchItem]:
    lengths = [len(layout) for layout in prepared.layouts]
    other = max(range(len(lengths)), key=lambda index: abs(lengths[index] - lengths[0]))
    assert lengths[other] != lengths[0], "the prompts that are added for the checks differ in length"
    return [check_item(prepared, index) for index in (0, other)]


def _check_heard(loaded: LoadedModel, probe: Probe, masks: "_Masks") -> None:
    silent = [block for block in probe.blocks if block not in masks.heard]
    if silent:
        raise StrataError(
            f"block {silent[0]} of {type(loaded.model).__name__} does not attend through transformers' "
            f"AttentionInterface, so its attention cannot be read: {_LEAVE_OUT}"
        )


def _check_masks(masks: "_Masks") -> None:
    for block, own in masks.own.items():
        heard = masks.heard[block]
        if not torch.equal(heard, own):
            raise StrataError(
                f"the keys that a query sees change while strata listens to attention (block {block}: "
                f"{int((heard != own).sum())} of {own.numel()} are another, of a batch with padding): the mask of this "
                f"attention cannot be had; {_LEAVE_OUT}"
            )


def _check_logits(loaded: LoadedModel, plain: torch.Tensor, heard: torch.Tensor) -> None:
    finite = torch.isfinite(plain).flatten(1).all(dim=1)
    plain, heard = plain[finite], heard[finite]
    norms = torch.linalg.vector_norm(plain, dim=(1, 2))
    worst = float((torch.linalg.vector_norm(heard - plain, dim=(1, 2)) / norms).max())
    if not worst <= _SAME_LOGITS[loaded.dtype]:
        raise StrataError(
            f"the model's logits change while strata listens to its attention (relative difference {worst:.2e}, at "
            f"most {_SAME_LOGITS[loaded.dtype]:.0e} in {loaded.dtype} under {loaded.attention_kernel}): its attention "
            f"cannot be captured; {_LEAVE_OUT}"
        )


def _check_outputs(loaded: LoadedModel, outputs: "_Outputs") -> None:
    kernel = loaded.attention_kernel
    flash = "flash" in kernel
    arithmetic = loaded.dtype if flash else "float32"
    for what, found, bound, cause in (
        (
            f"the recomputed attention rows do not give the output of the model's attention, in {arithmetic}",
            outputs.rows,
            _SAME_ROWS_OF_FLASH[loaded.dtype] if flash else _SAME_ROWS,
            "this attention is more than a softmax over its scores",
        ),
        (
            "eager attention in blocks of queries does not give the output of the model's attention, in float32",
            outputs.blocked,
            _SAME_ROWS,
            "it cannot stand in for it",
        ),
        (
            "the output projection does not get what the model's attention puts out",
            outputs.between,
            0.0,
            "something alters it on the way",
        ),
        (
            "the output projection does not multiply with its weight",
            outputs.products,
            _SAME_PRODUCT[loaded.dtype],
            "values cannot be transformed by it",
        ),
    ):
        block = max(found, key=found.__getitem__, default=0)
        if block and not found[block] <= bound:
            raise StrataError(
                f"{what} (block {block}: relative difference {found[block]:.2e}, at most {bound:.0e}, model in "
                f"{loaded.dtype} under {kernel}): {cause}; {_LEAVE_OUT}"
            )


class _Queries:
    """Where the kept queries of a padded batch are."""

    def __init__(self, items: list[BatchItem], attention_mask: torch.Tensor, names: tuple[str, ...]) -> None:
        own = torch.stack([torch.from_numpy(query_positions(item.layout.role, names)) for item in items]).long()
        padding = attention_mask.shape[1] - attention_mask.sum(dim=1)
        self.exists = own >= 0
        self.positions = own.clamp(min=0) + padding[:, None]

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """Take the queries' rows of (sample, position, …): (sample, query, …)."""
        positions = self.positions.to(states.device)
        return states[torch.arange(len(positions), device=states.device)[:, None], positions]


class _Masks:
    """Which keys the queries see, per block (sample, query, key) bool: with strata listening, and without."""

    def __init__(self, queries: _Queries) -> None:
        self._queries = queries
        self._calls: dict[int, AttentionCall] = {}
        self.heard: dict[int, torch.Tensor] = {}
        self.own: dict[int, torch.Tensor] = {}

    def receive(self, call: AttentionCall) -> None:
        """Note a call that is listened to."""
        # Of the tensors the sizes are enough, and all blocks' would take memory.
        sizes = {name: getattr(call, name)[..., :0].clone() for name in ("query", "key", "value")}
        self._calls[call.block] = call._replace(mask=None, **sizes)
        self.heard[call.block] = self._visible(call)

    @contextmanager
    def of_the_model(self) -> Iterator[None]:
        """Note the masks that the same modules get while nobody listens."""

        def note(block: int, keywords: Mapping[str, Any]) -> None:
            self.own[block] = self._visible(self._calls[block]._replace(mask=keywords["attention_mask"]))

        handles = [
            call.module.register_forward_pre_hook(
                lambda _module, _arguments, keywords, block=block: note(block, keywords), with_kwargs=True
            )
            for block, call in self._calls.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _visible(self, call: AttentionCall) -> torch.Tensor:
        return visible_keys(call, self._queries.positions.to(call.query.device))


class _Outputs:
    """Largest relative differences of the kept queries, by block.

    Attributes
    ----------
    rows
        Σ_j α v of the recomputed rows from the kernel's output, per head, relative to Σ_j α ‖v‖: values of different
        keys cancel, and rounding does not.
    blocked
        Attention in blocks of queries from the kernel's output, in the same way, where extraction runs it.
    between
        What the output projection gets from what the kernel put out.
    products
        What it makes of that from the product with its weight, in float32.
    """

    def __init__(self, queries: _Queries, kernel: str) -> None:
        self._queries = queries
        self._kernel = kernel
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.rows: dict[int, float] = {}
        self.blocked: dict[int, float] = {}
        self.between: dict[int, float] = {}
        self.products: dict[int, float] = {}

    def receive(self, call: AttentionCall, output: torch.Tensor) -> None:
        """Compare the rows with the kernel's output now, and the projection when it runs."""
        made = self._queries.rows(output)
        weights = softmax_rows(call, self._queries.positions.to(call.query.device))
        expected, scale = _mixed(weights, call.value.float())
        self.rows[call.block] = self._largest(made.float() - expected, scale)
        if runs_in_blocks(self._kernel, call.softcap):
            self.blocked[call.block] = self._largest(made - self._queries.rows(blocked_attention(call)), scale)
        projection = output_projection(call.module)

        def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given, product = self._queries.rows(arguments[0]), self._queries.rows(output).float()
            put_out = made.flatten(2).to(given.dtype).float()
            length = torch.linalg.vector_norm(put_out, dim=-1)
            self.between[call.block] = self._largest(given.float() - put_out, length)
            if projection.bias is not None:
                product = product - projection.bias.float()
            right = given.float() @ projection.weight.float().T
            self.products[call.block] = self._largest(product - right, torch.linalg.vector_norm(right, dim=-1))

        self._handles.append(projection.register_forward_hook(hook))

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _largest(self, errors: torch.Tensor, scale: torch.Tensor) -> float:
        """Largest of ‖error‖ ÷ scale, (sample, query, …), over the queries that exist in samples without overflow."""
        relative = torch.linalg.vector_norm(errors, dim=-1) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        # A sample that overflows in the model itself says nothing about the rows.
        usable = self._queries.exists.to(scale.device) & torch.isfinite(scale).view(*scale.shape[:2], -1).all(dim=2)
        judged = relative[usable].nan_to_num(nan=torch.inf)
        return float(judged.max()) if judged.numel() else 0.0


def _mixed(weights: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute Σ_j α v, (sample, query, head, head_dim), and Σ_j α ‖v‖, (sample, query, head)."""
    samples, heads, queries, keys = weights.shape
    grouped = weights.view(samples, values.shape[1], -1, keys)
    mixed = (grouped @ values).view(samples, heads, queries, -1)
    scale = (grouped @ torch.linalg.vector_norm(values, dim=-1, keepdim=True)).view(samples, heads, queries)
    return mixed.transpose(1, 2), scale.transpose(1, 2)
