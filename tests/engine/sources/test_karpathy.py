import hashlib
from pathlib import Path

import pytest

from engine.errors import StrataError, UsageError
from engine.sources import ImageFolder, ImageRecord, Source, read_source
from tests.engine.sources.builders import FLICKR, KARPATHY, Row, write_karpathy


def read(annotations: Path, images: Path, split: str | None = None) -> Source:
    return read_source("karpathy", annotations=annotations, images=images, split=split)


def refusal(annotations: Path, images: Path) -> str:
    with pytest.raises(StrataError) as caught:
        read(annotations, images)
    assert str(annotations) in str(caught.value)
    return str(caught.value)


def changed(**fields: object) -> list[Row]:
    """The first published row with other fields; None leaves one out."""
    row = {key: value for key, value in (KARPATHY[0] | fields).items() if value is not ...}
    return [row, *KARPATHY[1:]]


def test_coco_file(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    source = read(annotations, root)
    assert (source.kind, source.images, source.split) == ("karpathy", ImageFolder(root), None)
    assert source.annotations_sha256 == hashlib.sha256(annotations.read_bytes()).hexdigest()
    assert source.records == (
        ImageRecord("522418", "val2014/COCO_val2014_000000522418.jpg", ("A woman cutting a cake.", "A cake")),
        ImageRecord(
            "318219",
            "val2014/COCO_val2014_000000318219.jpg",
            ("caption 6", "caption 5", "caption 4", "caption 3", "caption 2", "caption 1"),
        ),
        ImageRecord("57870", "train2014/COCO_train2014_000000057870.jpg", ("a table",)),
    )
    assert "all splits" in source.warnings[0]
    assert "restval (1 images), train (1 images), val (1 images)" in source.warnings[0]
    assert "1 captions" in source.warnings[1]


def test_flickr_file_has_neither_filepath_nor_cocoid(tmp_path: Path) -> None:
    source = read(*write_karpathy(tmp_path, FLICKR, dataset="flickr30k"), split="test")
    assert [record.image_id for record in source.records] == ["2", "3"]
    assert source.records[0].uri == "1000092792.jpg"
    assert source.records[0].references == ("Two young guys 2",)
    assert source.warnings == ()


@pytest.mark.parametrize(
    ("split", "ids", "stored"),
    [
        ("val", ["522418"], "val"),
        ("train,restval", ["318219", "57870"], "restval,train"),
        (" restval , train,train", ["318219", "57870"], "restval,train"),
        ("val,train,restval", ["522418", "318219", "57870"], "restval,train,val"),
        ("test", None, "it has restval (1 images), train (1 images), val (1 images)"),
        ("val,dev", None, "no split 'dev'"),
        ("val2014", None, "no split 'val2014'"),
        (",", None, "names no split"),
    ],
)
def test_split(tmp_path: Path, split: str, ids: list[str] | None, stored: str) -> None:
    annotations, root = write_karpathy(tmp_path)
    if ids is None:
        with pytest.raises(UsageError) as caught:
            read(annotations, root, split)
        assert stored in str(caught.value)
        return
    source = read(annotations, root, split)
    assert [record.image_id for record in source.records] == ids
    assert source.split == stored


def test_only_images_of_the_chosen_splits_count(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    (root / "val2014/COCO_val2014_000000522418.jpg").unlink()
    assert len(read(annotations, root).records) == 3
    with pytest.raises(StrataError, match="none of the 1 images"):
        read(annotations, root, "val")


@pytest.mark.parametrize(
    ("fields", "image_id", "uri"),
    [
        ({"cocoid": ...}, "1", "val2014/COCO_val2014_000000522418.jpg"),
        ({"cocoid": None}, "1", "val2014/COCO_val2014_000000522418.jpg"),
        ({"cocoid": "abc", "imgid": ...}, "abc", "val2014/COCO_val2014_000000522418.jpg"),
        ({"filepath": ...}, "522418", "COCO_val2014_000000522418.jpg"),
        ({"filepath": None}, "522418", "COCO_val2014_000000522418.jpg"),
        ({"filepath": ""}, "522418", "COCO_val2014_000000522418.jpg"),
    ],
)
def test_optional_keys(tmp_path: Path, fields: Row, image_id: str, uri: str) -> None:
    record = read(*write_karpathy(tmp_path, changed(**fields))).records[0]
    assert (record.image_id, record.uri) == (image_id, uri)


def test_image_without_captions_is_kept_and_counted(tmp_path: Path) -> None:
    source = read(*write_karpathy(tmp_path, changed(sentences=[])), split="val")
    assert source.records[0].references == ()
    assert "1 of 1 images" in source.warnings[0]


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    plain = read(annotations, root)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert read(annotations, root).records == plain.records


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"filename": ...}, "no 'filename' at images[0]"),
        ({"split": ...}, "no 'split' at images[0]"),
        ({"sentences": ...}, "no 'sentences' at images[0]"),
        ({"cocoid": ..., "imgid": ...}, "neither 'cocoid' nor 'imgid' at images[0]"),
        ({"cocoid": 5.0}, "5.0 as 'cocoid' at images[0], neither an integer nor text"),
        ({"cocoid": ..., "imgid": True}, "True as 'imgid' at images[0]"),
        ({"cocoid": 57870}, "image id 57870 twice (again at images[2])"),
        ({"split": 3}, "3 as 'split' at images[0], not text"),
        ({"split": " "}, "blank 'split' at images[0]"),
        ({"filepath": 3}, "3 as 'filepath' at images[0], not text"),
        ({"filename": None}, "the path of the image at images[0] is None, not a path"),
        ({"filename": "/a.jpg"}, "absolute"),
        ({"filepath": "/data", "filename": "a.jpg"}, "absolute"),
        ({"filepath": "..", "filename": "a.jpg"}, "leaves the image root"),
        ({"filename": "../a.jpg"}, "leaves the image root"),
        ({"sentences": {"raw": "x"}}, "as 'sentences' at images[0], not a list"),
        ({"sentences": ["x"]}, "'x' at images[0].sentences[0], not an object"),
        ({"sentences": [{"raw": "x"}, {"tokens": ["x"]}]}, "no 'raw' at images[0].sentences[1]"),
        ({"sentences": [{"raw": None}]}, "None as 'raw' at images[0].sentences[0], not text"),
        ({"sentences": [{"raw": "\ud83d"}]}, "not text"),
    ],
)
def test_bad_row(tmp_path: Path, fields: Row, words: str) -> None:
    message = refusal(*write_karpathy(tmp_path, changed(**fields)))
    assert words in message
    assert "expected a Karpathy split" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b'{"images":\n[}', "not JSON (line 2"),
        (b"[1]", "list"),
        (b"{}", "no list 'images'"),
        (b'{"images": []}', "lists no image"),
        (b'{"images": [3]}', "3 at images[0], not an object"),
    ],
)
def test_malformed_file(tmp_path: Path, content: bytes, words: str) -> None:
    annotations, root = write_karpathy(tmp_path)
    annotations.write_bytes(content)
    assert words in refusal(annotations, root)


def test_required_options(tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path)
    with pytest.raises(UsageError, match="'karpathy' has its captions in a file; name it with --annotations"):
        read_source("karpathy", images=root)
    with pytest.raises(UsageError, match="images in files of their own"):
        read_source("karpathy", annotations=annotations)
    with pytest.raises(StrataError, match="is a directory"):
        read(root, root)
    with pytest.raises(StrataError, match=r"none of the 3 images .*--images must be the folder"):
        read(annotations, root / "val2014")
