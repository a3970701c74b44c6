import hashlib
import os
import sys
from pathlib import Path

import pytest

from engine.errors import StrataError, UsageError
from engine.sources import ImageFolder, ImageRecord, Source, read_source
from tests.engine.sources.builders import write_folder


def read(root: Path, annotations: Path | None = None) -> Source:
    return read_source("folder", annotations=annotations, images=root)


def refusal(root: Path, annotations: Path | None = None) -> str:
    with pytest.raises(StrataError) as caught:
        read(root, annotations)
    return str(caught.value)


def test_images_alone(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a.x/y.webp", "c.tar.jpg", "A.gif", ".hidden.png", ".cache/t.png"]
    root = write_folder(tmp_path, names)
    (root / "notes.txt").write_text("not an image")
    source = read(root)
    uris = ["A.gif", "a.x/y.webp", "a/z.jpeg", "b.PNG", "c.tar.jpg"]
    assert [record.uri for record in source.records] == uris
    assert [record.image_id for record in source.records] == ["A", "a.x/y", "a/z", "b", "c.tar"]
    assert all(record.references == () for record in source.records)
    assert (source.kind, source.images, source.annotations_sha256, source.warnings) == (
        "folder",
        ImageFolder(root),
        None,
        (),
    )


def test_captions(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"file_name": "b.png", "caption": " one\\n"}',
        "",
        '  {"file_name": "./a/z.png", "captions": ["two\u2028lines", "three"], "width": 3}\r',
        '{"file_name": "b.png", "caption": "four"}',
        " ",
    ]
    root = write_folder(tmp_path, ["a/z.png", "b.png", "c.png"], lines)
    source = read(root)
    assert source.records == (
        ImageRecord("a/z", "a/z.png", ("two\u2028lines", "three")),
        ImageRecord("b", "b.png", ("one", "four")),
        ImageRecord("c", "c.png", ()),
    )
    assert source.annotations_sha256 == hashlib.sha256((root / "captions.jsonl").read_bytes()).hexdigest()
    assert len(source.warnings) == 1
    assert "1 of 3 images" in source.warnings[0]


def test_captions_named_by_option_win(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", ["a.png"], ["broken"])
    other = tmp_path / "other.jsonl"
    other.write_text('{"file_name": "a.png", "caption": "x"}')
    source = read(root, other)
    assert source.records[0].references == ("x",)
    assert source.annotations_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON (line 2"),
        ('{"file_name": "a.png", "caption": "\udcff"}', "not UTF-8"),
        ("[]", "line 2"),
        ('{"caption": "x"}', "line 2"),
        ('{"file_name": "a.png"}', "either 'caption' or 'captions' in line 2"),
        ('{"file_name": "a.png", "caption": "x", "captions": ["x"]}', "either 'caption' or 'captions' in line 2"),
        ('{"file_name": "a.png", "caption": 3}', "not text in line 2"),
        ('{"file_name": "a.png", "captions": "x"}', "not text in line 2"),
        ('{"file_name": "a.png", "captions": [null]}', "not text in line 2"),
        ('{"file_name": "a.png", "caption": " "}', "blank caption in line 2"),
        ('{"file_name": "b.png", "caption": "x"}', "b.png in line 2, which is not among the 1 images"),
        ('{"file_name": 5, "caption": "x"}', "in line 2 is 5, not a path"),
        ('{"file_name": "/a.png", "caption": "x"}', "absolute"),
        ('{"file_name": "../a.png", "caption": "x"}', "leaves the image root"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    root = write_folder(tmp_path, ["a.png"])
    good = '{"file_name": "a.png", "caption": "fine"}'
    (root / "captions.jsonl").write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    assert words in refusal(root)


def test_two_files_with_one_id(tmp_path: Path) -> None:
    message = refusal(write_folder(tmp_path, ["s/a.png", "s/a.jpg"]))
    assert "s/a.jpg and s/a.png" in message
    assert "image id s/a " in message


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x")
    assert "holds no image" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "no")
    assert "not a directory" in refusal(tmp_path / "readme.md")


def test_captions_file_missing_or_empty(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ["a.png"], [])
    assert "does not exist" in refusal(root, tmp_path / "no.jsonl")
    assert "is empty" in refusal(root)
    assert "is a directory" in refusal(root, root)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has file names that are not UTF-8; elsewhere none can be made"
)
def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png"])
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert "not UTF-8" in refusal(tmp_path)


def test_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split test"):
        read_source("folder", annotations=None, images=write_folder(tmp_path, ["a.png"]), split="test")
