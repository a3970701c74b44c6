"""What contextualization computes of one part: a task that travels to a thread or a cluster's worker."""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from analyses.final_norm import FinalNorm
from engine.store import Part
from engine.vocabulary import ROLE_CODES

__all__ = [
    "ADJUSTMENTS",
    "PAIRS",
    "SETS",
    "Adjustment",
    "Origin",
    "PairRow",
    "PartTask",
    "Source",
    "open_array",
    "pair_rows",
    "sets_of",
]

Source = Literal["pooled", "hidden_states"]
Adjustment = Literal["none", "anisotropy", "mean-centred"]

ADJUSTMENTS: tuple[Adjustment, ...] = ("none", "anisotropy", "mean-centred")
SETS = ("image", "text")
PAIRS = ("image-text", "image-image", "text-text")


class PairRow(NamedTuple):
    """Which sets are paired, and whether a token is paired with itself."""

    pair: str
    self_pairs: bool


def sets_of(pair: str) -> tuple[int, int]:
    """Return the places in `SETS` of the two sets of a pair."""
    first, second = pair.split("-")
    return SETS.index(first), SETS.index(second)


def pair_rows(self_pairs: bool) -> tuple[PairRow, ...]:
    """Rows of a result: the three pairs, and on request the two intra ones with self-pairs."""
    plain = tuple(PairRow(pair, False) for pair in PAIRS)
    literal = (PairRow("image-image", True), PairRow("text-text", True))
    return plain + (literal if self_pairs else ())


class Origin(NamedTuple):
    """The states that cosines are measured from.

    Attributes
    ----------
    states : array (layer, dim), float64
    normed : array (dim), float64
        Of the last layer after the final norm; of no use where that was not captured.
    """

    states: NDArray[np.float64]
    normed: NDArray[np.float64]

    def digest(self) -> str:
        """Hash of the values."""
        return hashlib.sha256(self.states.tobytes() + self.normed.tobytes()).hexdigest()


@dataclass(frozen=True)
class PartTask:
    """What to compute of which part.

    Attributes
    ----------
    url, name
        The store's address and the part's name.
    source
        What is read: pooled states, or hidden states.
    text_roles
        Roles that count as text.
    self_pairs
        Whether the intra rows with self-pairs are added.
    normed
        Whether the last layer is added after the final norm.
    norm
        That norm; pooled states do without it.
    prompts
        The store's prompt ids, where pairs of samples are to be summed for the anisotropy baseline; else empty.
    origin
        Where states start from; 0 where None.
    """

    url: str
    name: str
    source: Source
    text_roles: tuple[str, ...]
    self_pairs: bool
    normed: bool
    norm: FinalNorm | None
    prompts: tuple[str, ...] = ()
    origin: Origin | None = None

    def depends(self) -> tuple[object, ...]:
        """Return all that the result depends on, beside the part's content."""
        return (
            self.source,
            self.text_roles,
            self.self_pairs,
            self.normed,
            _norm_text(self.norm),
            self.prompts,
            "" if self.origin is None else self.origin.digest(),
        )

    @property
    def sets(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Role codes of the image set and of the text set."""
        return (ROLE_CODES["image"],), tuple(ROLE_CODES[role] for role in self.text_roles)

    @property
    def array(self) -> str:
        """Path in the part of the array that is read."""
        return "sample/unit_mean" if self.source == "pooled" else "token/hidden_states"


def open_array(part: Part, path: str) -> zarr.Array:
    """Open one array of a part, ``group/name``."""
    return part.array(path)


def _norm_text(norm: FinalNorm | None) -> str:
    if norm is None:
        return ""
    digest = hashlib.sha256(norm.weight.tobytes())
    digest.update(b"" if norm.bias is None else norm.bias.tobytes())
    return f"{norm.kind} {norm.eps} {norm.weight_offset} {digest.hexdigest()}"
