import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StrataError, UsageError
from engine.sources import ImageRecord, Source, UnreadableImage, read_source
from tests.engine.sources.builders import IMAGE_STRUCT, Row, png, write_image, write_parquet


def read(annotations: Path, images: Path | None = None, split: str | None = None) -> Source:
    return read_source("parquet", annotations=annotations, images=images, split=split)


def refusal(annotations: Path, images: Path | None = None, split: str | None = None) -> str:
    with pytest.raises(StrataError) as caught:
        read(annotations, images, split)
    assert str(annotations) in str(caught.value)
    return str(caught.value)


def cells(count: int, start: int = 0) -> list[object]:
    return [{"bytes": png(number), "path": f"{number}.png"} for number in range(start, start + count)]


def columns(count: int = 3, start: int = 0, **more: object) -> Row:
    """A table in the usual layout; ``...`` leaves a column out."""
    numbers = range(start, start + count)
    usual: Row = {
        "image": cells(count, start),
        "caption": [[f"one {number}", f" two {number}\n"] for number in numbers],
        "image_id": list(numbers),
    }
    return {key: value for key, value in (usual | more).items() if value is not ...}


def test_usual_table(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "val-00000-of-00001.parquet", columns())
    source = read(path)
    assert (source.kind, source.split, str(source.images)) == ("parquet", None, str(path))
    assert source.records == tuple(
        ImageRecord(str(number), f"{number}.png", (f"one {number}", f"two {number}")) for number in range(3)
    )
    assert [source.images.read(record) for record in source.records] == [png(number) for number in range(3)]
    assert source.warnings == (
        f"{path}: images are taken from the column 'image', captions from 'caption', image ids from 'image_id'; "
        "3 rows are 3 images",
    )


@pytest.mark.parametrize("name", ["caption", "captions", "text", "sentences_raw", "sentences", "alt_text"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", " b ", None]), [("a",), ("b",), ()]),
        (pa.array(["a", "", "c"], pa.large_string()), [("a",), (), ("c",)]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), [("a",), ("b",), ("a",)]),
        (pa.array([["a", "b", "c", "d", "e", "f"], [], None]), [tuple("abcdef"), (), ()]),
        (pa.array([["a", None], [" "], ["b"]], pa.large_list(pa.large_string())), [("a",), (), ("b",)]),
    ],
)
def test_captions(tmp_path: Path, name: str, values: pa.Array, expected: list[tuple[str, ...]]) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns(**{"caption": ..., name: values}))
    assert [record.references for record in read(path).records] == expected


def test_blank_and_missing_captions_are_counted(tmp_path: Path) -> None:
    captions = pa.array([["a", None, " "], [""], ["b"]])
    warnings = read(write_parquet(tmp_path / "a.parquet", columns(caption=captions))).warnings
    assert "1 of 3 images" in warnings[1]
    assert "3 captions" in warnings[2]


def test_first_usable_caption_column_wins(tmp_path: Path) -> None:
    more = {"caption": pa.array([1, 2, 3]), "text": pa.array(["x", "y", "z"]), "sentences": pa.array(["u", "v", "w"])}
    source = read(write_parquet(tmp_path / "a.parquet", columns(**more)))
    assert [record.references for record in source.records] == [("x",), ("y",), ("z",)]
    assert "captions from 'text'" in source.warnings[0]


@pytest.mark.parametrize(
    ("more", "expected", "words"),
    [
        ({"image_id": ["a", "b", "c"], "cocoid": [1, 2, 3]}, ["a", "b", "c"], "ids from 'image_id'"),
        ({"image_id": ..., "cocoid": pa.array([7, 8, 9], pa.uint32()), "id": [1, 2, 3]}, ["7", "8", "9"], "'cocoid'"),
        ({"image_id": ..., "img_id": ["x", "y", "z"], "id": [1, 2, 3]}, ["x", "y", "z"], "'img_id'"),
        ({"image_id": [1.0, 2.0, 3.0], "id": [1, 2, 3]}, ["1", "2", "3"], "ids from 'id'"),
        ({"image_id": ...}, ["0.png", "1.png", "2.png"], "ids from the paths in 'image'"),
        ({"image_id": ..., "image": [*cells(2), *cells(1)]}, ["0", "1", "2"], "ids from the rows' numbers, because"),
        ({"image_id": ..., "image": [{"bytes": b"x"}, *cells(2)]}, ["0", "1", "2"], "ids from the rows' numbers"),
        ({"image_id": ..., "image": [{"bytes": b"x", "path": "/a"}, *cells(2)]}, ["0", "1", "2"], "rows' numbers"),
    ],
)
def test_image_ids(tmp_path: Path, more: Row, expected: list[str], words: str) -> None:
    source = read(write_parquet(tmp_path / "a.parquet", columns(**more)))
    assert [record.image_id for record in source.records] == expected
    assert words in source.warnings[0]


