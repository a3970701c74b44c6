"""Hooks on the residual stream.

transformers' ``hidden_states[-1]`` is already final-normed, so the residual stream is read here: layer 0 is what enters
block 1, layer l is the raw output of block l.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["residual_hooks"]


@contextmanager
def residual_hooks(
    blocks: Sequence[torch.nn.Module], layers: Sequence[int], receive: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Call ``receive(layer, states)`` for every chosen layer of each forward pass inside the context.

    Parameters
    ----------
    blocks
        The language model's blocks, 1..L in order.
    layers
        Layer numbers within 0..L.
    receive
        Gets the layer and its states (batch, position, dim), on the device and in the dtype of the model. It must
        copy what it keeps.
    """
    handles = []
    for layer in layers:
        if layer == 0:
            hook = _entry_hook(receive)
            handles.append(blocks[0].register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(blocks[layer - 1].register_forward_hook(_exit_hook(layer, receive)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entry_hook(receive: Callable[[int, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        receive(0, arguments[0] if arguments else keywords["hidden_states"])

    return hook


def _exit_hook(layer: int, receive: Callable[[int, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        receive(layer, output[0] if isinstance(output, tuple) else output)

    return hook
