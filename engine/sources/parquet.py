"""Source ``parquet``: image–caption tables in the layout of Hugging Face datasets, one Parquet file or many shards.

The images are the column ``image``, or the only column of structs ``{bytes, path}``. The captions are the first column
of `CAPTION_COLUMNS` that holds text or lists of text. The image ids are the first column of `ID_COLUMNS` that holds
integers or text; without one they are the images' paths where every row has another, and row numbers otherwise. Rows
with one image id are one image: its captions add up in the order of the rows. Captions that are null or blank are left
out and counted. Rows are counted from 0 within their file, as Parquet readers do.

An embedded image is known by the path in its struct where that is a plain relative one, else as ``<shard>#<row>``. An
image without bytes is a file at its path, below ``--images`` or else beside the Parquet file.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from engine.inputs import InputFile
from engine.sources.captions import caption_notes
from engine.sources.image_column import Cell, Embedded, is_image_type, is_text_type, place_of, read_cells
from engine.sources.options import check_images, require_annotations
from engine.sources.parquet_images import ParquetImages
from engine.sources.records import ImageRecord, Source, relative_uri
from engine.sources.shards import Shard, find_shards, footers_sha256, open_shard, row_words, select_splits

__all__ = ["CAPTION_COLUMNS", "ID_COLUMNS", "read_parquet"]

CAPTION_COLUMNS = ("caption", "captions", "text", "sentences_raw", "sentences", "alt_text")
"""Where captions are looked for, in this order."""

ID_COLUMNS = ("image_id", "cocoid", "img_id", "id")
"""Where image ids are looked for, in this order."""

FORMAT = (
    "the layout of Hugging Face datasets, an image column of structs {bytes, path} and a caption column "
    f"({', '.join(CAPTION_COLUMNS[:-1])} or {CAPTION_COLUMNS[-1]}: text or lists of text)"
)


class Columns(NamedTuple):
    """The columns that are read."""

    image: str
    caption: str
    image_id: str | None


class Row(NamedTuple):
    """One row: where it is, what it has of an image, the image's id where there is a column of them, its captions."""

    place: Embedded
    cell: Cell
    image_id: str | None
    captions: tuple[str | None, ...]


class Image(NamedTuple):
    """One image, with the captions of all its rows."""

    cell: Cell
    first: Embedded
    uri: str
    place: Embedded | Path
    captions: list[str]


def read_parquet(annotations: Path | None, images: Path | None, split: str | None) -> Source:
    """Read Parquet files; the bytes of images are left where they are.

    Parameters
    ----------
    annotations
        A Parquet file or a folder of shards; required.
    images
        Folder of images that are named and not embedded; None takes each Parquet file's own.
    split
        One or several split names with commas between, as file names have them; None takes all.

    Raises
    ------
    UsageError
        If ``annotations`` is None, or no file is of such a split.
    StrataError
        If a file is missing, damaged or no Parquet, has no image or caption column, a row has no id, neither bytes nor
        a path, or a path that leaves the folder, an id stands for two images, or no image exists at all.
    """
    path = require_annotations("parquet", annotations)
    file = InputFile(path, "Parquet source", FORMAT, "--annotations")
    found, chosen, notes = select_splits(find_shards(path, file), split, path=path)
    shards = [open_shard(name, InputFile(at, "Parquet file", FORMAT, "--annotations")) for name, at in found.items()]
    columns = _choose_columns(shards[0])
    rows = [row for shard in shards for row in _rows(shard, columns)]
    if not rows:
        raise file.error("holds no row")
    ids, id_name = _image_ids(rows, columns)
    merged = _merge(rows, ids, columns, images)
    records = tuple(ImageRecord(image_id, image.uri, tuple(image.captions)) for image_id, image in merged.items())
    _check_files(records, merged)
    blank = sum(not caption for row in rows for caption in row.captions)
    notes += (
        f"{path}: images are taken from the column '{columns.image}', captions from '{columns.caption}', image ids "
        f"from {id_name}; {len(rows)} rows are {len(records)} images",
        *caption_notes(records, blank=blank, path=path),
    )
    places = {image_id: image.place for image_id, image in merged.items()}
    joined = None if chosen is None else ",".join(chosen)
    return Source("parquet", ParquetImages(path, places), records, footers_sha256(shards), notes, joined)


