import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest

from engine.errors import StrataError, UsageError
from engine.sources import SOURCES, read_source
from engine.sources.recognise import recognise
from tests.engine.sources.builders import (
    winoground_items,
    write_coco,
    write_folder,
    write_image,
    write_karpathy,
    write_parquet,
    write_winoground,
    write_winoground_parquet,
)

GENERIC = {"image": [{"bytes": b"x", "path": "a.png"}], "caption": ["a"]}


def write_kinds(folder: Path) -> dict[str, tuple[str, Path]]:
    """A file of every kind: what its hint says, and where it lies."""
    write_folder(folder / "images", ["a.png"], ['{"file_name": "a.png", "caption": "x"}'])
    write_winoground_parquet(folder / "wino/test-00000-of-00001.parquet", winoground_items(1))
    return {
        "coco": ("COCO captions: use --source coco", write_coco(folder / "coco")[0]),
        "karpathy": ("a Karpathy split: use --source karpathy", write_karpathy(folder / "karpathy")[0]),
        "winoground": (
            "Winoground's examples.jsonl: use --source winoground",
            write_winoground(folder / "lines", winoground_items(2))[0],
        ),
        "winoground Parquet": ("the Parquet export of Winoground: use --source winoground", folder / "wino"),
        "folder": (
            "the captions.jsonl of a folder of images: use --source folder",
            folder / "images/captions.jsonl",
        ),
        "parquet": ("Parquet with images inside: use --source parquet", write_parquet(folder / "a.parquet", GENERIC)),
    }


@pytest.mark.parametrize("kind", sorted(SOURCES))
@pytest.mark.parametrize("given", ["coco", "karpathy", "winoground", "winoground Parquet", "folder", "parquet"])
def test_every_reader_names_every_other_kind(tmp_path: Path, kind: str, given: str) -> None:
    hint, path = write_kinds(tmp_path)[given]
    if given.split(maxsplit=1)[0] == kind:
        likeness = recognise(path)
        assert likeness is not None
        assert likeness.kind == kind
        return
    with pytest.raises(StrataError) as caught:
        read_source(kind, annotations=path, images=tmp_path / "images")
    assert str(caught.value).endswith(f"{path} looks like {hint}")


def test_no_hint_where_the_kind_is_right(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    with pytest.raises(StrataError) as caught:
        read_source("karpathy", annotations=annotations, images=root / "none")
    assert "looks like" not in str(caught.value)


def test_hint_keeps_the_kind_of_error(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    with pytest.raises(UsageError, match=r"no splits.*looks like a Karpathy split: use --source karpathy"):
        read_source("coco", annotations=annotations, images=root, split="val")


DETECTION = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "segmentation": []}
IMAGE = {"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}
CONTENTS = {
    "COCO's object annotations": json.dumps({"images": [IMAGE], "annotations": [DETECTION]}),
    "COCO's list of test images": json.dumps({"info": {}, "images": [IMAGE], "categories": []}),
    "COCO results": json.dumps([{"image_id": 1, "caption": "a result"}]),
    "a file of prompts: name it with --prompts": json.dumps({"mine": "What is this?"}),
    "a table in text (CSV": "image,caption\na.jpg,x\n",
    "a web page": "\n<!DOCTYPE html><html>no access</html>",
    "a Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "a Karpathy split": "\ufeff" + json.dumps({"images": [{"filename": "a.jpg", "sentids": [1]}]}, indent=1),
    "Winoground's examples.jsonl": json.dumps(winoground_items(1)[0]),
    "the captions.jsonl": '{"file_name": "a.jpg", "captions": ["x"]}',
}


@pytest.mark.parametrize("what", CONTENTS)
def test_text_files(tmp_path: Path, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(CONTENTS[what], encoding="utf-8")
    likeness = recognise(path)
    assert likeness is not None
    assert f"{likeness.what}: {likeness.advice}".startswith(what)


def test_binary_files(tmp_path: Path) -> None:
    (tmp_path / "gzip").write_bytes(gzip.compress(b"{}"))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pa.OSFile(str(tmp_path / "arrow"), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("a", pa.int64())])):
        pass
    with pa.OSFile(str(tmp_path / "feather"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int64())])):
        pass
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    write_parquet(tmp_path / "parquet", {"a": [1]})
    expected = {
        "gzip": "a gzip archive",
        "zip": "a zip archive",
        "arrow": "an Arrow file",
        "feather": "an Arrow file",
        "pickle": "a pickle",
        "parquet": "Parquet without an image column",
    }
    for name, what in expected.items():
        likeness = recognise(tmp_path / name)
        assert likeness is not None
        assert likeness.what.startswith(what)
        assert likeness.kind is None


def test_folders(tmp_path: Path) -> None:
    annotations, _ = write_karpathy(tmp_path)
    with pytest.raises(StrataError, match=r"is a directory.*name the file itself \(dataset_coco.json\)"):
        read_source("karpathy", annotations=annotations.parent, images=tmp_path)
    write_image(tmp_path / "pictures/a.png")
    with pytest.raises(StrataError, match="looks like a folder of images: use --source folder"):
        read_source("coco", annotations=tmp_path / "pictures", images=tmp_path)
    write_parquet(tmp_path / "shards/val.parquet", GENERIC)
    with pytest.raises(StrataError, match=r"holds no image.*Parquet with images inside: use --source parquet"):
        read_source("folder", images=tmp_path / "shards")
    (tmp_path / "shards/train.parquet").write_text(CONTENTS["a Git LFS pointer"])
    with pytest.raises(StrataError, match=r"train.parquet is not a Parquet file.*of which train.parquet is a Git LFS"):
        read_source("parquet", annotations=tmp_path / "shards")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b"{", b"[" * 100_000, b"\xff\x00", b"hello"])
def test_what_looks_like_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert recognise(path) is None


def test_what_is_not_there(tmp_path: Path) -> None:
    assert recognise(None) is None
    assert recognise(tmp_path / "none") is None
    (tmp_path / "empty").mkdir()
    assert recognise(tmp_path / "empty") is None