def test_rows_of_one_image_are_one_record(tmp_path: Path) -> None:
    first = columns(image=[*cells(2), *cells(2)][:3], caption=pa.array(["a", "b", "c"]), image_id=["x", "y", "x"])
    second = columns(image=[*cells(1, 5), *cells(2)], caption=pa.array(["d", "e", "f"]), image_id=["z", "x", "y"])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", first)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", second)
    source = read(tmp_path)
    assert source.records == (
        ImageRecord("x", "0.png", ("a", "c", "e")),
        ImageRecord("y", "1.png", ("b", "f")),
        ImageRecord("z", "5.png", ("d",)),
    )
    assert "6 rows are 3 images" in source.warnings[0]
    assert [source.images.read(record) for record in source.records] == [png(0), png(1), png(5)]


def test_one_id_for_two_images_is_refused(tmp_path: Path) -> None:
    message = refusal(write_parquet(tmp_path / "a.parquet", columns(image_id=["x", "y", "x"])))
    assert "has 2.png in row 2 (counted from 0) under the image id x, which stands for 0.png in row 0" in message


def test_image_column_of_another_name(tmp_path: Path) -> None:
    picture = pa.array(cells(3), IMAGE_STRUCT)
    source = read(write_parquet(tmp_path / "a.parquet", columns(image=..., picture=picture)))
    assert source.images.read(source.records[1]) == png(1)
    assert "images are taken from the column 'picture'" in source.warnings[0]
    both = write_parquet(tmp_path / "b.parquet", columns(picture=picture))
    assert "column 'image'" in read(both).warnings[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"image": ...}, "has no image column; its columns are caption (list<element: string>), image_id (int64)"),
        ({"image": pa.array([b"a", b"b", b"c"])}, "has no image column; its columns are image (binary)"),
        ({"image": pa.array(["a", "b", "c"])}, "image (string)"),
        (
            {"image": ..., "left": pa.array(cells(3), IMAGE_STRUCT), "right": pa.array(cells(3), IMAGE_STRUCT)},
            "has several image columns (left, right); its columns are",
        ),
        ({"caption": ...}, "has no caption column; its columns are image (struct<bytes: binary, path: string>)"),
        ({"caption": pa.array([1, 2, 3])}, "has no caption column; its columns are"),
        ({"caption": pa.array([[1], [2], [3]])}, "caption (list<element: int64>)"),
    ],
)
def test_no_such_column(tmp_path: Path, more: Row, words: str) -> None:
    message = refusal(write_parquet(tmp_path / "a.parquet", columns(**more)))
    assert words in message
    assert "caption column (caption, captions, text, sentences_raw, sentences or alt_text: text or lists" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"image_id": [1, None, 3]}, "None as 'image_id' in row 1 (counted from 0), neither an integer nor text"),
        ({"image_id": ["a", " ", "c"]}, "' ' as 'image_id' in row 1 (counted from 0)"),
        ({"image": [*cells(1), None, *cells(1, 2)]}, "'image' in row 1 (counted from 0) has neither bytes nor a path"),
        ({"image": [*cells(2), {"bytes": None, "path": ""}]}, "'image' in row 2 (counted from 0) has neither"),
        ({"image": [*cells(2), {"bytes": None, "path": "/a"}]}, "'image' in row 2 (counted from 0) is the absolute"),
        ({"image": [*cells(2), {"bytes": None, "path": "../a"}]}, "leaves the image root"),
    ],
)
def test_bad_row(tmp_path: Path, more: Row, words: str) -> None:
    assert words in refusal(write_parquet(tmp_path / "a.parquet", columns(**more)))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    captions = pa.array(["fine", "xxQQxx", "fine"])
    path = write_parquet(tmp_path / "a.parquet", columns(caption=captions), compression="none")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"xxQQxx", b"xx\xff\xffxx"))
    assert "text that is not UTF-8 as 'caption' in row 1 (counted from 0)" in refusal(path)


def test_paths_beside_the_file_and_below_the_image_folder(tmp_path: Path) -> None:
    named: list[object] = [{"bytes": None, "path": f"sub/{number}.png"} for number in range(3)]
    path = write_parquet(tmp_path / "tables/a.parquet", columns(image=named))
    with pytest.raises(StrataError, match="none of the 3 images"):
        read(path)
    write_image(tmp_path / "tables/sub/1.png")
    source = read(path)
    assert source.images.read(source.records[1]) == (tmp_path / "tables/sub/1.png").read_bytes()
    with pytest.raises(UnreadableImage, match="no such file"):
        source.images.read(source.records[0])
    shutil.move(tmp_path / "tables/sub", tmp_path / "pictures/sub")
    source = read(path, tmp_path / "pictures")
    assert [record.uri for record in source.records] == ["sub/0.png", "sub/1.png", "sub/2.png"]
    assert source.images.read(source.records[1]) == (tmp_path / "pictures/sub/1.png").read_bytes()


