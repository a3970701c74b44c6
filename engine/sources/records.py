"""What every source comes down to: images with their captions, in the order of the source."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Protocol

from engine.errors import StrataError
from engine.inputs import is_text

__all__ = [
    "ImageReader",
    "ImageRecord",
    "Source",
    "UnreadableImage",
    "relative_uri",
]

# What the path classes would hand back unchanged, which they take long over for each of very many names.
_PLAIN = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class ImageRecord:
    """One image of a source.

    Attributes
    ----------
    image_id
        Unique within the source. May hold ``/``: a sample id is split at its last one.
    uri
        Path below the image root, with ``/`` between its parts.
    references
        Ground-truth captions, stripped; empty where the source has none.
    item_id
        What is drawn as one when images are resampled, for a source whose images are not independent; None where the
        image is.
    """

    image_id: str
    uri: str
    references: tuple[str, ...]
    item_id: str | None = None


class UnreadableImage(StrataError):  # noqa: N818 - says what the image is
    """An image that cannot be read or decoded; ``reason`` says why in a few words, without a path."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the image {name} cannot be read: {reason}; replace the file or take it out of the source")
        self.reason = reason


class ImageReader(Protocol):
    """Where the bytes of a source's images are; its text names the place. Reads from several threads at once."""

    def read(self, record: ImageRecord) -> bytes:
        """Return the encoded image.

        Raises
        ------
        UnreadableImage
            If there are no such bytes.
        """


@dataclass(frozen=True)
class Source:
    """All images of a source, before any is chosen.

    Attributes
    ----------
    kind
        Name of the source in the registry.
    images
        Gives the encoded image of a record.
    records
        One per image, in the order of the annotation file or of the sorted paths.
    annotations_sha256
        Of the annotation file's bytes, for Parquet of its footers, in hexadecimal; None where there is no such file.
    warnings
        What the user should know and need not act on.
    split
        The splits that were asked for, in ascending order with commas between; None where all images were taken.
    """

    kind: str
    images: ImageReader
    records: tuple[ImageRecord, ...]
    annotations_sha256: str | None
    warnings: tuple[str, ...]
    split: str | None = None


def relative_uri(name: object) -> str:
    """Normalise a file name of an annotation file to a path below the image root.

    Both separators count when looking for a way out of the root, so that a file is refused on every system alike.

    Raises
    ------
    ValueError
        If it is not text, is empty, is absolute or leaves the root; the message completes "… 'file_name' …".
    """
    if not isinstance(name, str) or not is_text(name) or "\0" in name:
        raise ValueError(f"is {name!r}, not a path")
    if _PLAIN.fullmatch(name):
        return name
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.anchor:
        raise ValueError(f"is the absolute path {name!r}; it must be relative to the image root")
    if ".." in windows.parts:
        raise ValueError(f"is {name!r}, which leaves the image root")
    if not path.parts:
        raise ValueError(f"is {name!r}, not a path")
    return str(path)
