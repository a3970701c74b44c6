"""Where a key stands in its sequence, so that sequences of different length can be laid over each other.

Four segments, each key in exactly one:

========  ================================================================  =======================
segment   keys                                                              offset
========  ================================================================  =======================
before    before the first image token                                      0, 1, … from the start
image     from the first to the last image token, what lies between too     0, 1, … from the first
after     behind the image, up to the last token of an instruction,         0, 1, … from the image
          target or generation
end       the rest: the template's end                                      …, -2, -1 from the end
========  ================================================================  =======================

So patches lie on patches, instructions begin together, and the template's last words, where the model reads off its
answer, lie on each other however long an instruction was.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.vocabulary import ROLE_CODES

__all__ = ["SEGMENTS", "KeyPlaces", "find_sinks", "key_places"]

SEGMENTS = ("before", "image", "after", "end")

_CONTENT = [ROLE_CODES[role] for role in ("instruction", "target", "generated")]


class KeyPlaces(NamedTuple):
    """Segment, a place in `SEGMENTS`, and offset in it of every key of a sequence, both (key) int64."""

    segment: NDArray[np.int64]
    offset: NDArray[np.int64]


def key_places(roles: NDArray[np.integer]) -> KeyPlaces:
    """Place the keys of one sample.

    Parameters
    ----------
    roles : array (key) of int
        Role codes of all positions of the sample, in order. Without an image token, all keys lie behind the image.
    """
    count = len(roles)
    positions = np.arange(count)
    images = np.flatnonzero(roles == ROLE_CODES["image"])
    first, last = (int(images[0]), int(images[-1])) if len(images) else (0, -1)
    content = np.flatnonzero(np.isin(roles, _CONTENT) & (positions > last))
    tail = int(content[-1]) + 1 if len(content) else last + 1
    segment = np.digitize(positions, [first, last + 1, tail])
    index = positions - np.array([0, first, last + 1, count])[segment]
    return KeyPlaces(segment, index)


def find_sinks(roles: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Say which keys of one sample are sinks: position 0, and the first special token, which is BOS where there is one.

    Parameters
    ----------
    roles : array (key) of int
        Role codes.
    """
    sinks = np.zeros(len(roles), bool)
    sinks[:1] = True
    sinks[np.flatnonzero(roles == ROLE_CODES["special"])[:1]] = True
    return sinks
