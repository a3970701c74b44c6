"""What LogitLens computes of one part: a task that travels to a thread or a cluster's worker."""

from dataclasses import dataclass
from typing import Literal

from analyses.stop_words import STOP_WORDS_NAME

__all__ = ["ARRAYS", "LensSource", "LensTask"]

LensSource = Literal["lens", "hidden_states"]

ARRAYS: dict[LensSource, tuple[str, ...]] = {
    "lens": ("token/lens_token_id", "token/lens_logit"),
    "hidden_states": ("token/hidden_states",),
}
"""Arrays of a part that each source reads."""


@dataclass(frozen=True)
class LensTask:
    """What to compute of which part.

    Attributes
    ----------
    url, name
        The store's address and the part's name.
    model_sha256
        Of everything in the store outside its parts: the unembedding, the final norm, the vocabulary.
    source
        Whether pieces are read as extraction found them, or found here from hidden states.
    topk
        Pieces per image token and layer.
    layers
        Layer numbers, ascending, among those that are stored.
    blocks
        Number of the last layer L.
    trajectory
        Whether entropy, and divergence from the last layer, are computed too.
    last_text
        Whether the last text token of a sample is certainly among the stored ones.
    """

    url: str
    name: str
    model_sha256: str
    source: LensSource
    topk: int
    layers: tuple[int, ...]
    blocks: int
    trajectory: bool
    last_text: bool

    def depends(self) -> tuple[object, ...]:
        """Return all that the result depends on, beside the part's content."""
        return (
            self.model_sha256,
            self.source,
            self.topk,
            self.layers,
            self.trajectory,
            self.last_text,
            STOP_WORDS_NAME,
        )

    @property
    def needs_unembedding(self) -> bool:
        """Whether logits are computed here."""
        return self.source == "hidden_states" or self.trajectory
