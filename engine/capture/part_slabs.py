"""Captured pieces, one per forward pass, laid out slab by slab as the store wants them."""

from collections.abc import Callable

import numpy as np
import torch

from engine.store import widen_bfloat16

__all__ = ["STORED_DTYPES", "slabs"]

STORED_DTYPES = {"float16": "float16", "bfloat16": "float32", "float32": "float32"}
"""On disk a bfloat16 state is the float32 of the same value, which every reader in every language understands."""


def slabs(
    pieces: list[list[torch.Tensor]], shape: tuple[int, ...], dtype: str, axes: tuple[int, ...] | None = None
) -> Callable[[int], np.ndarray]:
    """Give one leading index after the other in the stored dtype; its pieces are freed once they are laid out.

    Parameters
    ----------
    pieces
        Per leading index the pieces that follow each other along the part's axis, their first one.
    shape
        Of a slab.
    dtype
        Captured dtype, a key of :data:`STORED_DTYPES`.
    axes
        The slab's axes in the order of the pieces'; the same order where None.
    """
    stored = np.empty(shape, dtype=STORED_DTYPES[dtype])
    by_row = stored if axes is None else stored.transpose(axes)

    def slab(index: int) -> np.ndarray:
        row = 0
        for captured in pieces[index]:
            # Not torch.cat: on this thread torch would start a second team of threads, which fights the model's team
            # for the cores.
            rows = by_row[row : row + len(captured)]
            if dtype == "bfloat16":
                widen_bfloat16(captured.view(torch.uint16).numpy(), out=rows)
            else:
                rows[...] = captured.numpy()
            row += len(captured)
        pieces[index] = []
        return stored

    return slab
