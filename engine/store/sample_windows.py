"""Which stretch of a part's token axis to read for which samples, so that none is read for every sample anew.

Pure. The tokens of one image, its prefix and what its prompts add, lie next to each other, so a window is one image, or
as many neighbouring ones as fit into one chunk, which a read decodes in any case.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["SampleWindow", "plan_windows"]


class SampleWindow(NamedTuple):
    """Tokens [start, stop) and the samples that lie in them: numbers of rows, ascending."""

    start: int
    stop: int
    rows: tuple[int, ...]


def plan_windows(images: Sequence[str], segments: Sequence[Sequence[tuple[int, int]]], step: int) -> list[SampleWindow]:
    """Cover the segments of all samples.

    Parameters
    ----------
    images
        Per sample, the id of its image.
    segments
        Per sample, its (start, stop) pairs on the token axis; may be empty.
    step
        Tokens of a chunk: images share a window as long as it is no longer.
    """
    by_image: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        by_image.setdefault(image, []).append(row)
    alone = []
    for rows in by_image.values():
        ends = [end for row in rows for pair in segments[row] for end in pair]
        alone.append(SampleWindow(min(ends, default=0), max(ends, default=0), tuple(rows)))
    windows: list[SampleWindow] = []
    for window in sorted(alone):
        joined = _join(windows[-1], window) if windows else window
        if windows and joined.stop - joined.start <= step:
            windows[-1] = joined
        else:
            windows.append(window)
    return windows


def _join(left: SampleWindow, right: SampleWindow) -> SampleWindow:
    return SampleWindow(left.start, max(left.stop, right.stop), tuple(sorted((*left.rows, *right.rows))))
