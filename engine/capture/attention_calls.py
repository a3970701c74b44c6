"""Listening to a language model's attention while it runs its own kernel.

The text configuration's attention implementation is exchanged for one of the same effect that shows every call of the
chosen blocks to a listener, and the mask function for the one that belongs to the kernel: without it, transformers
would pass no mask at all, and padded batches would be silently wrong. Vision towers and side encoders keep their own.

SDPA and flash run as the model would run them. Eager attention, and SDPA under a softcap, which it does not know, run
in blocks of queries, so that no matrix of tokens × tokens is made; their softmax is float32, as eager's is. Only checks
and the audit ask for transformers' own eager attention, and for sums in another order, to have something to compare
with.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.capture.attention_rows import AttentionCall, blocked_attention
from engine.errors import StrataError
from engine.models.load import LanguageModel

__all__ = ["attention_calls", "attention_in_float32", "eager_over_reversed_keys", "runs_in_blocks"]

Receive = Callable[[AttentionCall], None]
ReceiveOutput = Callable[[AttentionCall, torch.Tensor], None]
Result = tuple[torch.Tensor, torch.Tensor | None]


class _Listener(NamedTuple):
    config: Any
    kernel: str
    name: str  # that the kernel is registered under meanwhile
    number_of: dict[int, int]
    attend: Callable[["_Arguments"], Result]


class _Arguments(NamedTuple):
    """What transformers passes to an attention function, and the same as a call."""

    call: AttentionCall
    scaling: float | None
    others: dict[str, Any]


_LISTENER: ContextVar[_Listener] = ContextVar("attention listener")
_REVERSED: ContextVar[bool | None] = ContextVar("keys reversed, and whether in blocks of queries", default=None)


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
    over_reversed = _REVERSED.get()

    def attend(arguments: _Arguments) -> Result:
        call, in_blocks = arguments.call, over_reversed
        if over_reversed is None:
            in_blocks = runs_in_blocks(_LISTENER.get().kernel, call.softcap)
        else:
            arguments = arguments._replace(call=_reversed(call))
        result = (blocked_attention(arguments.call), None) if in_blocks else _own_kernel(arguments)
        if call.block:
            receive(call)
        return result

    with _wrapped(language, blocks, attend, eager_mask=over_reversed is not None):
        yield


@contextmanager
def attention_in_float32(language: LanguageModel, blocks: Sequence[int], receive: ReceiveOutput) -> Iterator[None]:
    """Run the model's own attention in float32, and show its calls with what came out: a small batch for a check.

    The model's own queries, keys and values are widened before the kernel and its output is narrowed after it, so that
    what differs from the kernel is an error of arithmetic, and not of 16 bits. Eager attention is transformers' own.
    Flash attention knows no float32 and stays in the dtype of the model.

    Parameters
    ----------
    language, blocks
        As in :func:`attention_calls`.
    receive
        Gets the call, in float32, and the kernel's output (sample, position, head, head_dim) before it is narrowed.
    """

    def attend(arguments: _Arguments) -> Result:
        narrow = arguments.call.query.dtype
        if "flash" not in _LISTENER.get().kernel:
            arguments = arguments._replace(call=_widened(arguments.call))
        output, weights = _own_kernel(arguments)
        if arguments.call.block:
            receive(arguments.call, output)
        return output.to(narrow), weights

    with _wrapped(language, blocks, attend, eager_mask=True):
        yield


@contextmanager
def eager_over_reversed_keys(*, in_blocks: bool) -> Iterator[None]:
    """Let a model with eager attention that is listened to inside the context sum over its keys from last to first.

    The result is the same but for rounding, in every dtype. What listeners are shown is in the usual order.

    Parameters
    ----------
    in_blocks
        Attend in blocks of queries, else as transformers does, which makes all rows of a block at a time.
    """
    token = _REVERSED.set(in_blocks)
    try:
        yield
    finally:
        _REVERSED.reset(token)


def runs_in_blocks(kernel: str, softcap: float | None) -> bool:
    """Tell whether attention that is listened to runs in blocks of queries in place of the model's own kernel."""
    return kernel == "eager" or (kernel == "sdpa" and softcap is not None)


@contextmanager
def _wrapped(
    language: LanguageModel, blocks: Sequence[int], attend: Callable[[_Arguments], Result], *, eager_mask: bool
) -> Iterator[None]:
    """Attend by ``attend`` inside the context."""
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
    AttentionInterface.register(name, _attend)
    # The mask of SDPA serves the blocked attention too: it is none at all for a causal sequence without padding.
    mask = "sdpa" if kernel == "eager" and not eager_mask else kernel
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[mask])
    number_of = {id(module): number for number in blocks for module in language.blocks[number - 1].modules()}
    token = _LISTENER.set(_Listener(config, kernel, name, number_of, attend))
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
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> Result:
    """Attend as the listener wants it."""
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
        window=others.get("sliding_window") if "flash" in listener.kernel else None,
    )
    return listener.attend(_Arguments(call, scaling, others))


def _own_kernel(arguments: _Arguments) -> Result:
    """Attend as the model does without strata."""
    listener, call = _LISTENER.get(), arguments.call
    function = _eager_function(call.module) if listener.kernel == "eager" else ALL_ATTENTION_FUNCTIONS[listener.kernel]
    # Flash attention reads the name from the configuration to know which library to load.
    listener.config._attn_implementation = listener.kernel
    try:
        result: Result = function(
            call.module, call.query, call.key, call.value, call.mask, scaling=arguments.scaling, **arguments.others
        )
    finally:
        listener.config._attn_implementation = listener.name
    return result


def _eager_function(module: torch.nn.Module) -> Callable[..., Result]:
    """Find eager attention where transformers keeps it: beside the class of the attention module, not in a registry."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if function is not None:
            found: Callable[..., Result] = function
            return found
    raise StrataError(
        f"{type(module).__name__} has no eager_attention_forward beside it, so its eager attention cannot be checked: "
        "load the checkpoint with attn_implementation sdpa in its config.json, or leave attention out of --capture."
    )


def _reversed(call: AttentionCall) -> AttentionCall:
    """Put keys, values and the columns of eager attention's mask, which says everything, in reverse order."""
    mask = None if call.mask is None else call.mask.flip(-1)
    return call._replace(key=call.key.flip(2), value=call.value.flip(2), mask=mask)


def _widened(call: AttentionCall) -> AttentionCall:
    mask = call.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    return call._replace(query=call.query.float(), key=call.key.float(), value=call.value.float(), mask=mask)
