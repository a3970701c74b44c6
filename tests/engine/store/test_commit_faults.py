"""Whichever step fails, and whether or not the process lives to clean up, a part is whole or it is not there."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from engine.errors import StrataError
from engine.store import committed_parts, remove_leftovers, verify, write_part
from tests.engine.store.builders import tiny_part, tiny_store
from tests.faults import WRITING, Death, Faults, Kind, faulty_files

PLAN = f"{0:064x}"
PARTS = (0, 1)


def run(path: Path) -> None:
    """Create a store and write two parts as small as parts can be, or what is missing of them."""
    remove_leftovers(path)
    tiny = tiny_store(path, layers=1, dim=4, images=2, prompts=1, pooled=False, unembedding=False, written=[])
    for number in sorted(set(PARTS) - committed_parts(path).keys()):
        samples = [sample for sample in tiny.samples.values() if sample.part == number]
        content = tiny_part(number, samples, layers=tiny.layers, dim=4, pooled=False)
        write_part(path, dataclasses.replace(content, coordinates=content.coordinates[1:2]), plan_sha256=PLAN)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Real kills have tests of their own, and a full disk is met by writes.
@pytest.mark.parametrize(
    ("kind", "stride", "struck"), [("error", 1, WRITING), ("full", 1, ("write",)), ("death", 5, WRITING)]
)
def test_a_fault_at_every_step(tmp_path: Path, kind: Kind, stride: int, struck: tuple[str, ...]) -> None:
    with faulty_files(Faults(None)) as healthy:
        run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert all([step.kind for step in healthy.steps].count(kind) >= 10 for kind in WRITING)

    committed = []
    for at in [at for at, step in enumerate(healthy.steps) if step.kind in struck][::stride]:
        path = tmp_path / f"{at}-{healthy.steps[at].kind}"
        with faulty_files(Faults(at, kind)) as faults, pytest.raises((Death, StrataError)) as raised:
            run(path)
        assert faults.struck
        if kind != "death":
            assert "bytes and" in str(raised.value)
            assert f"{path}" in str(raised.value)
        committed.append(check_whole_or_absent(path, whole))

        run(path)
        assert contents(path) == whole
        assert not verify(path).problems
        # A kill before a staging folder has its name leaves it empty; it goes an hour later.
        assert all(folder.name.startswith("new-") for folder in (path / ".staging").iterdir())
        shutil.rmtree(path)
    assert committed == sorted(committed)  # once a manifest is there, it stays
    assert set(committed) >= {0, 1}


def check_whole_or_absent(path: Path, whole: dict[str, bytes]) -> int:
    """Number of parts that are there, with the bytes that they should have; of the next one there may be leftovers."""
    if not (path / "store.json").exists():
        assert not (path / "parts").exists() or not list((path / "parts").iterdir())
        return 0
    done = sorted(committed_parts(path))
    assert done == list(PARTS[: len(done)])
    found = contents(path)
    for number in done:
        files = {name: content for name, content in whole.items() if f"{number:08d}." in name}
        assert files == {name: content for name, content in found.items() if f"parts/{number:08d}." in name}
    missing = {f"parts/{number:08d}.json" for number in PARTS if number not in done}
    leftovers = {f"parts/{len(done):08d}.{suffix}" for suffix in ("zarr", "parquet")}
    problems = {problem.file for problem in verify(path).problems}
    assert missing <= problems <= missing | leftovers
    return len(done)
