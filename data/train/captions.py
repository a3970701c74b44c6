"""Captions: what is said about a scene, and what a sentence claims.

One grammar serves both ways. A caption names the objects from left to right and relates each to the next; only opening
and relation words vary. ``parse`` accepts exactly the sentences that the grammar can make, so a model gets no credit
for text that merely contains the right words.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from data.train.scenes import COLOURS, SHAPES, SIZES, Scene, Shape

__all__ = ["CAPTIONS", "OPENINGS", "RELATIONS", "Claim", "caption", "parse", "relation"]

OPENINGS: tuple[str, ...] = ("", "there is ", "the image shows ", "a picture of ", "we see ")

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}

_LINKS = (", which is", ", and it is", ", itself")

_STYLES: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 0), (3, 2), (4, 0))
"""Opening and wording of the five paraphrases that every scene gets."""

CAPTIONS = len(_STYLES)


class Claim(NamedTuple):
    """What a caption says: objects in its own order, and the relation of each to the next."""

    objects: tuple[tuple[str, str, str], ...]
    relations: tuple[str, ...]


def relation(first: Shape, second: Shape) -> str:
    """Say where ``first`` stands, seen from ``second`` (which is further right).

    Returns
    -------
    str
        A key of ``RELATIONS``: the larger of the horizontal and the vertical distance decides.
    """
    dx, dy = second.x - first.x, second.y - first.y
    if dx >= abs(dy):
        return "left"
    return "above" if dy > 0 else "below"


def caption(scene: Scene, style: int) -> str:
    """Describe a scene in one of ``CAPTIONS`` ways.

    Parameters
    ----------
    scene : Scene
    style : int
        0 … ``CAPTIONS`` − 1.
    """
    opening, wording = _STYLES[style]
    objects = scene.objects
    text = OPENINGS[opening] + _noun_phrase(objects[0])
    for order, (first, second) in enumerate(pairwise(objects)):
        link = _LINKS[wording] if order else ""
        text += f"{link} {RELATIONS[relation(first, second)][wording]} {_noun_phrase(second)}"
    return text + "."


def parse(text: str) -> Claim | None:
    """Read a caption back.

    Returns
    -------
    Claim or None
        None when the text is not a sentence of the grammar.
    """
    match = _SENTENCE.fullmatch(text)
    if match is None:
        return None
    objects = tuple((size, colour, shape) for size, colour, shape in _OBJECT.findall(text))
    relations = tuple(_KEY_OF[words] for words in _RELATION.findall(text))
    return Claim(objects, relations)


def _noun_phrase(item: Shape) -> str:
    return f"a {item.size} {item.colour} {item.shape}"


def _any(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_KEY_OF = {words: key for key, variants in RELATIONS.items() for words in variants}
_PHRASE = f"a (?:{_any(list(SIZES))}) (?:{_any(list(COLOURS))}) (?:{_any(list(SHAPES))})"
_OBJECT = re.compile(_PHRASE.replace("(?:", "("))
_RELATION = re.compile(rf" ({_any(list(_KEY_OF))})(?= a )")
_SENTENCE = re.compile(
    rf"(?:{_any(list(OPENINGS))}){_PHRASE}"
    rf"(?: (?:{_any(list(_KEY_OF))}) {_PHRASE}(?:(?:{_any(list(_LINKS))}) (?:{_any(list(_KEY_OF))}) {_PHRASE})*)?\."
)
