"""What the model is asked: LLaVA-1.5's template, and the instructions it is trained with."""

from __future__ import annotations

__all__ = ["NORMAL_PROMPTS", "QUESTION_PROMPTS", "fill"]

NORMAL_PROMPTS: tuple[str, ...] = (
    "Briefly describe the content of the image.",
    "Provide a quick summary of what the image depicts.",
    "Give a concise explanation of the image content.",
    "Sum up what is shown in the image briefly.",
)

QUESTION_PROMPTS: tuple[str, ...] = ("What is the content of the image?",)


def fill(prompt: str, caption: str | None = None) -> str:
    """Put an instruction (and, in training, the caption) into LLaVA-1.5's template.

    Parameters
    ----------
    prompt : str
        The instruction alone; empty for none.
    caption : str, optional
        The answer to learn, closed with ``</s>``.
    """
    question = f"USER: <image>\n{prompt} ASSISTANT:" if prompt else "USER: <image>\nASSISTANT:"
    return question if caption is None else f"{question} {caption}</s>"
