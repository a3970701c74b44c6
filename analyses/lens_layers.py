"""Layers chosen on the command line: ``0,8,16:32`` as `strata extract` reads it, out of those that are stored."""

from collections.abc import Sequence

import numpy as np

from engine.errors import UsageError

__all__ = ["choose_layers", "spread_layers"]


def choose_layers(stored: Sequence[int], asked: Sequence[str], option: str) -> tuple[int, ...]:
    """Choose layers.

    Parameters
    ----------
    stored : sequence of int
        Layer numbers, ascending.
    asked : sequence of str
        Each a number, which must be stored, or a range ``start:stop`` or ``start:stop:step`` of numbers, the end
        excluded, of which those that are stored count. Empty for all.
    option : str
        What messages call it.

    Raises
    ------
    UsageError
        An entry is neither, or names no stored layer.
    """
    chosen: set[int] = set()
    for item in asked:
        numbers = _numbers(item, max(stored) + 1, option)
        found = set(numbers) & set(stored)
        if not found:
            raise UsageError(f"{option} {item}: no such layer is there; there are {', '.join(map(str, stored))}")
        chosen |= found
    return tuple(sorted(chosen)) if asked else tuple(stored)


def spread_layers(layers: Sequence[int], most: int) -> tuple[int, ...]:
    """Choose at most so many layers, the first and the last among them, evenly between."""
    places = np.linspace(0, len(layers) - 1, min(len(layers), most)).round().astype(int)
    return tuple(layers[place] for place in np.unique(places))


def _numbers(item: str, end: int, option: str) -> range:
    pieces = item.strip().split(":")
    try:
        values = [int(piece) if piece.strip() else None for piece in pieces]
        if len(values) == 1 and values[0] is not None:
            return range(values[0], values[0] + 1)
        if 1 < len(values) <= 3 and values[-1] != 0:
            return range(*slice(*values).indices(end))
    except ValueError:
        pass
    raise UsageError(f"{option} {item!r} is neither a layer nor a range; write 0,8,16:32")
