"""Two attention kernels that compute the same thing in another way, so that their difference is noise.

What the model runs in extraction is the first. The other one is SDPA's math, whatever the model runs, except under a
softcap, which SDPA does not know. Then it is eager attention over reversed keys: transformers' own where extraction
attends in blocks of queries (it makes a matrix of tokens × tokens, of one block of one sample at a time), else the one
in blocks. In the usual order both may agree to the bit in float32, and there would be no noise to measure.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.capture.attention_calls import attention_calls, eager_over_reversed_keys, runs_in_blocks
from engine.capture.attention_rows import AttentionCall
from engine.models.load import LanguageModel

__all__ = ["Kernel", "kernel_pair"]

_IN_BLOCKS = "eager attention in blocks of queries"
_FULL = "transformers' eager attention"


class Kernel(NamedTuple):
    """How a pass attends.

    Attributes
    ----------
    name
        For people.
    chosen
        Makes a context in which the model attends so.
    """

    name: str
    chosen: Callable[[], AbstractContextManager[None]]


def kernel_pair(language: LanguageModel, *, listened: bool) -> tuple[Kernel, Kernel]:
    """Return the kernel that extraction runs, and a different one.

    Parameters
    ----------
    language
        The language model.
    listened
        Whether extraction listens to attention.
    """
    config = language.config
    own = str(config._attn_implementation)
    softcap = getattr(config, "attn_logit_softcapping", None)
    in_blocks = listened and runs_in_blocks(own, softcap)
    first = Kernel(_IN_BLOCKS if in_blocks else _FULL if own == "eager" else own, nullcontext)
    if softcap is None:
        return first, Kernel("SDPA's math", lambda: _sdpa_math(config))
    name = f"{_FULL if in_blocks else _IN_BLOCKS} over reversed keys"
    return first, Kernel(name, lambda: _eager_over_reversed_keys(language, in_blocks=not in_blocks, listened=listened))


@contextmanager
def _implementation(config: Any, name: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _sdpa_math(config: Any) -> Iterator[None]:
    with _implementation(config, "sdpa"), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _eager_over_reversed_keys(language: LanguageModel, *, in_blocks: bool, listened: bool) -> Iterator[None]:
    with (
        _implementation(language.config, "eager"),
        eager_over_reversed_keys(in_blocks=in_blocks),
        nullcontext() if listened else attention_calls(language, (), _ignore),
    ):
        yield


def _ignore(_call: AttentionCall) -> None:
    """Listen to nothing."""
