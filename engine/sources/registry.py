"""The kinds of source, as a table: a further kind is one reader in its own file and one row here."""

from collections.abc import Callable
from pathlib import Path

from engine.errors import StrataError, UsageError
from engine.sources.coco import read_coco
from engine.sources.folder import read_folder
from engine.sources.karpathy import read_karpathy
from engine.sources.parquet import read_parquet
from engine.sources.recognise import recognise
from engine.sources.records import Source
from engine.sources.winoground import read_winoground

__all__ = ["SOURCES", "read_source"]

SOURCES: dict[str, Callable[[Path | None, Path | None, str | None], Source]] = {
    "coco": read_coco,
    "folder": read_folder,
    "karpathy": read_karpathy,
    "parquet": read_parquet,
    "winoground": read_winoground,
}
"""Readers by the name that ``--source`` takes; each is called with annotations, images and split, and refuses
the options that it has no use for."""


def read_source(
    kind: str, *, annotations: Path | None = None, images: Path | None = None, split: str | None = None
) -> Source:
    """Read all images of a source, without opening any of them.

    Parameters
    ----------
    kind
        A key of `SOURCES`.
    annotations
        The annotation file, where the kind has one.
    images
        Folder that the images' paths are relative to; None where the kind embeds its images.
    split
        Part of the source, where the kind has splits.

    Raises
    ------
    UsageError
        If the kind is unknown or the options do not fit it.
    StrataError
        If the files do not fit the kind. Where they look like another kind, the message says which.
    """
    if kind not in SOURCES:
        raise UsageError(f"the source '{kind}' is unknown; --source takes {', '.join(SOURCES)}")
    try:
        return SOURCES[kind](annotations, images, split)
    except StrataError as error:
        path = annotations or images
        likeness = recognise(path)
        if likeness is None or likeness.kind == kind:
            raise
        raise type(error)(f"{error}. {path} looks like {likeness.what}: {likeness.advice}") from error
