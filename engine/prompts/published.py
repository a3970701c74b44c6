"""The published prompts of each model family, as data: one JSON table per family in ``tables/``.

A table is ``{"family", "source", "normal": [text, …], "question": [text, …]}``. The folder is a link to
``data/prompts`` in a checkout and a folder of its own in an installed package.
"""

import json
from importlib.resources import files
from typing import Literal

from engine.errors import UsageError
from engine.prompts.prompt import Prompt

__all__ = ["published_prompts"]

TABLES = files("engine.prompts") / "tables"


def published_prompts(family: str, kind: Literal["normal", "question"]) -> tuple[Prompt, ...]:
    """Return all paraphrases of one kind, in the order of their source.

    Parameters
    ----------
    family
        Name of the model family, such as ``llava``.
    kind
        Which of the table's lists.

    Raises
    ------
    UsageError
        If there is no table for the family.
    """
    table = TABLES / f"{family}.json"
    if not table.is_file():
        known = sorted(entry.name.removesuffix(".json") for entry in TABLES.iterdir() if entry.name.endswith(".json"))
        raise UsageError(
            f"no published prompts for the model family '{family}' (there are some for {', '.join(known)}); "
            "give your own to --prompts as a JSON file {id: text}"
        )
    texts = json.loads(table.read_text(encoding="utf-8"))[kind]
    return tuple(Prompt(f"{kind}-{number}", kind, text) for number, text in enumerate(texts, start=1))
