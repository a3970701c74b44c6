"""What did not fit a device's memory, in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.errors import StrataError

__all__ = ["naming_overflow"]


@contextmanager
def naming_overflow(what: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turn the error of a full device into a message.

    Parameters
    ----------
    what
        Begins the message: what is tried.
    device
        Where.
    advice
        Ends it: the next step.

    Raises
    ------
    StrataError
        Where ``what`` does not fit.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StrataError(f"{what} does not fit {device}: {advice}") from error
