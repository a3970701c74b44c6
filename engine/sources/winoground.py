"""Source ``winoground``: items of two images and two captions, as ``examples.jsonl`` or as its Parquet export.

An item is two images, each with its own caption as the only reference: ``{id}-0`` has ``image_0`` with ``caption_0``,
``{id}-1`` has ``image_1`` with ``caption_1``. Both layouts give the same ids, so that ``--limit`` takes the same
images, and both images have the item's id as `ImageRecord.item_id`. Tags and other keys are ignored. An item with one
image missing is refused: an item of which only half is extracted would look like any other.

In ``examples.jsonl`` images are names without extension of the PNG files in the image folder (a name that ends in an
image's extension is taken as it is). In Parquet they are structs ``{bytes, path}``; one without bytes is a file at its
path, below ``--images`` or else beside the Parquet file. An embedded image is known by the path in its struct where
that is a plain relative one, else as ``<shard>#<row>.<column>``, rows counted from 0.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from engine.inputs import InputFile, name_few
from engine.sources.folder import EXTENSIONS
from engine.sources.image_column import Embedded, is_image_type, is_text_type, place_of, read_cells
from engine.sources.images import ImageFolder
from engine.sources.options import check_images, refuse_split, require_annotations, require_images
from engine.sources.parquet_images import ParquetImages
from engine.sources.records import ImageReader, ImageRecord, Source, relative_uri
from engine.sources.shards import Shard, find_shards, footers_sha256, is_parquet, open_shard, row_words

__all__ = ["read_winoground"]

SIDES = (0, 1)
FORMAT = (
    'Winoground, as examples.jsonl with lines {"id", "image_0", "image_1", "caption_0", "caption_1", …} or as Parquet '
    "with these columns"
)


class Half(NamedTuple):
    """One image of an item: the words that point to it, its record, and where it is read."""

    where: str
    record: ImageRecord
    place: Embedded | Path


def read_winoground(annotations: Path | None, images: Path | None, split: str | None) -> Source:
    """Read Winoground.

    Parameters
    ----------
    annotations
        ``examples.jsonl``, a Parquet file or a folder of shards; required.
    images
        Folder of the image files; required for ``examples.jsonl``, and for Parquet only where it names images
        instead of embedding them.
    split
        Must be None: Winoground is one test set.

    Raises
    ------
    UsageError
        If ``annotations`` is None, ``split`` is not, or ``images`` is None for ``examples.jsonl``.
    StrataError
        If the file is missing or malformed, an item occurs twice, or one of its images or captions is missing.
    """
    refuse_split("winoground", split)
    path = require_annotations("winoground", annotations)
    if path.is_dir() or is_parquet(path):
        return _read_shards(path, images)
    root = require_images("winoground", images)
    file = InputFile(path, "annotation file", FORMAT, "--annotations")
    data = file.read()
    halves = [half for where, row in file.lines(data) for half in _halves_of_line(file, where, row, root)]
    records = _check(file, halves)
    return Source("winoground", ImageFolder(root), records, hashlib.sha256(data).hexdigest(), ())


def _halves_of_line(file: InputFile, where: str, row: object, root: Path) -> Iterator[Half]:
    fields = file.json_object(where, row, ("id", "caption_0", "caption_1"))
    item = file.identifier(where, "id", fields["id"])
    for side in SIDES:
        key = f"image_{side}"
        name = fields.get(key)
        if name is None:
            raise file.error(f"has no '{key}' for item {item} {where}; an item needs both images")
        try:
            uri = relative_uri(name)
        except ValueError as error:
            raise file.error(f"is refused, because '{key}' of item {item} {where} {error}") from error
        if Path(uri).suffix.lower() not in EXTENSIONS:
            uri += ".png"
        yield Half(where, _record(file, where, item, side, uri=uri, caption=fields[f"caption_{side}"]), root)


def _record(file: InputFile, where: str, item: str, side: int, *, uri: str, caption: object) -> ImageRecord:
    text = file.text(where, f"caption_{side}", caption)
    if not text:
        raise file.error(f"has a blank 'caption_{side}' for item {item} {where}")
    return ImageRecord(f"{item}-{side}", uri, (text,), item)


def _read_shards(path: Path, images: Path | None) -> Source:
    found = find_shards(path, InputFile(path, "Parquet source", FORMAT, "--annotations"))
    shards = [open_shard(name, InputFile(at, "Parquet file", FORMAT, "--annotations")) for name, at in found.items()]
    halves = [half for shard in shards for half in _halves_of_shard(shard, images)]
    records = _check(InputFile(path, "Parquet source", FORMAT, "--annotations"), halves)
    reader: ImageReader = ParquetImages(path, {half.record.image_id: half.place for half in halves})
    return Source("winoground", reader, records, footers_sha256(shards), ())


def _halves_of_shard(shard: Shard, images: Path | None) -> Iterator[Half]:
    types = {field.name: field.type for field in shard.schema}
    for side in SIDES:
        if not is_image_type(types.get(f"image_{side}", pa.null())):
            raise shard.file.error(f"has no image column 'image_{side}'; its columns are {shard.describe_columns()}")
        if not is_text_type(types.get(f"caption_{side}", pa.null())):
            raise shard.file.error(
                f"has no caption column 'caption_{side}'; its columns are {shard.describe_columns()}"
            )
    if "id" not in types:
        raise shard.file.error(f"has no column 'id'; its columns are {shard.describe_columns()}")
    cells = [read_cells(shard, f"image_{side}") for side in SIDES]
    captions = [shard.column(f"caption_{side}") for side in SIDES]
    for number, value in enumerate(shard.column("id")):
        where = row_words(number)
        item = shard.file.identifier(where, "id", value)
        for side in SIDES:
            column = f"image_{side}"
            embedded = Embedded(shard, column, number)
            try:
                uri, place = place_of(cells[side][number], embedded, images, name=f"{shard.name}#{number}.{column}")
            except ValueError as error:
                raise shard.file.error(f"is refused, because '{column}' of item {item} {where} {error}") from error
            yield Half(where, _record(shard.file, where, item, side, uri=uri, caption=captions[side][number]), place)


def _check(file: InputFile, halves: list[Half]) -> tuple[ImageRecord, ...]:
    """Refuse items that occur twice and images that are files and not there."""
    if not halves:
        raise file.error("holds no item")
    records: dict[str, ImageRecord] = {}
    for half in halves:
        record = half.record
        if records.setdefault(record.image_id, record) is not record:
            raise file.error(f"has the item {record.item_id} twice (again {half.where})")
    files = [(half, half.place) for half in halves if isinstance(half.place, Path)]
    for root in dict.fromkeys(place for _, place in files):
        check_images(root, [half.record for half, place in files if place == root])
    missing = [half for half, place in files if not (place / half.record.uri).is_file()]
    if missing:
        named = name_few(f"item {half.record.item_id} {half.where}: {half.record.uri}" for half in missing)
        raise file.error(
            f"names {len(missing)} images that do not exist ({named}); an item needs both images, so check --images, "
            "or take the item out"
        )
    return tuple(records.values())
