"""Source ``karpathy``: the caption splits of Karpathy and Fei-Fei, ``dataset_coco.json`` and its Flickr siblings.

``{"images": [{"filepath", "filename", "split", "cocoid", "imgid", "sentences": [{"raw"}]}]}``; other keys are ignored.
The Flickr files have neither ``filepath`` nor ``cocoid``. The path of an image is ``filepath/filename`` where there is
a ``filepath``, its id is ``cocoid`` where there is one and ``imgid`` otherwise. Its captions are the ``raw`` texts in
the order of the file (some images have six). Splits are ``train``, ``restval``, ``val`` and ``test``; ``--split`` takes
one or several, and all images are read without it.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from engine.inputs import InputFile
from engine.sources.captions import caption_notes
from engine.sources.images import ImageFolder
from engine.sources.options import check_images, choose_splits, require_annotations, require_images
from engine.sources.records import ImageRecord, Source, relative_uri

__all__ = ["read_karpathy"]

FORMAT = "a Karpathy split {images: [{filename, split, cocoid or imgid, sentences: [{raw}]}]}"
ID_KEYS = ("cocoid", "imgid")


class Entry(NamedTuple):
    """One entry of the file: the image, its split, and how many of its captions are blank."""

    record: ImageRecord
    split: str
    blank: int


def read_karpathy(annotations: Path | None, images: Path | None, split: str | None) -> Source:
    """Read a Karpathy split.

    Parameters
    ----------
    annotations
        The JSON file; required.
    images
        Folder that the paths of images start from, for COCO the one that holds ``train2014`` and ``val2014``; required.
    split
        One or several split names with commas between; None takes all.

    Raises
    ------
    UsageError
        If ``annotations`` or ``images`` is None, or the file has no such split.
    StrataError
        If the file is missing or malformed, names an image twice or one outside the root, or no image exists at all.
    """
    path, root = require_annotations("karpathy", annotations), require_images("karpathy", images)
    file = InputFile(path, "annotation file", FORMAT, "--annotations")
    data = file.read()
    entries = _entries(file, file.parse(data))
    sizes = Counter(entry.split for entry in entries)
    chosen = choose_splits(split, sizes, path=path, unit="images")
    kept = [entry for entry in entries if chosen is None or entry.split in chosen]
    records = tuple(entry.record for entry in kept)
    check_images(root, records)
    notes = caption_notes(records, blank=sum(entry.blank for entry in kept), path=path)
    if chosen is None and len(sizes) > 1:
        listed = ", ".join(f"{name} ({count} images)" for name, count in sorted(sizes.items()))
        notes = (f"no --split is given, so all splits of {path} are read: {listed}", *notes)
    return Source(
        "karpathy",
        ImageFolder(root),
        records,
        hashlib.sha256(data).hexdigest(),
        notes,
        None if chosen is None else ",".join(chosen),
    )


def _entries(file: InputFile, document: object) -> list[Entry]:
    if not isinstance(document, dict):
        raise file.error(f"holds a JSON {'list' if isinstance(document, list) else 'value'} at its top, not an object")
    rows = document.get("images")
    if not isinstance(rows, list):
        raise file.error("has no list 'images'")
    if not rows:
        raise file.error("lists no image")
    entries: dict[str, Entry] = {}
    for where, row in file.objects(rows, "images", ("filename", "split", "sentences")):
        entry = _entry(file, where, row)
        image_id = entry.record.image_id
        if image_id in entries:
            raise file.error(f"lists the image id {image_id} twice (again {where})")
        entries[image_id] = entry
    return list(entries.values())


def _entry(file: InputFile, where: str, row: dict[str, object]) -> Entry:
    id_key = next((key for key in ID_KEYS if row.get(key) is not None), None)
    if id_key is None:
        raise file.error(f"has neither 'cocoid' nor 'imgid' {where}")
    split = file.text(where, "split", row["split"])
    if not split:
        raise file.error(f"has a blank 'split' {where}")
    captions = _captions(file, where, row["sentences"])
    kept = tuple(filter(None, captions))
    record = ImageRecord(file.identifier(where, id_key, row[id_key]), _uri(file, where, row), kept)
    return Entry(record, split, len(captions) - len(kept))


def _uri(file: InputFile, where: str, row: dict[str, object]) -> str:
    name, folder = row["filename"], row.get("filepath")
    if folder is not None:
        folder = file.text(where, "filepath", folder)
    try:
        uri = relative_uri(name)
        return relative_uri(f"{folder}/{uri}") if folder else uri
    except ValueError as error:
        raise file.error(f"is refused, because the path of the image {where} {error}") from error


def _captions(file: InputFile, where: str, sentences: object) -> list[str]:
    if not isinstance(sentences, list):
        raise file.error(f"has {sentences!r:.80} as 'sentences' {where}, not a list")
    section = f"{where.removeprefix('at ')}.sentences"
    return [file.text(place, "raw", row["raw"]) for place, row in file.objects(sentences, section, ("raw",))]
