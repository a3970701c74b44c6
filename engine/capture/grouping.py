"""Which samples go into the model together: pure."""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

from engine.capture.part import SampleSource

__all__ = ["batches_of"]

Item = TypeVar("Item")


def batches_of(samples: Iterable[SampleSource], size: int, *, whole_images: bool) -> Iterator[list[SampleSource]]:
    """Cut samples into batches, in order.

    Parameters
    ----------
    samples
        Those of an image follow each other.
    size
        Samples of a batch; the last may have fewer.
    whole_images
        Let ``size`` count images, each with all its samples.
    """
    if not whole_images:
        return _cut(samples, size)
    images = (list(of_image) for _, of_image in groupby(samples, lambda sample: sample.image_number))
    return ([sample for image in batch for sample in image] for batch in _cut(images, size))


def _cut(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