def _choose_columns(shard: Shard) -> Columns:
    types = {field.name: field.type for field in shard.schema}
    structs = [name for name, kind in types.items() if is_image_type(kind)]
    image = "image" if "image" in structs else structs[0] if len(structs) == 1 else None
    if image is None:
        reason = f"has several image columns ({', '.join(structs)})" if structs else "has no image column"
        raise shard.file.error(f"{reason}; its columns are {shard.describe_columns()}")
    caption = next((name for name in CAPTION_COLUMNS if name in types and _holds_captions(types[name])), None)
    if caption is None:
        raise shard.file.error(f"has no caption column; its columns are {shard.describe_columns()}")
    image_id = next((name for name in ID_COLUMNS if name in types and _holds_ids(types[name])), None)
    return Columns(image, caption, image_id)


def _holds_captions(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_text_type(kind.value_type if lists else kind)


def _holds_ids(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or is_text_type(kind)


def _rows(shard: Shard, columns: Columns) -> list[Row]:
    if _choose_columns(shard) != columns:
        wanted = ", ".join(filter(None, columns))
        raise shard.file.error(
            f"has other columns than the first file, of which {wanted} are read; its columns are "
            f"{shard.describe_columns()}. Name one data set, or one split of it with --split"
        )
    captions = [(value,) if isinstance(value, str | None) else tuple(value) for value in shard.column(columns.caption)]
    ids = [None] * len(captions) if columns.image_id is None else shard.column(columns.image_id)
    rows = []
    for number, (cell, value, texts) in enumerate(zip(read_cells(shard, columns.image), ids, captions, strict=True)):
        image_id = None
        if columns.image_id is not None:
            image_id = shard.file.identifier(row_words(number), columns.image_id, value)
        stripped = tuple(text and text.strip() for text in texts)
        rows.append(Row(Embedded(shard, columns.image, number), cell, image_id, stripped))
    return rows


def _image_ids(rows: list[Row], columns: Columns) -> tuple[list[str], str]:
    """Give each row the id of its image, and say where the ids come from."""
    ids = [row.image_id for row in rows if row.image_id is not None]
    if columns.image_id is not None:
        return ids, f"'{columns.image_id}'"
    paths = [_plain_path(row.cell.path) for row in rows]
    distinct = list(dict.fromkeys(path for path in paths if path is not None))
    if len(distinct) == len(rows):
        return distinct, f"the paths in '{columns.image}'"
    return [str(number) for number in range(len(rows))], (
        f"the rows' numbers, because there is no column {', '.join(ID_COLUMNS[:-1])} or {ID_COLUMNS[-1]} and the paths "
        f"in '{columns.image}' are not all there and distinct: other shards or another order give images other ids"
    )


def _plain_path(path: str | None) -> str | None:
    try:
        return relative_uri(path)
    except ValueError:
        return None


def _merge(rows: list[Row], ids: list[str], columns: Columns, images: Path | None) -> dict[str, Image]:
    """Join the rows of each image, in their order; the first one says where the image is."""
    merged: dict[str, Image] = {}
    for row, image_id in zip(rows, ids, strict=True):
        file, number = row.place.shard.file, row.place.row
        try:
            uri, place = place_of(row.cell, row.place, images, name=f"{row.place.shard.name}#{number}")
        except ValueError as error:
            raise file.error(f"is refused, because '{columns.image}' {row_words(number)} {error}") from error
        image = merged.setdefault(image_id, Image(row.cell, row.place, uri, place, []))
        if image.cell.path != row.cell.path:
            raise file.error(
                f"has {row.cell.path} {row_words(number)} under the image id {image_id}, which stands for "
                f"{image.cell.path} in row {image.first.row} of {image.first.shard.name}; an id names one image"
            )
        image.captions.extend(filter(None, row.captions))
    return merged


def _check_files(records: tuple[ImageRecord, ...], merged: dict[str, Image]) -> None:
    """Refuse folders that hold none of the images that are files."""
    by_root: dict[Path, list[ImageRecord]] = {}
    for record in records:
        place = merged[record.image_id].place
        if isinstance(place, Path):
            by_root.setdefault(place, []).append(record)
    for root, files in by_root.items():
        check_images(root, files)
