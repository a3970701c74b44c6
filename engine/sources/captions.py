"""Captions that are missing or blank: left out, and counted for the user."""

from collections.abc import Sequence
from pathlib import Path

from engine.sources.records import ImageRecord

__all__ = ["caption_notes"]


def caption_notes(records: Sequence[ImageRecord], *, blank: int, path: Path) -> tuple[str, ...]:
    """Say how many images have no caption, and how many captions were blank and left out.

    Parameters
    ----------
    records
        With their captions.
    blank
        Captions left out.
    path
        The annotation file.
    """
    notes = []
    bare = sum(not record.references for record in records)
    if bare:
        notes.append(f"{bare} of {len(records)} images of {path} have no caption; they are kept without one")
    if blank:
        notes.append(f"{blank} captions of {path} are blank; they are left out")
    return tuple(notes)
