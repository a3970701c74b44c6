"""What a prompt is: an instruction with a name, without any model's template."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Prompt", "PromptKind"]

PromptKind = Literal["normal", "question", "noisy", "empty", "custom"]


@dataclass(frozen=True)
class Prompt:
    """One instruction, asked of every image.

    Attributes
    ----------
    prompt_id
        ``normal-1``, ``question-1``, ``noisy-3``, ``empty`` or the user's own; never holds ``/``.
    kind
        Where it comes from.
    text
        The instruction alone; empty for kind ``empty`` and only there.
    """

    prompt_id: str
    kind: PromptKind
    text: str
