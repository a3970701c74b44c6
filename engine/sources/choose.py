"""Which images a run takes: an order that depends on seed, source kind and image id alone.

Because every image has its place by its own hash, 600 images are a subset of 5000 on every machine, whatever the order
of the annotation file.
"""

import hashlib
from collections.abc import Iterable

from engine.errors import UsageError
from engine.sources.records import ImageRecord

__all__ = ["choose"]


def choose(records: Iterable[ImageRecord], *, kind: str, seed: int, limit: int | None) -> tuple[ImageRecord, ...]:
    """Order images by the sha256 of ``"{seed}/{kind}/{image_id}"`` and take the first ``limit``.

    Parameters
    ----------
    records
        With distinct image ids, in any order.
    kind
        The source kind, as in `Source.kind`.
    seed
        Another seed, another order.
    limit
        How many images; None takes all, in the same order.

    Raises
    ------
    UsageError
        If ``limit`` is not positive, or larger than the number of records: who asks for 600 images of 500 would
        otherwise report a sample size that never was.
    """
    if limit is not None and limit <= 0:
        raise UsageError(f"--limit {limit} takes no image; it must be a positive number of images")

    def place(record: ImageRecord) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}/{kind}/{record.image_id}".encode()).digest(), record.image_id

    ordered = tuple(sorted(records, key=place))
    if limit is not None and limit > len(ordered):
        raise UsageError(
            f"--limit {limit} asks for more images than the source has ({len(ordered)}); leave it out to take all"
        )
    return ordered[:limit]
