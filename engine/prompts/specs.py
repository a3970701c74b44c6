"""From what stands behind ``--prompts`` to prompts.

========================  =================================================================================
``normal``, ``question``  all published paraphrases of the model's family; ``normal:2`` the first two
``noisy``                 five random strings (`engine.prompts.noisy`); ``noisy:10`` ten, the five among them
``empty``                 no instruction
a path                    a JSON file {id: text}: own prompts, taken word for word, in the order of the file
========================  =================================================================================

The options' order is the prompts' order. Only ids and texts go on from here, never the path of a file.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from engine.errors import UsageError
from engine.inputs import InputFile, is_text, name_few
from engine.prompts.noisy import VocabularyView, noisy_prompts
from engine.prompts.prompt import Prompt
from engine.prompts.published import published_prompts

__all__ = ["DEFAULT_NOISY", "read_prompts"]

DEFAULT_NOISY = 5
"""Strings that plain ``noisy`` stands for."""

BuiltinKind = Literal["normal", "question", "noisy", "empty"]
FORMAT = 'a JSON object {"id": "text", …}'
KNOWN = (
    "normal, question, noisy (each also with a count, such as normal:1), empty, or the path of a JSON file {id: text}"
)
SPEC = re.compile(r"(normal|question|noisy|empty)(?::(.*))?", re.DOTALL)


def read_prompts(
    specs: Sequence[str], *, family: str, vocabulary: VocabularyView | None, seed: int
) -> tuple[Prompt, ...]:
    """Turn the values of ``--prompts`` into prompts with distinct ids.

    Parameters
    ----------
    specs
        As on the command line.
    family
        The model's family, which chooses the table of published prompts.
    vocabulary
        What ``noisy`` draws from; None where there is no tokenizer, and then ``noisy`` is refused.
    seed
        Of the draw.

    Raises
    ------
    UsageError
        If there is no spec, one is unknown, its count does not fit, or two prompts have the same id.
    StrataError
        If a prompt file is missing, malformed, or has an id or a text that cannot be used.
    """
    if not specs:
        raise UsageError(f"no prompts are given; --prompts takes {KNOWN}")
    prompts = tuple(prompt for spec in specs for prompt in _expand(spec, family, vocabulary, seed))
    twice = [prompt_id for prompt_id, times in Counter(prompt.prompt_id for prompt in prompts).items() if times > 1]
    if twice:
        raise UsageError(
            f"the prompt ids {name_few(twice)} occur more than once in --prompts {' '.join(specs)}; "
            "a sample is named by image and prompt id, so give each prompt once"
        )
    return prompts


def _expand(spec: str, family: str, vocabulary: VocabularyView | None, seed: int) -> tuple[Prompt, ...]:
    match = SPEC.fullmatch(spec)
    if match is None:
        return _read_file(spec)
    kind, count = cast(BuiltinKind, match[1]), _count(spec, match[2])
    if kind == "empty":
        if count is not None:
            raise UsageError(f"--prompts {spec} has a count, but there is one empty prompt; write empty")
        return (Prompt("empty", "empty", ""),)
    if kind == "noisy":
        if vocabulary is None:
            raise UsageError(f"--prompts {spec} draws from the model's vocabulary, and the model has no tokenizer")
        return noisy_prompts(count or DEFAULT_NOISY, vocabulary=vocabulary, seed=seed)
    prompts = published_prompts(family, kind)
    if count is not None and count > len(prompts):
        raise UsageError(f"--prompts {spec} asks for more than the {len(prompts)} that are published for {family}")
    return prompts[:count]


def _count(spec: str, digits: str | None) -> int | None:
    if digits is None:
        return None
    if not re.fullmatch("[0-9]{1,4}", digits) or int(digits) == 0:
        raise UsageError(f"--prompts {spec} has '{digits}' as count; it must be a whole number from 1 to 9999")
    return int(digits)


def _read_file(spec: str) -> tuple[Prompt, ...]:
    path = Path(spec)
    if not path.exists():
        raise UsageError(f"--prompts {spec} is neither a kind of prompt nor an existing file; it takes {KNOWN}")
    file = InputFile(path, "prompt file", FORMAT, "--prompts")
    content = file.parse(file.read(), unique_keys=True)
    if not isinstance(content, dict):
        raise file.error(f"holds a JSON {type(content).__name__} at its top")
    if not content:
        raise file.error("holds no prompt")
    for prompt_id, text in content.items():
        if not prompt_id or not prompt_id.isprintable() or prompt_id != prompt_id.strip() or "/" in prompt_id:
            raise file.error(f"has the id {prompt_id!r}, which must be printable text without '/' or outer blanks")
        if not is_text(text):
            raise file.error(f"has {text!r:.80} under '{prompt_id}', which is not text")
        if not text.strip():
            raise file.error(f"has no text under '{prompt_id}' (for no instruction, take the prompt empty)")
    return tuple(Prompt(prompt_id, "custom", text) for prompt_id, text in content.items())
