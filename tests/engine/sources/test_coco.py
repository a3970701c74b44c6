import hashlib
import json
import random
from pathlib import Path

import pytest

from engine.errors import StrataError, UsageError
from engine.sources import ImageFolder, ImageRecord, read_source
from tests.engine.sources.builders import ANNOTATIONS, IMAGES, Row, write_coco


def read(annotations: Path, images: Path):
    return read_source("coco", annotations=annotations, images=images)


def refusal(annotations: Path, images: Path) -> str:
    with pytest.raises(StrataError) as caught:
        read(annotations, images)
    message = str(caught.value)
    assert str(annotations) in message
    return message


def test_official_file(tmp_path: Path) -> None:
    annotations, root = write_coco(tmp_path)
    source = read(annotations, root)
    assert source.kind == "coco"
    assert source.images == ImageFolder(root)
    assert source.warnings == ()
    assert source.annotations_sha256 == hashlib.sha256(annotations.read_bytes()).hexdigest()
    assert source.records == (
        ImageRecord("391895", "COCO_val2014_000000391895.jpg", ("A man on a moped",)),
        ImageRecord("139", "000000000139.jpg", ("a living room", "A room with a table.")),
        ImageRecord("seven", "sub/seven.jpg", ("first", "second")),
    )


def test_order_of_the_file_changes_no_record(tmp_path: Path) -> None:
    before = read(*write_coco(tmp_path / "a"))
    images, annotations = list(IMAGES), list(ANNOTATIONS)
    random.Random(3).shuffle(annotations)
    images.reverse()
    after = read(*write_coco(tmp_path / "b", images, annotations))
    assert after.records == before.records[::-1]


def test_annotation_id_used_twice_has_one_order(tmp_path: Path) -> None:
    rows: list[Row] = [{"id": 1, "image_id": 139, "caption": text} for text in ("b", "a")]
    first = read(*write_coco(tmp_path / "a", IMAGES[1:2], rows))
    second = read(*write_coco(tmp_path / "b", IMAGES[1:2], rows[::-1]))
    assert first.records == second.records


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    annotations, root = write_coco(tmp_path)
    plain = read(annotations, root)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert read(annotations, root).records == plain.records


def test_images_without_caption_are_kept_and_counted(tmp_path: Path) -> None:
    annotations, root = write_coco(
        tmp_path, IMAGES, [*ANNOTATIONS[:2], {"id": 3, "image_id": "seven", "caption": " \n"}]
    )
    source = read(annotations, root)
    assert [len(record.references) for record in source.records] == [0, 2, 0]
    assert len(source.warnings) == 2
    assert "2 of 3 images" in source.warnings[0]
    assert "1 captions" in source.warnings[1]


