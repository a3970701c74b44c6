"""What contextualization computes of one part: a task that travels to a thread or a cluster's worker."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import zarr

from analyses.final_norm import FinalNorm
from engine.store import Part
from engine.vocabulary import ROLE_CODES

__all__ = ["PairRow", "PartTask", "Source", "open_array", "pair_rows"]

Source = Literal["pooled", "hidden_states"]


class PairRow(NamedTuple):
    """Which sets are paired, and whether a token is paired with itself."""

    pair: str
    self_pairs: bool


def pair_rows(self_pairs: bool) -> tuple[PairRow, ...]:
    """Rows of a result: the three pairs, and on request the two intra ones with self-pairs."""
    plain = tuple(PairRow(pair, False) for pair in ("image-text", "image-image", "text-text"))
    literal = (PairRow("image-image", True), PairRow("text-text", True))
    return plain + (literal if self_pairs else ())


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
    """

    url: str
    name: str
    source: Source
    text_roles: tuple[str, ...]
    self_pairs: bool
    normed: bool
    norm: FinalNorm | None

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
    group, name = path.split("/")
    array = part.group(group)[name]
    assert isinstance(array, zarr.Array)
    return array
