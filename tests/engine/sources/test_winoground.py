import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from engine.errors import StrataError, UsageError
from engine.sources import ImageFolder, ImageRecord, Source, read_source
from tests.engine.sources.builders import (
    Row,
    png,
    winoground_items,
    write_parquet,
    write_winoground,
    write_winoground_parquet,
)


def read(annotations: Path, images: Path | None = None) -> Source:
    return read_source("winoground", annotations=annotations, images=images)


def refusal(annotations: Path, images: Path | None = None) -> str:
    with pytest.raises(StrataError) as caught:
        read(annotations, images)
    assert str(annotations) in str(caught.value)
    return str(caught.value)


def changed(**fields: object) -> list[Row]:
    """Three items, the second with other fields; ``...`` leaves one out."""
    items = winoground_items(3)
    items[1] = {key: value for key, value in (items[1] | fields).items() if value is not ...}
    return items


def test_examples(tmp_path: Path) -> None:
    annotations, root = write_winoground(tmp_path, winoground_items(3))
    source = read(annotations, root)
    assert (source.kind, source.images, source.warnings, source.split) == ("winoground", ImageFolder(root), (), None)
    assert source.annotations_sha256 == hashlib.sha256(annotations.read_bytes()).hexdigest()
    assert source.records[2:4] == (
        ImageRecord("1-0", "ex_1_img_0.png", ("some plants surrounding lightbulb 1",), "1"),
        ImageRecord("1-1", "ex_1_img_1.png", ("a lightbulb 1 surrounding some plants",), "1"),
    )
    assert [source.images.read(record) for record in source.records] == [png(number) for number in range(6)]


def test_both_layouts_are_one_source(tmp_path: Path) -> None:
    items = winoground_items(5)
    lines = read(*write_winoground(tmp_path / "lines", items))
    shards = tmp_path / "data"
    write_winoground_parquet(shards / "test-00000-of-00002.parquet", items[:3])
    write_winoground_parquet(shards / "test-00001-of-00002.parquet", items[3:])
    parquet = read(shards)
    assert parquet.records == lines.records
    for record in lines.records:
        assert parquet.images.read(record) == lines.images.read(record)
    whole = read(write_winoground_parquet(tmp_path / "test.parquet", items))
    assert whole.records == lines.records
    assert whole.annotations_sha256 != parquet.annotations_sha256


def test_names_with_an_extension_and_text_ids(tmp_path: Path) -> None:
    annotations, root = write_winoground(tmp_path, changed(id="b/1", image_0="ex_1_img_0.png"))
    (root / "ex_1_img_0.png").write_bytes(png(3))
    assert [(record.image_id, record.uri, record.item_id) for record in read(annotations, root).records[2:4]] == [
        ("b/1-0", "ex_1_img_0.png", "b/1"),
        ("b/1-1", "ex_1_img_1.png", "b/1"),
    ]


def test_byte_order_mark_and_blank_lines_are_fine(tmp_path: Path) -> None:
    annotations, root = write_winoground(tmp_path, winoground_items(2))
    plain = read(annotations, root)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes().replace(b"\n", b"\r\n\n"))
    assert read(annotations, root).records == plain.records


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_1": ...}, "no 'image_1' for item 1 in line 2; an item needs both images"),
        ({"image_0": None}, "no 'image_0' for item 1 in line 2; an item needs both images"),
        ({"image_0": 7}, "'image_0' of item 1 in line 2 is 7, not a path"),
        ({"image_0": "/a"}, "absolute"),
        ({"image_0": "../a"}, "leaves the image root"),
        ({"image_1": "gone.png"}, "names 1 images that do not exist (item 1 in line 2: gone.png)"),
        ({"id": ...}, "no 'id' in line 2"),
        ({"id": 1.5}, "1.5 as 'id' in line 2, neither an integer nor text"),
        ({"id": None}, "None as 'id' in line 2"),
        ({"id": 0}, "the item 0 twice (again in line 2)"),
        ({"id": "0"}, "the item 0 twice (again in line 2)"),
        ({"caption_0": ...}, "no 'caption_0' in line 2"),
        ({"caption_1": ["x"]}, "as 'caption_1' in line 2, not text"),
        ({"caption_1": " "}, "blank 'caption_1' for item 1 in line 2"),
    ],
)
def test_bad_line(tmp_path: Path, fields: Row, words: str) -> None:
    message = refusal(*write_winoground(tmp_path, changed(**fields)))
    assert words in message
    assert "expected Winoground, as examples.jsonl" in message


@pytest.mark.parametrize(
    ("line", "words"), [("{", "not JSON (line 2"), ("[3]", "[3] in line 2, not an object"), ('"x"', "not an object")]
)
def test_line_that_is_no_item(tmp_path: Path, line: str, words: str) -> None:
    annotations, root = write_winoground(tmp_path, winoground_items(1))
    annotations.write_text(annotations.read_text() + line)
    assert words in refusal(annotations, root)


