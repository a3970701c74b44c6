"""What a source demands of ``--annotations``, ``--images`` and ``--split``, refused in one voice."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.errors import StrataError, UsageError
from engine.inputs import name_few
from engine.sources.records import ImageRecord

__all__ = ["check_images", "check_root", "choose_splits", "refuse_split", "require_annotations", "require_images"]


def require_annotations(kind: str, annotations: Path | None) -> Path:
    """Refuse a missing ``--annotations`` for a source that is read from a file.

    Raises
    ------
    UsageError
        If it is None.
    """
    if annotations is None:
        raise UsageError(f"the source '{kind}' has its captions in a file; name it with --annotations")
    return annotations


def require_images(kind: str, images: Path | None) -> Path:
    """Refuse a missing ``--images`` for a source whose images are files of their own.

    Raises
    ------
    UsageError
        If it is None.
    """
    if images is None:
        raise UsageError(f"the source '{kind}' has its images in files of their own; name their folder with --images")
    return images


def refuse_split(kind: str, split: str | None) -> None:
    """Refuse ``--split`` for a kind of source that has none.

    Raises
    ------
    UsageError
        If ``split`` is not None.
    """
    if split is not None:
        raise UsageError(f"the source '{kind}' has no splits, so --split {split} chooses nothing; leave it out")


def choose_splits(split: str | None, sizes: Mapping[str, int], *, path: Path, unit: str) -> tuple[str, ...] | None:
    """Read ``--split``: one split, or several with commas between.

    Parameters
    ----------
    split
        As on the command line.
    sizes
        The splits that there are, with how much each holds.
    path, unit
        What has them, and what ``sizes`` counts, for the message.

    Returns
    -------
    tuple of str or None
        The splits in ascending order, so that their order in the option means nothing; None for all.

    Raises
    ------
    UsageError
        If no split is named, or one that there is not; the message lists those that there are.
    """
    if split is None:
        return None
    names = sorted({name.strip() for name in split.split(",")} - {""})
    if not names:
        raise UsageError(f"--split {split!r} names no split; write for example val, or train,restval")
    unknown = [name for name in names if name not in sizes]
    if unknown:
        listed = ", ".join(f"{name} ({count} {unit})" for name, count in sorted(sizes.items()))
        raise UsageError(
            f"--split {split}: {path} has no split '{unknown[0]}'; it has {listed or 'none, so leave --split out'}"
        )
    return tuple(names)


def check_root(root: Path) -> None:
    """Refuse an image root that is no directory.

    Raises
    ------
    StrataError
        If it is something else, or nothing.
    """
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise StrataError(f"the image folder {root} {state}; check --images")


def check_images(root: Path, records: Iterable[ImageRecord]) -> None:
    """Refuse an image root that holds none of the images.

    A single missing image is no reason to stop here, it is reported when its turn comes; all of them missing means
    that the option points to another folder. Looks no further than the first image that exists.

    Raises
    ------
    StrataError
        If ``root`` is no directory, or no record's file exists below it.
    """
    check_root(root)
    uris = [record.uri for record in records]
    if not any((root / uri).is_file() for uri in uris):
        raise StrataError(
            f"none of the {len(uris)} images of the annotation file exists below {root} (looked for {name_few(uris)}); "
            "--images must be the folder that these paths start from"
        )
