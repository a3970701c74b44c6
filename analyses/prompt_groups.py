"""Which samples share a curve: the prompts of one kind, and each prompt of the user's own by itself.

Paraphrases of one kind ask the same, so an image's curve is averaged over them. What a file of prompts holds, nobody
but its author knows, so each of those is a group of its own.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["PromptGroup", "prompt_groups"]

_KINDS = ("normal", "question", "noisy", "empty")
_CUSTOM = "custom"


class PromptGroup(NamedTuple):
    """A prompt kind; for kind ``custom`` also the prompt's id, else that is empty."""

    kind: str
    prompt_id: str

    @property
    def title(self) -> str:
        """What figures and sentences call it."""
        return self.prompt_id or self.kind


def prompt_groups(samples: pd.DataFrame) -> list[tuple[PromptGroup, NDArray[np.bool_]]]:
    """Return the groups that occur and which samples are theirs.

    Parameters
    ----------
    samples : DataFrame
        With the columns prompt_kind and prompt_id.

    Returns
    -------
    list of (PromptGroup, array (sample) of bool)
        Built-in kinds first, others in order of appearance.
    """
    kinds = samples["prompt_kind"].to_numpy(dtype=object)
    ids = np.where(kinds == _CUSTOM, samples["prompt_id"].to_numpy(dtype=object), "")
    found = [PromptGroup(*pair) for pair in dict.fromkeys(zip(kinds.tolist(), ids.tolist(), strict=True))]
    found.sort(key=lambda group: _KINDS.index(group.kind) if group.kind in _KINDS else len(_KINDS))
    return [(group, (kinds == group.kind) & (ids == group.prompt_id)) for group in found]
