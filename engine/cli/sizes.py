"""Counts, bytes and seconds in words."""

from collections.abc import Sequence

__all__ = ["format_bytes", "format_count", "format_dims", "format_duration"]


def format_bytes(count: float) -> str:
    """``1536`` → ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_duration(seconds: float) -> str:
    """``480`` → ``8 min``."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_count(count: int, noun: str) -> str:
    """``1 part``, ``2 parts``."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def format_dims(dims: Sequence[str], shape: Sequence[int], kept: Sequence[int]) -> str:
    """``block 2 of 4 × token 1,234``: dimensions, and how much of them is kept where that is less."""
    lengths = zip(dims, shape, kept, strict=True)
    return " × ".join(f"{dim} {own:,}" + f" of {length:,}" * (own != length) for dim, length, own in lengths)
