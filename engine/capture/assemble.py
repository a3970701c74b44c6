"""Which captured rows make up a part's token axis, and where each sample finds its segments.

Pure: images with their samples in, ranges and segments out. Bad samples leave no row behind; a prefix stays as long as
one sample of its image is good.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["CapturedSample", "Segment", "TokenAxis", "lay_token_axis"]


class Segment(NamedTuple):
    """A contiguous run [start, stop) on the token axis."""

    start: int
    stop: int


class CapturedSample(NamedTuple):
    """One sample as it was captured.

    Attributes
    ----------
    image
        Number of its image within the part.
    prefix
        Rows of the shared prefix; captured with the first sample of the image only, at the head of its rows.
    own
        Rows of its own, after the prefix.
    good
        Whether its states are usable.
    """

    image: int
    prefix: int
    own: int
    good: bool


class TokenAxis(NamedTuple):
    """The token axis of a part.

    Attributes
    ----------
    rows
        Captured row of every token of the axis, (token,) int64; None where every captured row is kept in order.
    segments
        Per good sample its segments, in order.
    length
        Number of tokens.
    """

    rows: np.ndarray | None
    segments: tuple[tuple[Segment, ...], ...]
    length: int


def lay_token_axis(samples: Sequence[CapturedSample]) -> TokenAxis:
    """Lay the kept rows of a part one after the other.

    Parameters
    ----------
    samples
        In the order of capture; samples of one image are neighbours.
    """
    images_kept = {sample.image for sample in samples if sample.good}
    ranges: list[np.ndarray] = []
    segments: list[tuple[Segment, ...]] = []
    prefix_of_image: dict[int, Segment] = {}
    captured = length = 0

    def keep(count: int, wanted: bool) -> Segment:
        nonlocal captured, length
        segment = Segment(length, length + count)
        if wanted:
            ranges.append(np.arange(captured, captured + count))
            length += count
        captured += count
        return segment

    for sample in samples:
        if sample.prefix and sample.image not in prefix_of_image:
            prefix_of_image[sample.image] = keep(sample.prefix, sample.image in images_kept)
        own = keep(sample.own, sample.good)
        if sample.good:
            shared = (prefix_of_image[sample.image],) if sample.prefix else ()
            segments.append(tuple(segment for segment in (*shared, own) if segment.stop > segment.start))
    rows = np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)
    return TokenAxis(None if length == captured else rows, tuple(segments), length)
