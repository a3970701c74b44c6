"""Pieces of any vocabulary as text that a figure can draw: no control characters, no characters that the font lacks."""

import functools
import unicodedata

from matplotlib import font_manager
from matplotlib.textpath import text_to_path

__all__ = ["drawable", "fit", "text_width"]

_MISSING = "□"
_SIZE = 100


def drawable(text: str) -> str:
    """Replace what cannot be drawn. The result is no mathtext: draw it with ``parse_math=False``."""
    return "".join(character if _has_glyph(character) else _MISSING for character in text)


def fit(text: str, most: int) -> str:
    """Cut a text that is longer than so many characters, and show that it was."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@functools.cache
def text_width(text: str, weight: str) -> float:
    """Width of a text, of the size of its letters."""
    font = font_manager.FontProperties(weight=weight, size=_SIZE)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / _SIZE


@functools.cache
def _has_glyph(character: str) -> bool:
    if character == " ":
        return True
    if unicodedata.category(character)[0] in "CMZ":  # controls, marks without their letter, blanks of other kinds
        return False
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return bool(font.get_char_index(ord(character)))
