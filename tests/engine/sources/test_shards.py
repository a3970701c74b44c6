import hashlib
import struct
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.inputs import InputFile
from engine.sources.shards import find_shards, footers_sha256, is_parquet, open_shard, select_splits
from tests.engine.sources.builders import write_parquet


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val-00000-of-00002.parquet", "val"),
        ("data/val-00000-of-00002.parquet", "val"),
        ("data/train-00000-of-00001-b22be6d04082f592.parquet", "train"),
        ("test-0000-of-0020.parquet", "test"),
        ("subset/train.clean-00000-of-00001.parquet", "train.clean"),
        ("default/val/0000.parquet", "val"),
        ("default/partial-train/0000.parquet", "partial-train"),
        ("train/images.parquet", "train"),
        ("data/validation.parquet", "validation"),
        ("validation.parquet", "validation"),
    ],
)
def test_split_of_a_name(name: str, split: str) -> None:
    shards = {name: Path(name), "other-00000-of-00001.parquet": Path("other")}
    chosen, names, notes = select_splits(shards, split, path=Path("x"))
    assert (chosen, names, notes) == ({name: Path(name)}, (split,), ())
    assert select_splits(shards, None, path=Path("x"))[:2] == (shards, None)


def test_name_that_says_no_split() -> None:
    with pytest.raises(UsageError, match="it has none, so leave --split out"):
        select_splits({"0000.parquet": Path("0000.parquet")}, "val", path=Path("x"))


def test_shards_come_by_name(tmp_path: Path) -> None:
    names = ["b/1.parquet", "a/2.PARQUET", "c.parquet"]
    for name in (*names, ".hidden/d.parquet", "b/.e.parquet"):
        write_parquet(tmp_path / name, {"id": [1]})
    (tmp_path / "notes.md").write_text("x")
    file = InputFile(tmp_path, "source", "Parquet", "--annotations")
    assert list(find_shards(tmp_path, file)) == ["a/2.PARQUET", "b/1.parquet", "c.parquet"]
    assert find_shards(tmp_path / "c.parquet", file) == {"c.parquet": tmp_path / "c.parquet"}


def test_footer_hash(tmp_path: Path) -> None:
    def shard(name: str, values: list[int]):
        path = write_parquet(tmp_path / name, {"id": values})
        return open_shard(name, InputFile(path, "file", "Parquet", "--annotations"))

    def footer(path: Path) -> bytes:
        data = path.read_bytes()
        (length,) = struct.unpack("<I", data[-8:-4])
        return data[-8 - length : -8]

    one, two = shard("1.parquet", [1, 2]), shard("2.parquet", [1, 3])
    digests = [hashlib.sha256(footer(tmp_path / f"{number}.parquet")).digest() for number in (1, 2)]
    assert footers_sha256([one, two]) == hashlib.sha256(b"".join(digests)).hexdigest()
    assert footers_sha256([two, one]) != footers_sha256([one, two])
    assert footers_sha256([one]) != footers_sha256([two])


def test_magic(tmp_path: Path) -> None:
    assert is_parquet(write_parquet(tmp_path / "a", {"id": [1]}))
    (tmp_path / "b.parquet").write_text("no")
    assert not is_parquet(tmp_path / "b.parquet")
    assert not is_parquet(tmp_path / "c.parquet")
