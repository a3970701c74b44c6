"""Parquet files as Hugging Face datasets writes them: one file, or a folder of shards whose names say their split.

A folder is searched with all its subfolders for ``*.parquet``; what starts with a dot is left out. Shards come in the
order of their paths. The split of a shard is

- ``val`` of ``val-00000-of-00002.parquet``, with or without a hash at the end of the name,
- else the folder it lies in, where that is a usual name of a split or the file's own name is a bare number
  (``val/0000.parquet``),
- else the file's name (``val.parquet``).

Only what is asked for is read: columns by name, row by row group, and of a file's schema its footer.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.inputs import InputFile
from engine.sources.options import choose_splits

__all__ = ["MAGIC", "Shard", "find_shards", "footers_sha256", "is_parquet", "open_shard", "row_words", "select_splits"]

MAGIC = b"PAR1"
"""The first and last bytes of every Parquet file whose footer is not encrypted."""

USUAL_SPLITS = frozenset(
    {"train", "training", "restval", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
)
SHARD_NAME = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d+-of-\d+(?:-[0-9a-f]+)?\.parquet", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes
    ----------
    file
        The file, with the format it should have.
    name
        Its path below the folder that was searched, with ``/``; the bare file name where one file was named.
    metadata, schema
        From its footer.
    footer_sha256
        Of the footer's bytes.
    """

    file: InputFile
    name: str
    metadata: pq.FileMetaData
    schema: pa.Schema
    footer_sha256: bytes

    def column(self, name: str) -> list[Any]:
        """Read a column, of a struct's field as ``image.path``, as Python values.

        Raises
        ------
        StrataError
            If the file is damaged, or a text in it is not UTF-8; the message names the row.
        """
        try:
            with pq.ParquetFile(self.file.path, metadata=self.metadata) as parquet:
                values = parquet.read(columns=[name], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as error:
            raise self.file.error(f"cannot be read in the column '{name}' ({error})") from error
        try:
            return values.to_pylist()
        except UnicodeDecodeError as error:
            row = next(row for row, value in enumerate(values) if not _is_utf8(value))
            raise self.file.error(f"has text that is not UTF-8 as '{name}' {row_words(row)}") from error

    def stream(self, leaf: str, group: int, rows: int) -> Iterator[pa.StructArray]:
        """Read a struct's field out of one row group, so many rows at a time, page by page whatever the group's size.

        Raises
        ------
        OSError, pyarrow.ArrowException
            If the file is gone or damaged.
        """
        # With pre_buffer, or without a buffer, pyarrow loads the whole column of the group first.
        with pq.ParquetFile(self.file.path, metadata=self.metadata, pre_buffer=False, buffer_size=2**16) as parquet:
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=[leaf], use_threads=False):
                yield batch.column(0)

    def describe_columns(self) -> str:
        """List the columns with their types, for a message."""
        return ", ".join(f"{field.name} ({field.type})" for field in self.schema)


def find_shards(path: Path, file: InputFile) -> dict[str, Path]:
    """Find the Parquet files at ``path``, by name and in order, without opening any.

    Parameters
    ----------
    path
        A Parquet file, or a folder that holds some.
    file
        ``path`` with the format that is expected, for messages.

    Raises
    ------
    StrataError
        If there is nothing at ``path``, or a folder without a Parquet file.
    """
    if not path.exists():
        raise file.error("does not exist")
    if not path.is_dir():
        return {path.name: path}
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(".parquet") and not name.startswith("."):
                shard = Path(folder, name)
                found[shard.relative_to(path).as_posix()] = shard
    if not found:
        raise file.error("is a folder without a .parquet file")
    return dict(sorted(found.items()))


def select_splits(
    shards: dict[str, Path], split: str | None, *, path: Path
) -> tuple[dict[str, Path], tuple[str, ...] | None, tuple[str, ...]]:
    """Choose the shards of the splits that ``--split`` names.

    Returns
    -------
    tuple
        The shards, the chosen splits (None for all), and what the user should know.

    Raises
    ------
    UsageError
        If no shard is of such a split; the message lists those that there are.
    """
    splits = {name: _split_of(PurePosixPath(name)) for name in shards}
    sizes = Counter(filter(None, splits.values()))
    chosen = choose_splits(split, sizes, path=path, unit="files")
    if chosen is not None:
        return {name: shard for name, shard in shards.items() if splits[name] in chosen}, chosen, ()
    if len(sizes) < 2:
        return shards, None, ()
    listed = ", ".join(f"{name} ({count} files)" for name, count in sorted(sizes.items()))
    return shards, None, (f"no --split is given, so all splits of {path} are read: {listed}",)


def _split_of(name: PurePosixPath) -> str | None:
    match = SHARD_NAME.fullmatch(name.name)
    if match:
        return match["split"]
    bare_number = not any(map(str.isalpha, name.stem))
    folder = name.parent.name
    if folder and (bare_number or folder in USUAL_SPLITS):
        return folder
    return None if bare_number else name.stem


def open_shard(name: str, file: InputFile) -> Shard:
    """Read a shard's footer.

    Raises
    ------
    StrataError
        If the file cannot be read or is no Parquet file.
    """
    try:
        footer = hashlib.sha256(_read_footer(file)).digest()
        with pq.ParquetFile(file.path) as parquet:
            return Shard(file, name, parquet.metadata, parquet.schema_arrow, footer)
    except (OSError, pa.ArrowException) as error:
        raise file.error(f"cannot be read as Parquet ({error})") from error


def _read_footer(file: InputFile) -> bytes:
    """Read the metadata at the end of the file, before its length and the magic."""
    with file.path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if stream.read(4) != MAGIC:
            raise file.error("is not a Parquet file")
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > size - 12:
            raise file.error("is a Parquet file that ends early, as after a download that broke off")
        stream.seek(size - 8 - length)
        return stream.read(length)


def footers_sha256(shards: Sequence[Shard]) -> str:
    """Hash the SHA-256 digests of the footers of shards, in their order.

    A footer has the schema, the sizes of all row groups and the least and greatest values of columns. Hashing the
    images as well would mean to read gigabytes before every run.
    """
    return hashlib.sha256(b"".join(shard.footer_sha256 for shard in shards)).hexdigest()


def is_parquet(path: Path) -> bool:
    """Tell whether a file starts as Parquet files do; False where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def row_words(number: int) -> str:
    """Say in a message where a row is; Parquet readers count from 0, people from 1."""
    return f"in row {number} (counted from 0)"


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True
