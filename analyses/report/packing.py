"""Numbers and texts on their way into a page: JSON that holds no NaN, packed so that no text of it can act as HTML.

Packed means deflated and in base64, whose alphabet has no character that HTML or a script knows; a browser unpacks it
with what it has built in (``DecompressionStream``).
"""

import base64
import json
import math
import zlib
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["Rows", "number", "numbers", "pack"]

Rows: TypeAlias = list[dict[str, Any]]
"""Rows of a chart: what JSON knows."""


def number(value: float, digits: int = 4) -> float | None:
    """Round to significant digits; None for what is not finite, which JSON does not know."""
    return float(f"{value:.{digits - 1}e}") if math.isfinite(value) else None


def numbers(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """Apply `number` to each value."""
    return [number(value, digits) for value in values]


def pack(value: Any) -> str:
    """Write a JSON value as deflated base64.

    Raises
    ------
    ValueError
        It holds a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
