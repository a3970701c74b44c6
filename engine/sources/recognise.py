"""What a file that was handed in as a source looks like, so that a refusal can say which kind it is.

Looks at the first bytes, the keys of JSON and the columns of Parquet, never at names: a file is what it holds. It is
asked only once a reader has refused the file, so it may read the whole of it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.inputs import name_few
from engine.sources.folder import EXTENSIONS
from engine.sources.image_column import is_image_type
from engine.sources.shards import MAGIC

__all__ = ["Likeness", "recognise"]

HEAD_BYTES = 4096
DETECTION_KEYS = frozenset({"bbox", "segmentation", "category_id", "keypoints"})


class Likeness(NamedTuple):
    """What something looks like.

    Attributes
    ----------
    what
        Completes "X looks like …".
    kind
        The source that reads it; None where none does.
    advice
        What to do about it.
    """

    what: str
    kind: str | None
    advice: str


def _source(what: str, kind: str) -> Likeness:
    return Likeness(what, kind, f"use --source {kind}")


ARROW = Likeness("an Arrow file of a datasets cache", None, "write it as Parquet with Dataset.to_parquet")
LEADING_BYTES: tuple[tuple[bytes, Likeness], ...] = (
    (b"PK\x03\x04", Likeness("a zip archive", None, "unpack it first")),
    (b"\x1f\x8b", Likeness("a gzip archive", None, "unpack it first")),
    (
        b"version https://git-lfs.github.com/spec/",
        Likeness("a Git LFS pointer, which stands for the real file", None, "fetch that with git lfs pull"),
    ),
    (b"ARROW1", ARROW),
    (b"\xff\xff\xff\xff", ARROW),
    (b"\x80\x04", Likeness("a pickle", None, "pickles can run code and are never read; export it as JSON or Parquet")),
    (b"<", Likeness("a web page or other markup", None, "the download gave something else than the file; repeat it")),
)


def recognise(path: Path | None) -> Likeness | None:
    """Say what a file or folder looks like.

    Parameters
    ----------
    path
        What was handed in; None where nothing was.

    Returns
    -------
    Likeness or None
        None where it looks like nothing that is known here, or cannot be read.
    """
    if path is None:
        return None
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except (OSError, ValueError, RecursionError, pa.ArrowException):
        return None


def _folder(path: Path) -> Likeness | None:
    shards = sorted(shard for shard in path.rglob("*.parquet") if shard.is_file())
    if shards:
        # One that is no Parquet file says more than those that are.
        odd = next((shard for shard in shards if _head(shard)[:4] != MAGIC), None)
        likeness = _file(odd or shards[0])
        if odd is None or likeness is None:
            return likeness
        return likeness._replace(what=f"a folder of Parquet files of which {odd.name} is {likeness.what}")
    if any(child.suffix.lower() in EXTENSIONS for child in path.iterdir()):
        return _source("a folder of images", "folder")
    tables = sorted(child.name for child in path.iterdir() if child.suffix in {".json", ".jsonl"})
    if tables:
        return Likeness("a folder that holds annotation files", None, f"name the file itself ({name_few(tables)})")
    return None


def _file(path: Path) -> Likeness | None:
    head = _head(path)
    if head.startswith(MAGIC):
        return _parquet(pq.read_schema(path))
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for leading, likeness in LEADING_BYTES:
        if text.startswith(leading):
            return likeness
    if text.startswith((b"{", b"[")):
        return _json(path.read_bytes())
    first_line = text.partition(b"\n")[0]
    if b"\0" not in head and (b"," in first_line or b"\t" in first_line):
        return Likeness(
            "a table in text (CSV or tab-separated)", None, "write its captions as captions.jsonl for --source folder"
        )
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _parquet(schema: pa.Schema) -> Likeness:
    names = set(schema.names)
    # One of its columns is enough: its own reader names those that are missing, any other would take half of the items.
    if names & {"image_0", "image_1"}:
        return _source("the Parquet export of Winoground", "winoground")
    if any(is_image_type(field.type) for field in schema):
        return _source("Parquet with images inside", "parquet")
    return Likeness("Parquet without an image column", None, "take the release of this data set that has its images")


def _json(data: bytes) -> Likeness | None:
    first, _, rest = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if isinstance(row, dict) and (likeness := _first_match(row, LINES)):
        return likeness
    document = row if row is not None and not rest.strip() else json.loads(data)
    if isinstance(document, list):
        return _first_match(document[0], LIST_ROWS) if document and isinstance(document[0], dict) else None
    return _first_match(document, DOCUMENTS) if isinstance(document, dict) else None


Test = Callable[[dict[str, Any]], bool]


def _first_match(document: dict[str, Any], table: tuple[tuple[Test, Likeness], ...]) -> Likeness | None:
    return next((likeness for test, likeness in table if test(document)), None)


def _first_keys(document: dict[str, Any], section: str) -> frozenset[str]:
    """Keys of the first row of a list; none where there is no such list or row."""
    rows = document.get(section)
    row = rows[0] if isinstance(rows, list) and rows else None
    return frozenset(row) if isinstance(row, dict) else frozenset()


def _has_keys(*keys: str) -> Test:
    return lambda row: row.keys() >= set(keys)


LINES: tuple[tuple[Test, Likeness], ...] = (
    (_has_keys("image_0", "caption_0"), _source("Winoground's examples.jsonl", "winoground")),
    (
        lambda row: "file_name" in row and ("caption" in row or "captions" in row),
        _source("the captions.jsonl of a folder of images", "folder"),
    ),
)
"""What a single line of JSON lines looks like."""

LIST_ROWS: tuple[tuple[Test, Likeness], ...] = (
    (
        _has_keys("image_id", "caption"),
        Likeness("COCO results, captions that a model made", None, "the captions_*.json of the annotations is needed"),
    ),
)
"""What the first row of a JSON list looks like."""

DOCUMENTS: tuple[tuple[Test, Likeness], ...] = (
    (
        lambda document: bool(_first_keys(document, "images") & {"sentences", "sentids"}),
        _source("a Karpathy split", "karpathy"),
    ),
    (
        lambda document: "caption" in _first_keys(document, "annotations"),
        _source("COCO captions", "coco"),
    ),
    (
        lambda document: bool(_first_keys(document, "annotations") & DETECTION_KEYS),
        Likeness(
            "COCO's object annotations (an instances or keypoints file)",
            None,
            "the captions_*.json of the same download is needed",
        ),
    ),
    (
        lambda document: "file_name" in _first_keys(document, "images") and not document.get("annotations"),
        Likeness("COCO's list of test images, without captions", None, "take --source folder for images alone"),
    ),
    (
        lambda document: bool(document) and all(isinstance(text, str) for text in document.values()),
        Likeness("a file of prompts", None, "name it with --prompts"),
    ),
)
"""What a JSON object looks like."""