def test_no_image_at_all_is_another_folder(tmp_path: Path) -> None:
    annotations, _ = write_winoground(tmp_path, winoground_items(2))
    with pytest.raises(StrataError, match=r"none of the 4 images .*--images must be the folder"):
        read(annotations, tmp_path)


def struct(index: int, **fields: object) -> list[object]:
    """Images of three items, that of the second with other fields."""
    cells: list[object] = [{"bytes": png(2 * number + index), "path": f"{number}.png"} for number in range(3)]
    cells[1] = {**{"bytes": b"x", "path": "1.png"}, **fields}
    return cells


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            struct(1, bytes=None, path=None),
            "'image_1' of item 1 in row 1 (counted from 0) has neither bytes nor a path",
        ),
        (struct(1, bytes=None, path=""), "'image_1' of item 1 in row 1 (counted from 0) has neither bytes nor a path"),
        ([*struct(1)[:1], None, *struct(1)[2:]], "'image_1' of item 1 in row 1 (counted from 0) has neither"),
        (struct(1, bytes=None, path="/data/1.png"), "'image_1' of item 1 in row 1 (counted from 0) is the absolute"),
    ],
)
def test_parquet_item_with_one_image_missing(tmp_path: Path, cells: list[object], words: str) -> None:
    path = write_winoground_parquet(tmp_path / "a.parquet", winoground_items(3), images={"image_1": cells})
    assert words in refusal(path)


def test_parquet_item_whose_file_is_not_there(tmp_path: Path) -> None:
    paths: list[object] = [{"bytes": None, "path": f"ex_{number}_img_1.png"} for number in range(3)]
    path = write_winoground_parquet(tmp_path / "a.parquet", winoground_items(3), images={"image_1": paths})
    with pytest.raises(StrataError, match="none of the 3 images"):
        read(path)
    _, root = write_winoground(tmp_path / "lines", winoground_items(3))
    source = read(path, root)
    assert [source.images.read(record) for record in source.records] == [png(number) for number in range(6)]
    (root / "ex_2_img_1.png").unlink()
    message = refusal(path, root)
    assert "names 1 images that do not exist (item 2 in row 2 (counted from 0): ex_2_img_1.png)" in message


def test_embedded_images_without_a_plain_path_are_known_by_their_cell(tmp_path: Path) -> None:
    cells = struct(0, path="/home/someone/1.png")
    cells[2] = {"bytes": png(4), "path": None}
    write_winoground_parquet(tmp_path / "data/test.parquet", winoground_items(3), images={"image_0": cells})
    assert [record.uri for record in read(tmp_path).records[::2]] == [
        "0.png",
        "data/test.parquet#1.image_0",
        "data/test.parquet#2.image_0",
    ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image_1": ...}, "no image column 'image_1'; its columns are id (int64), image_0 (struct<"),
        ({"image_1": pa.array(["a", "b"])}, "no image column 'image_1'; its columns are id (int64)"),
        ({"caption_0": ...}, "no caption column 'caption_0'; its columns are"),
        ({"caption_0": pa.array([1, 2])}, "caption_0 (int64)"),
        ({"id": ...}, "no column 'id'; its columns are"),
        ({"id": pa.array([1, 1])}, "the item 1 twice (again in row 1 (counted from 0))"),
        ({"id": pa.array([1, None])}, "None as 'id' in row 1 (counted from 0), neither an integer nor text"),
        ({"caption_1": pa.array(["x", None])}, "None as 'caption_1' in row 1 (counted from 0), not text"),
        ({"caption_1": pa.array(["x", " "])}, "blank 'caption_1' for item 1 in row 1 (counted from 0)"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: Row, words: str) -> None:
    good: Row = {
        "id": [0, 1],
        "image_0": [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}],
        "image_1": [{"bytes": png(2), "path": None}, {"bytes": png(3), "path": None}],
        "caption_0": ["a", "b"],
        "caption_1": ["c", "d"],
    }
    kept = {key: value for key, value in (good | columns).items() if value is not ...}
    message = refusal(write_parquet(tmp_path / "a.parquet", kept))
    assert words in message
    assert message.endswith("or as Parquet with these columns; check --annotations")


def test_options(tmp_path: Path) -> None:
    annotations, root = write_winoground(tmp_path, winoground_items(1))
    with pytest.raises(UsageError, match="'winoground' has its captions in a file"):
        read_source("winoground", images=root)
    with pytest.raises(UsageError, match="images in files of their own"):
        read(annotations)
    with pytest.raises(UsageError, match="--split test"):
        read_source("winoground", annotations=annotations, images=root, split="test")
    assert "does not exist" in refusal(tmp_path / "no.jsonl", root)
    assert "without a .parquet file" in refusal(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "is empty" in refusal(tmp_path / "empty.jsonl", root)


def test_lines_are_ended_by_line_feeds_alone(tmp_path: Path) -> None:
    annotations, root = write_winoground(tmp_path, changed(caption_0="one\u2028two"))
    annotations.write_text(
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in changed(caption_0="one\u2028two")),
        encoding="utf-8",
    )
    assert read(annotations, root).records[2].references == ("one\u2028two",)