@pytest.mark.parametrize("field", ["bytes", "path"])
def test_structs_with_one_field_alone(tmp_path: Path, field: str) -> None:
    write_image(tmp_path / "0.png")
    kind = pa.struct([pa.field(field, IMAGE_STRUCT.field(field).type)])
    column = pa.array([{field: cell[field]} for cell in cells(3)], kind)
    source = read(write_parquet(tmp_path / "a.parquet", columns(image=column)))
    name, data = ("0.png", (tmp_path / "0.png").read_bytes()) if field == "path" else ("a.parquet#0", png(0))
    assert (source.records[0].uri, source.images.read(source.records[0])) == (name, data)


def test_bytes_with_a_path_of_null_type(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.null())])
    column = pa.array([{"bytes": png(number), "path": None} for number in range(3)], kind)
    source = read(write_parquet(tmp_path / "data/a.parquet", columns(image=column)).parent)
    assert [record.uri for record in source.records] == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    assert [source.images.read(record) for record in source.records] == [png(number) for number in range(3)]


def test_nothing_absolute_is_stored(tmp_path: Path) -> None:
    paths = ["/home/0.png", "../1.png", "2.png"]
    image = [{"bytes": png(number), "path": path} for number, path in enumerate(paths)]
    source = read(write_parquet(tmp_path / "a.parquet", columns(image=image)))
    assert [record.uri for record in source.records] == ["a.parquet#0", "a.parquet#1", "2.png"]


@settings(max_examples=25)
@given(
    kinds=st.lists(st.sampled_from(["bytes", "path", "both"]), min_size=1, max_size=8),
    group=st.integers(1, 4),
    statistics=st.booleans(),
)
def test_every_mix_of_bytes_and_paths(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], group: int, statistics: bool
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    write_image(folder / "file.png")
    image = [
        {"bytes": None if kind == "path" else png(number), "path": None if kind == "bytes" else "file.png"}
        for number, kind in enumerate(kinds)
    ]
    table = columns(len(kinds), image=image)
    path = write_parquet(folder / "a.parquet", table, row_group_size=group, write_statistics=statistics)
    source = read(path)
    for number, (kind, record) in enumerate(zip(kinds, source.records, strict=True)):
        assert record.uri == (f"a.parquet#{number}" if kind == "bytes" else "file.png")
        expected = (folder / "file.png").read_bytes() if kind == "path" else png(number)
        assert source.images.read(record) == expected


def test_planning_leaves_the_bytes_of_images_alone(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns(), compression="zstd")
    expected = read(path).records
    chunk = next(
        chunk
        for chunk in map(pq.read_metadata(path).row_group(0).column, range(4))
        if chunk.path_in_schema == "image.bytes"
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    source = read(path)
    assert source.records == expected
    with pytest.raises(UnreadableImage) as caught:
        source.images.read(source.records[0])
    assert caught.value.reason == "damaged row group of a.parquet"


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for number, name in enumerate(["val-00000-of-00002", "val-00001-of-00002", "test-00000-of-00001-ab12"]):
        write_parquet(tmp_path / f"data/{name}.parquet", columns(1, number))
    write_parquet(tmp_path / ".cache/val-00000-of-00002.parquet", columns(1, 9))
    assert [record.image_id for record in read(tmp_path, split="val").records] == ["0", "1"]
    assert read(tmp_path, split="val,test").split == "test,val"
    everything = read(tmp_path)
    assert sorted(record.image_id for record in everything.records) == ["0", "1", "2"]
    assert "no --split is given, so all splits" in everything.warnings[0]
    assert "test (1 files), val (2 files)" in everything.warnings[0]
    with pytest.raises(UsageError, match=r"no split 'train'; it has test \(1 files\), val \(2 files\)"):
        read(tmp_path, split="train")
    with pytest.raises(UsageError, match="no split 'train'; it has val"):
        read(tmp_path / "data/val-00000-of-00002.parquet", split="train")
    assert len(read(tmp_path / "data/val-00000-of-00002.parquet", split="val").records) == 1


def test_shards_with_other_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", columns())
    write_parquet(tmp_path / "b.parquet", columns(image_id=..., cocoid=[1, 2, 3]))
    message = refusal(tmp_path)
    assert "b.parquet has other columns than the first file, of which image, caption, image_id are read" in message


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole/a.parquet", columns()).read_bytes()
    path = tmp_path / "a.parquet"
    for content, words in (
        (b"", "is not a Parquet file"),
        (b"hello", "is not a Parquet file"),
        (whole[:300], "ends early"),
        (whole[:4] + whole[-8:], "ends early"),
        (whole[:-100] + b"\0" * 92 + whole[-8:], "cannot be read as Parquet"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)
    assert "does not exist" in refusal(tmp_path / "no.parquet")
    (tmp_path / "empty").mkdir()
    assert "is a folder without a .parquet file" in refusal(tmp_path / "empty")
    none = columns(0, caption=pa.array([], pa.string()), image_id=pa.array([], pa.int64()))
    nothing = write_parquet(tmp_path / "none.parquet", none)
    assert "holds no row" in refusal(nothing)
    with pytest.raises(UsageError, match="'parquet' has its captions in a file"):
        read_source("parquet")
