"""Where each sample of a part finds its tokens on the part's token axis.

Pure: counts in, segments out. Rows lie on the axis in the order of the samples; the prefix that the samples of an image
share lies before the own rows of the first of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Segment", "StoredSample", "TokenAxis", "lay_token_axis"]


class Segment(NamedTuple):
    """A contiguous run [start, stop) on the token axis."""

    start: int
    stop: int


class StoredSample(NamedTuple):
    """A stored sample: the number of its image within the part, rows of the shared prefix, rows of its own."""

    image: int
    prefix: int
    own: int


class TokenAxis(NamedTuple):
    """The token axis of a part: per sample its segments, in order, none of them empty; number of tokens."""

    segments: tuple[tuple[Segment, ...], ...]
    length: int


def lay_token_axis(samples: Sequence[StoredSample]) -> TokenAxis:
    """Lay the rows of a part one after the other.

    Parameters
    ----------
    samples
        In the order of capture.
    """
    segments: list[tuple[Segment, ...]] = []
    prefix_of_image: dict[int, Segment] = {}
    length = 0
    for sample in samples:
        if sample.image not in prefix_of_image:
            prefix_of_image[sample.image] = Segment(length, length + sample.prefix)
            length += sample.prefix
        own = Segment(length, length + sample.own)
        length += sample.own
        segments.append(tuple(run for run in (prefix_of_image[sample.image], own) if run.stop > run.start))
    return TokenAxis(tuple(segments), length)
