"""What an array of a part keeps, where it was chosen for fewer roles, layers or blocks than its axes hold: pure."""

from typing import Any, NamedTuple

import numpy as np

from engine.capture.probe import Probe

__all__ = ["KeptPlaces", "keep_of"]


class KeptPlaces(NamedTuple):
    """Where the values of an array lie along its axes.

    Attributes
    ----------
    leading
        Indices along the part's layers or blocks, ascending; None for all.
    rows
        (row,) places on the token axis, ascending; None for all.
    attributes
        How the array says so: ``roles`` (names), ``layers`` and ``blocks`` (numbers), where they are fewer.
    """

    leading: tuple[int, ...] | None
    rows: np.ndarray | None
    attributes: dict[str, Any]

    def lengths(self, dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """How much of each dimension is kept; None where everything is."""
        fewer = {dims[0]: self.leading, "token": self.rows}
        kept = {dim: len(places) for dim, places in fewer.items() if places is not None}
        chosen = tuple(kept.get(dim, length) for dim, length in zip(dims, shape, strict=True))
        return None if chosen == shape else chosen


def keep_of(array: str, probe: Probe, role: np.ndarray) -> KeptPlaces:
    """Say where an array of the token axis is kept.

    Parameters
    ----------
    array
        Its name without the group.
    probe
        What is captured.
    role
        (token,) role codes of the part's token axis.
    """
    layers, blocks, roles = probe.fewer_layers_of(array), probe.fewer_blocks_of(array), probe.fewer_roles_of(array)
    said = {"roles": roles, "layers": layers, "blocks": blocks}
    fewer, axis = (blocks, probe.blocks) if layers is None else (layers, probe.token_layers)
    return KeptPlaces(
        leading=None if fewer is None else tuple(axis.index(number) for number in fewer),
        rows=None if roles is None else np.flatnonzero(probe.keeps(array, role)),
        attributes={name: list(chosen) for name, chosen in said.items() if chosen is not None},
    )
