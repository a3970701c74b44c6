"""Source ``coco``: the official captions files of COCO 2014 and 2017, and whatever is written in their format.

``{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}``; other keys are ignored. Ids may
be integers or strings. An image keeps its captions in ascending order of annotation id (integers by value, then
strings), whatever their order in the file. An image without captions is kept, and counted in a warning.
"""

import hashlib
from collections.abc import Mapping
from math import inf
from pathlib import Path

from engine.errors import StrataError
from engine.inputs import InputFile, name_few
from engine.sources.captions import caption_notes
from engine.sources.images import ImageFolder
from engine.sources.options import check_images, refuse_split, require_annotations, require_images
from engine.sources.records import ImageRecord, Source, relative_uri

__all__ = ["read_coco"]

FORMAT = "the official COCO captions format {images: [{id, file_name}], annotations: [{id, image_id, caption}]}"


def read_coco(annotations: Path | None, images: Path | None, split: str | None) -> Source:
    """Read a captions file.

    Parameters
    ----------
    annotations
        The captions file; required.
    images
        Folder that every ``file_name`` is relative to; required.
    split
        Must be None: each split has a file of its own.

    Raises
    ------
    UsageError
        If ``annotations`` or ``images`` is None or ``split`` is not.
    StrataError
        If the file is missing, malformed or of another kind, names an image twice, an image outside the root or one
        that it does not list, or if no image exists at all.
    """
    refuse_split("coco", split)
    path, root = require_annotations("coco", annotations), require_images("coco", images)
    file = InputFile(path, "annotation file", FORMAT, "--annotations")
    data = file.read()
    image_rows, annotation_rows = _sections(file, file.parse(data))
    uris = _uris(file, image_rows)
    captions, blank = _captions(file, annotation_rows, uris)
    records = tuple(ImageRecord(image_id, uri, tuple(captions[image_id])) for image_id, uri in uris.items())
    check_images(root, records)
    notes = caption_notes(records, blank=blank, path=path)
    return Source("coco", ImageFolder(root), records, hashlib.sha256(data).hexdigest(), notes)


def _sections(file: InputFile, document: object) -> tuple[list[object], list[object]]:
    """Find the two lists."""
    if not isinstance(document, dict):
        raise file.error(f"holds a JSON {'list' if isinstance(document, list) else 'value'} at its top, not an object")
    image_rows = document.get("images")
    if not isinstance(image_rows, list):
        raise file.error("has no list 'images'")
    annotation_rows = document.get("annotations")
    if not isinstance(annotation_rows, list):
        raise file.error("has no list 'annotations'")
    if not image_rows:
        raise file.error("lists no image")
    return image_rows, annotation_rows


def _uris(file: InputFile, rows: list[object]) -> dict[str, str]:
    """Map image id to path below the root, in the order of the file."""
    names = file.column(rows, "images", "file_name")
    uris: dict[str, str] = {}
    for index, image_id in enumerate(file.identifiers(rows, "images", "id")):
        if image_id in uris:
            raise file.error(f"lists the image id {image_id} twice (again at images[{index}])")
        try:
            uris[image_id] = relative_uri(names[index])
        except ValueError as error:
            raise file.error(f"is refused, because 'file_name' at images[{index}] {error}") from error
    return uris


def _captions(file: InputFile, rows: list[object], uris: Mapping[str, str]) -> tuple[dict[str, list[str]], int]:
    """Collect the captions of each image, in order, and count the blank ones."""
    captions: dict[str, list[str]] = {image_id: [] for image_id in uris}
    strangers: dict[str, None] = {}
    blank = 0
    image_ids = file.identifiers(rows, "annotations", "image_id")
    names = file.identifiers(rows, "annotations", "id")
    numbers = [value if isinstance(value, int) else inf for value in file.column(rows, "annotations", "id")]
    texts = file.texts(rows, "annotations", "caption")
    for _, _, text, image_id in sorted(zip(numbers, names, texts, image_ids, strict=True)):
        if image_id not in captions:
            strangers[image_id] = None
        elif text:
            captions[image_id].append(text)
        else:
            blank += 1
    if strangers:
        raise StrataError(
            f"the annotation file {file.path} has captions for {len(strangers)} image ids that its 'images' do not "
            f"list ({name_few(strangers)}); the two lists must come from the same release"
        )
    return captions, blank