def test_number_and_text_are_one_id(tmp_path: Path) -> None:
    source = read(*write_coco(tmp_path, IMAGES[1:2], [{"id": 1, "image_id": "139", "caption": "x"}]))
    assert source.records[0].references == ("x",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"images": [],\n "annotations": [}', "not JSON (line 2"),
        (b'{"images": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "list"),
        (b'[{"image_id": 1, "caption": "a result"}]', "list"),
        (b"3", "value"),
        (b"{}", "no list 'images'"),
        (b'{"images": {}, "annotations": []}', "no list 'images'"),
        (b'{"images": [{"id": 1, "file_name": "a.jpg"}]}', "no list 'annotations'"),
        (b'{"images": [], "annotations": []}', "lists no image"),
        (b'{"images": [{"filename": "a.jpg", "sentences": [], "split": "val"}], "dataset": "coco"}', "Karpathy"),
    ],
)
def test_malformed_file(tmp_path: Path, content: bytes, words: str) -> None:
    annotations, root = write_coco(tmp_path)
    annotations.write_bytes(content)
    message = refusal(annotations, root)
    assert words in message
    assert "official COCO captions format" in message
    assert "--annotations" in message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    _, root = write_coco(tmp_path)
    assert "does not exist" in refusal(tmp_path / "no.json", root)
    assert "is a directory" in refusal(root, root)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"file_name": "a.jpg"}, "no 'id' at images[1]"),
        ({"id": 5}, "no 'file_name' at images[1]"),
        ("a.jpg", "not an object"),
        ({"id": 1.5, "file_name": "a.jpg"}, "1.5 as 'id'"),
        ({"id": True, "file_name": "a.jpg"}, "True as 'id'"),
        ({"id": None, "file_name": "a.jpg"}, "None as 'id'"),
        ({"id": " ", "file_name": "a.jpg"}, "' ' as 'id'"),
        ({"id": "139", "file_name": "a.jpg"}, "image id 139 twice"),
        ({"id": 5, "file_name": 7}, "not a path"),
        ({"id": 5, "file_name": ""}, "not a path"),
        ({"id": 5, "file_name": "a\0.jpg"}, "not a path"),
        ({"id": 5, "file_name": "a\ud83d.jpg"}, "not a path"),
        ({"id": 5, "file_name": "/etc/passwd"}, "absolute"),
        ({"id": 5, "file_name": "C:\\a.jpg"}, "absolute"),
        ({"id": 5, "file_name": "x/../../a.jpg"}, "leaves the image root"),
        ({"id": 5, "file_name": "..\\a.jpg"}, "leaves the image root"),
    ],
)
def test_bad_image_row(tmp_path: Path, image: object, words: str) -> None:
    assert words in refusal(*write_coco(tmp_path, [IMAGES[1], image], ANNOTATIONS[:2]))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"image_id": 139, "caption": "x"}, "no 'id' at annotations[1]"),
        ({"id": 1, "caption": "x"}, "no 'image_id' at annotations[1]"),
        ({"id": 1, "image_id": 139}, "no 'caption' at annotations[1]"),
        ({"id": 1, "image_id": 139, "caption": ["x"]}, "not text"),
        ({"id": 1, "image_id": 139, "caption": "\ud83d"}, "not text"),
        ({"id": 1, "image_id": [139], "caption": "x"}, "'image_id'"),
        (None, "not an object"),
    ],
)
def test_bad_annotation_row(tmp_path: Path, annotation: object, words: str) -> None:
    assert words in refusal(*write_coco(tmp_path, IMAGES[1:2], [ANNOTATIONS[0], annotation]))


def test_captions_of_unlisted_images_are_named(tmp_path: Path) -> None:
    strangers = [{"id": number, "image_id": 9000 + number, "caption": "x"} for number in range(5)]
    message = refusal(*write_coco(tmp_path, IMAGES, [*ANNOTATIONS, *strangers]))
    assert "5 image ids" in message
    assert "9000, 9001, 9002 and 2 more" in message


def test_image_root(tmp_path: Path) -> None:
    annotations, root = write_coco(tmp_path)
    (root / "000000000139.jpg").unlink()
    assert len(read(annotations, root).records) == 3
    (tmp_path / "elsewhere").mkdir()
    assert "none of the 3 images" in _message(annotations, tmp_path / "elsewhere")
    assert "does not exist" in _message(annotations, tmp_path / "nowhere")
    assert "not a directory" in _message(annotations, annotations)


def _message(annotations: Path, root: Path) -> str:
    with pytest.raises(StrataError, match="--images") as caught:
        read(annotations, root)
    return str(caught.value)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    annotations, root = write_coco(tmp_path)
    with pytest.raises(UsageError, match="--annotations"):
        read_source("coco", annotations=None, images=root)
    with pytest.raises(UsageError, match="--split val"):
        read_source("coco", annotations=annotations, images=root, split="val")
    with pytest.raises(UsageError, match="coco, folder, karpathy, parquet, winoground"):
        read_source("imagenet", annotations=annotations, images=root)


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    annotations, root = write_coco(tmp_path)
    plain = read(annotations, root)
    document = json.loads(annotations.read_text())
    document["licenses"] = [{"id": 1}]
    document["images"][0]["flickr_url"] = None
    annotations.write_text(json.dumps(document))
    assert read(annotations, root).records == plain.records
