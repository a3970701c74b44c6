"""What did not fit a device's memory, in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.errors import StrataError

__all__ = ["naming_overflow"]

# What a full GPU says where it is not torch's allocator that asks it, but CUDA itself, cuBLAS or cuSOLVER.
_SIGNS = ("out of memory", "ALLOC_FAILED")


@contextmanager
def naming_overflow(what: str, where: str, advice: str) -> Iterator[None]:
    """Turn the error of a full device into a message.

    Parameters
    ----------
    what
        Begins the message: what is tried.
    where
        The device, or several.
    advice
        Ends it: the next step.

    Raises
    ------
    StrataError
        Where ``what`` does not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)):
            raise
        raise StrataError(f"{what} does not fit {where}: {advice}") from error
