"""What the model is asked: LLaVA-1.5's template, and the instructions it is trained with."""

from __future__ import annotations

__all__ = ["NORMAL_PROMPTS", "QUESTION_PROMPTS", "closed", "fill"]

NORMAL_PROMPTS: tuple[str, ...] = (
    "Briefly describe the content of the image.",
    "Provide a quick summary of what the image depicts.",
    "Give a concise explanation of the image content.",
    "Sum up what is shown in the image briefly.",
)

QUESTION_PROMPTS: tuple[str, ...] = ("What is the content of the image?",)


def fill(prompt: str) -> str:
    """Put an instruction into LLaVA-1.5's template.

    Parameters
    ----------
    prompt : str
        The instruction alone; empty for none.
    """
    return f"USER: <image>\n{prompt} ASSISTANT:" if prompt else "USER: <image>\nASSISTANT:"


def closed(question: str, answer: str) -> str:
    """Put the answer to learn behind a filled template, as LLaVA-1.5 was trained to give it."""
    return f"{question} {answer}</s>"
