"""Coordinates that say what a position is: its token id, its role, its place in the sequence and on the image."""

from collections.abc import Sequence

import numpy as np

from engine.store import Coordinate
from engine.vocabulary import role_flags

__all__ = ["place_coordinate"]

_ATTRIBUTES: dict[str, dict[str, object]] = {
    "token_id": {"long_name": "token id in the model's vocabulary"},
    "role": {"long_name": "role of the token", **role_flags()},
    "position": {"long_name": "position in the sample's own token sequence"},
    "grid": {"long_name": "index of the image grid; -1 for a token that is no patch"},
    "patch_row": {"long_name": "row of the patch in its grid, from the top; -1 for none"},
    "patch_col": {"long_name": "column of the patch in its grid, from the left; -1 for none"},
}


def place_coordinate(axis: str, name: str, pieces: Sequence[np.ndarray]) -> Coordinate:
    """Make a coordinate of a part's axis.

    Parameters
    ----------
    axis
        ``token`` or ``key``.
    name
        ``token_id``, ``role``, ``position``, ``grid``, ``patch_row`` or ``patch_col``.
    pieces
        (position,) int32 each, sample after sample.
    """
    values = np.concatenate([np.empty(0, dtype=np.int32), *pieces])
    return Coordinate(f"{axis}/{name}", (axis,), values, _ATTRIBUTES[name])
