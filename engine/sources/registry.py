"""The kinds of source, as a table: a further kind is one reader in its own file and one row here."""

from collections.abc import Callable
from pathlib import Path

from engine.errors import UsageError
from engine.sources.coco import read_coco
from engine.sources.folder import read_folder
from engine.sources.records import Source

__all__ = ["SOURCES", "read_source"]

SOURCES: dict[str, Callable[[Path | None, Path, str | None], Source]] = {
    "coco": read_coco,
    "folder": read_folder,
}
"""Readers by the name that ``--source`` takes; each is called with annotations, images and split, and refuses
the options that it has no use for."""


def read_source(kind: str, *, annotations: Path | None, images: Path, split: str | None = None) -> Source:
    """Read all images of a source, without opening any of them.

    Parameters
    ----------
    kind
        A key of `SOURCES`.
    annotations
        The annotation file, where the kind has one.
    images
        Folder that the images' paths are relative to.
    split
        Part of the source, where the kind has splits.

    Raises
    ------
    UsageError
        If the kind is unknown or the options do not fit it.
    StrataError
        If the files do not fit the kind.
    """
    if kind not in SOURCES:
        raise UsageError(f"the source '{kind}' is unknown; --source takes {', '.join(SOURCES)}")
    return SOURCES[kind](annotations, images, split)
