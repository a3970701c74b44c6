"""What a part keeps of the lens: ids and logits of the best pieces, on the token axis."""

from collections.abc import Sequence

import numpy as np
import torch

from engine.capture.kept import keep_of
from engine.capture.lens import Pieces
from engine.capture.part_slabs import slabs
from engine.capture.probe import Probe
from engine.store import PartArray

__all__ = ["PartLens"]

_LONG_NAMES = {
    "lens_token_id": "ids of the vocabulary pieces with the largest logits after final norm and unembedding",
    "lens_logit": "logits of these pieces, after the model's softcap",
}
_DTYPES = {"lens_token_id": "int32", "lens_logit": "float32"}


class PartLens:
    """Fills a part's arrays of the lens, batch by batch.

    Parameters
    ----------
    probe
        What is captured.
    ranks
        Pieces per token and layer.
    """

    def __init__(self, probe: Probe, ranks: int) -> None:
        self._probe = probe
        self._ranks = ranks
        self._pieces: dict[str, list[list[torch.Tensor]]] = {name: [[] for _ in probe.lens_layers] for name in _DTYPES}

    def add_rows(self, pieces: Sequence[Pieces]) -> None:
        """Take over what one forward pass left, per layer of the lens."""
        for layer, found in enumerate(pieces):
            self._pieces["lens_token_id"][layer].append(found.token_id)
            self._pieces["lens_logit"][layer].append(found.logit)

    def arrays(self, role: np.ndarray) -> list[PartArray]:
        """List the arrays, none without lens; their pieces are freed as they are written.

        Parameters
        ----------
        role
            (token,) role codes of the part's token axis.
        """
        return [self._array(name, role) for name in _DTYPES] if self._probe.lens_layers else []

    def _array(self, name: str, role: np.ndarray) -> PartArray:
        dims, shape = ("layer", "token", "rank"), (len(self._probe.token_layers), len(role), self._ranks)
        kept = keep_of(name, self._probe, role)
        return PartArray(
            path=f"token/{name}",
            dims=dims,
            shape=shape,
            dtype=_DTYPES[name],
            slab=slabs(self._pieces[name], shape[1:], _DTYPES[name], places=kept.leading, rows=kept.rows),
            attributes={"long_name": _LONG_NAMES[name], "units": "1", **kept.attributes},
            kept=kept.lengths(dims, shape),
        )
