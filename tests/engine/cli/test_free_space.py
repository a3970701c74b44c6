"""extract looks for room before it loads a model: what is yet to be written against what is free."""

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from engine.cli import free_space
from engine.cli.sizes import format_bytes
from tests.engine.cli.conftest import Dataset
from tests.tiny_llava import TinyShape, save_checkpoint

Strata = Callable[..., Result]
Usage = namedtuple("Usage", "total used free")


class Disk:
    """A disk of any size: ``free`` is what it says, ``needs`` are the estimates that were compared with it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.free = 0
        self.needs: list[int] = []
        self.asked: list[Path] = []
        estimate = free_space.bytes_to_write

        def bytes_to_write(*arguments: object, **options: object) -> int:
            self.needs.append(estimate(*arguments, **options))
            return self.needs[-1]

        def disk_usage(path: Path) -> Usage:
            self.asked.append(path)
            return Usage(0, 0, self.free)

        patch.setattr(free_space, "bytes_to_write", bytes_to_write)
        patch.setattr(shutil, "disk_usage", disk_usage)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def extract(strata: Strata, dataset: Dataset, tmp_path: Path) -> Callable[..., Result]:
    """Three parts of two images each, the last of one; into a folder below one that does not exist."""

    def run(*more: object) -> Result:
        out = tmp_path / "new" / "store"
        return strata("extract", *dataset.arguments("--out", out, "--samples-per-part", 2, *more))

    return run


def test_too_little_room_is_said_before_anything_is_written(
    extract: Callable[..., Result], disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "store"
    with monkeypatch.context() as patch:
        patch.setattr("engine.cli.extract.load_model", None)  # calling it would be an error of another kind
        refused = extract()
        need = disk.needs[0]
        disk.free = need - 1
        assert extract().exit_code == refused.exit_code == 1
    assert f"{out} needs about {format_bytes(need)} more for 3 parts" in refused.stderr
    assert f"0 B are free on {tmp_path}: make room" in refused.stderr
    assert "--force starts anyway" in refused.stderr
    assert not out.parent.exists()
    disk.free = need
    assert extract().exit_code == 0


def test_force_starts_anyway(extract: Callable[..., Result], disk: Disk, tmp_path: Path) -> None:
    assert extract("--force").exit_code == 0
    assert not disk.asked
    assert len(list((tmp_path / "new/store/parts").glob("*.json"))) == 3


def test_committed_parts_are_not_counted_again(extract: Callable[..., Result], disk: Disk, tmp_path: Path) -> None:
    disk.free = 2**40
    assert extract().exit_code == 0
    whole = disk.needs[0]
    parts = tmp_path / "new/store/parts"
    for left in parts.glob("00000001.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    disk.free = 0
    refused = extract()
    assert refused.exit_code == 1
    assert "for 1 part that is not finished" in refused.stderr
    assert disk.needs[-1] < 0.4 * whole, "one of three parts, and none of the tables"
    disk.free = disk.needs[-1]
    assert extract().exit_code == 0
    disk.free, disk.asked = 0, []
    assert "nothing to do" in extract().stdout
    assert not disk.asked


def test_ranks_count_what_the_others_have_yet_to_write(extract: Callable[..., Result], disk: Disk) -> None:
    extract()
    whole = disk.needs[0]
    disk.free = whole - 1
    for rank in (0, 1):
        refused = extract("--rank", rank, "--world-size", 2)
        assert refused.exit_code == 1
        assert "for 3 parts" in refused.stderr
    disk.free = whole
    assert extract("--rank", 0, "--world-size", 2).exit_code == 0
    disk.free = 0
    refused = extract("--rank", 1, "--world-size", 2)
    assert "for 1 part " in refused.stderr, "what rank 0 has committed is not counted"


def test_what_lies_there_unfinished_counts_as_written_but_one_part_always_needs_room(
    extract: Callable[..., Result], disk: Disk, tmp_path: Path
) -> None:
    disk.free = 2**40
    assert extract().exit_code == 0
    store = tmp_path / "new/store"
    for part in (0, 1):
        (store / f"parts/0000000{part}.json").unlink()
    disk.free = 0
    assert extract().exit_code == 1
    both, one = disk.needs[-2:]
    assert one < both < 2.1 * one
    disk.free = both - 1
    assert extract().exit_code == 0, "the two folders without manifest will go"
    for part in (0, 1):
        (store / f"parts/0000000{part}.json").unlink()
    (store / ".staging/00000000-dead").mkdir()
    (store / ".staging/00000000-dead/large").write_bytes(b"x" * 2 * both)
    disk.free = one - 1
    assert extract().exit_code == 1
    disk.free = one
    assert extract().exit_code == 0


@pytest.mark.parametrize("options", [(), ("--dtype", "float16", "--no-unembedding")])
def test_the_need_is_about_what_a_store_takes(
    strata: Strata, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    large = dataset._replace(model=save_checkpoint(tmp_path / "large", TinyShape(blocks=8, dim=128)))
    disk, out = Disk(monkeypatch), tmp_path / "store"
    disk.free = 2**40
    assert strata("extract", *large.arguments("--out", out, *options)).exit_code == 0
    taken = sum(os.lstat(path).st_blocks * 512 for path in out.rglob("*"))
    assert 0.9 * taken <= disk.needs[0] <= 2 * taken
