"""Source ``coco``: the official captions files of COCO 2014 and 2017, and whatever is written in their format.

``{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}``; other keys are ignored. Ids may
be integers or strings. An image keeps its captions in ascending order of annotation id (integers by value, then
strings), whatever their order in the file. An image without captions is kept, and counted in a warning.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from engine.errors import StrataError, UsageError
from engine.inputs import InputFile, is_text, name_few
from engine.sources.images import ImageFolder
from engine.sources.records import ImageRecord, Source, check_images, refuse_split, relative_uri

__all__ = ["read_coco"]

FORMAT = "the official COCO captions format {images: [{id, file_name}], annotations: [{id, image_id, caption}]}"
DETECTION_KEYS = frozenset({"bbox", "segmentation", "category_id", "keypoints"})


class Caption(NamedTuple):
    """One caption with what orders it: the annotation id as number and text, then the caption itself."""

    number: float
    name: str
    text: str


def read_coco(annotations: Path | None, images: Path, split: str | None) -> Source:
    """Read a captions file.

    Parameters
    ----------
    annotations
        The captions file; required.
    images
        Folder that every ``file_name`` is relative to.
    split
        Must be None: each split has a file of its own.

    Raises
    ------
    UsageError
        If ``annotations`` is None or ``split`` is not.
    StrataError
        If the file is missing, malformed or of another kind, names an image twice, an image outside the root or one
        that it does not list, or if no image exists at all.
    """
    refuse_split("coco", split)
    if annotations is None:
        raise UsageError("the source 'coco' has its captions in a file; name it with --annotations")
    file = InputFile(annotations, "annotation file", FORMAT, "--annotations")
    data = file.read()
    image_rows, annotation_rows = _sections(file, file.parse(data))
    uris = _uris(file, image_rows)
    captions, blank = _captions(file, annotation_rows, uris)
    records = tuple(
        ImageRecord(image_id, uri, tuple(caption.text for caption in sorted(captions[image_id])))
        for image_id, uri in uris.items()
    )
    check_images(images, records)
    bare = sum(not record.references for record in records)
    warnings = []
    if bare:
        warnings.append(f"{bare} of {len(records)} images of {annotations} have no caption; they are kept without one")
    if blank:
        warnings.append(f"{blank} captions of {annotations} are blank; they are left out")
    return Source("coco", ImageFolder(images), records, hashlib.sha256(data).hexdigest(), tuple(warnings))


def _sections(file: InputFile, document: object) -> tuple[list[object], list[object]]:
    """Find the two lists, or say what the file is instead."""
    if not isinstance(document, dict):
        raise file.error(f"holds a JSON {'list' if isinstance(document, list) else 'value'} at its top, not an object")
    image_rows = document.get("images")
    if not isinstance(image_rows, list):
        raise file.error("has no list 'images'")
    if any(isinstance(row, dict) and "sentences" in row for row in image_rows[:1]):
        raise file.error("looks like a Karpathy split (captions stand under images[].sentences), another kind of file")
    annotation_rows = document.get("annotations")
    if not isinstance(annotation_rows, list):
        raise file.error("has no list 'annotations'")
    if not image_rows:
        raise file.error("lists no image")
    return image_rows, annotation_rows


def _rows(file: InputFile, rows: list[object], section: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """Yield each row with the words that point to it in a message; it has every key."""
    for index, row in enumerate(rows):
        where = f"{section}[{index}]"
        if not isinstance(row, dict):
            raise file.error(f"holds {row!r:.80} at {where}, not an object")
        for key in keys:
            if key not in row:
                if key == "caption" and DETECTION_KEYS & row.keys():
                    raise file.error(
                        f"holds object annotations ({where} has {name_few(sorted(DETECTION_KEYS & row.keys()))} and no "
                        "caption), as COCO's instances files do; the captions_*.json of the same download is needed"
                    )
                raise file.error(f"has no '{key}' at {where}")
        yield where, row


def _identifier(file: InputFile, where: str, key: str, value: object) -> str:
    """Turn an id into text; a number and the string that spells it are one id."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip() and is_text(value):
        return value
    raise file.error(f"has {value!r:.80} as '{key}' at {where}, neither an integer nor text")


def _uris(file: InputFile, rows: list[object]) -> dict[str, str]:
    """Map image id to path below the root, in the order of the file."""
    uris: dict[str, str] = {}
    for where, row in _rows(file, rows, "images", ("id", "file_name")):
        image_id = _identifier(file, where, "id", row["id"])
        if image_id in uris:
            raise file.error(f"lists the image id {image_id} twice (again at {where})")
        try:
            uris[image_id] = relative_uri(row["file_name"])
        except ValueError as error:
            raise file.error(f"is refused, because 'file_name' at {where} {error}") from error
    return uris


def _captions(file: InputFile, rows: list[object], uris: Mapping[str, str]) -> tuple[dict[str, list[Caption]], int]:
    """Collect the captions of each image, and count the blank ones."""
    captions: dict[str, list[Caption]] = {image_id: [] for image_id in uris}
    strangers: dict[str, None] = {}
    blank = 0
    for where, row in _rows(file, rows, "annotations", ("id", "image_id", "caption")):
        image_id = _identifier(file, where, "image_id", row["image_id"])
        name = _identifier(file, where, "id", row["id"])
        if not is_text(row["caption"]):
            raise file.error(f"has {row['caption']!r:.80} as 'caption' at {where}, not text")
        text = row["caption"].strip()
        if image_id not in captions:
            strangers[image_id] = None
        elif text:
            number = row["id"] if isinstance(row["id"], int) else float("inf")
            captions[image_id].append(Caption(number, name, text))
        else:
            blank += 1
    if strangers:
        raise StrataError(
            f"the annotation file {file.path} has captions for {len(strangers)} image ids that its 'images' do not "
            f"list ({name_few(strangers)}); the two lists must come from the same release"
        )
    return captions, blank
