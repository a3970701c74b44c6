"""Listening to a language model's attention while it runs its own kernel.

The text configuration's attention implementation is exchanged for one of the same effect that shows every call of the
chosen blocks to a listener, and the mask function for the one that belongs to the kernel: without it, transformers
would pass no mask at all, and padded batches would be silently wrong. Vision towers and side encoders keep their own.

SDPA and flash run as the model would run them. Eager attention, and SDPA under a softcap, which it does not know, run
in blocks of queries, so that no matrix of tokens × tokens is made; their softmax is float32, as eager's is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.capture.attention_rows import AttentionCall, blocked_attention
from engine.errors import StrataError
from engine.models.load import LanguageModel

__all__ = ["attention_calls"]

Receive = Callable[[AttentionCall], None]


class _Listener(NamedTuple):
    config: Any
    number_of: dict[int, int]
    receive: Receive


_LISTENER: ContextVar[_Listener] = ContextVar("attention listener")


@contextmanager
def attention_calls(language: LanguageModel, blocks: Sequence[int], receive: Receive) -> Iterator[None]:
    """Call ``receive`` for each attention of the chosen blocks in every forward pass inside the context.

    Parameters
    ----------
    language
        The language model; its configuration is restored at the end.
    blocks
        Block numbers within 1..L.
    receive
        Gets the tensors of the call, on the device and in the dtype of the model. It must copy what it keeps.

    Raises
    ------
    StrataError
        Where the model's attention implementation is none whose rows can be recomputed.
    """
    config = language.config
    kernel = config._attn_implementation
    if not _can_be_wrapped(kernel):
        raise StrataError(
            f"the language model runs the attention implementation {kernel!r}, whose rows cannot be recomputed: strata "
            "wraps sdpa, eager and flash attention. Load the checkpoint with one of them (attn_implementation in its "
            "config.json), or leave attention out of --capture."
        )
    # transformers asks whether a name contains "flash", so the wrapped name keeps the kernel's.
    name = f"strata_{kernel}"
    AttentionInterface.register(name, partial(_attend, kernel, name))
    # The mask of SDPA serves the blocked attention too: it is none at all for a causal sequence without padding.
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa" if kernel == "eager" else kernel])
    number_of = {id(module): number for number in blocks for module in language.blocks[number - 1].modules()}
    token = _LISTENER.set(_Listener(config, number_of, receive))
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = kernel
        _LISTENER.reset(token)


def _can_be_wrapped(kernel: str | None) -> bool:
    if kernel in ("sdpa", "eager"):
        return True
    known = kernel in ALL_ATTENTION_FUNCTIONS and kernel in ALL_MASK_ATTENTION_FUNCTIONS
    return kernel is not None and "flash" in kernel and known


def _attend(  # noqa: PLR0917 - as transformers calls it
    kernel: str,
    name: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as the kernel does, and show the call; ``name`` is what the kernel is registered under."""
    listener = _LISTENER.get()
    causal = others.get("is_causal")
    call = AttentionCall(
        block=listener.number_of.get(id(module), 0),
        module=module,
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=others.get("softcap"),
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        # Other kernels get their window within the mask.
        window=others.get("sliding_window") if "flash" in kernel else None,
    )
    weights = None
    if kernel == "eager" or (kernel == "sdpa" and call.softcap is not None):
        output = blocked_attention(call)
    else:
        # Flash attention reads the name from the configuration to know which library to load.
        listener.config._attn_implementation = kernel
        try:
            output, weights = ALL_ATTENTION_FUNCTIONS[kernel](
                module, query, key, value, attention_mask, scaling=scaling, **others
            )
        finally:
            listener.config._attn_implementation = name
    if call.block:
        listener.receive(call)
    return output, weights
