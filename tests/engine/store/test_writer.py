"""A part is read back as it was given, and what is wrong with it is said before anything is committed."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from zarr.errors import ZarrUserWarning

from engine.errors import StrataError
from engine.store import (
    Coordinate,
    PartArray,
    commit,
    committed_parts,
    open_store,
    remove_leftovers,
    verify,
    write_part,
)
from engine.store import shards as shards_module
from engine.store.commit import staging_folder
from engine.store.manifest import has_true_sha256, seal_json
from tests.engine.store.builders import tiny_part, tiny_store

PLAN = f"{0:064x}"
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    tiny = tiny_store(tmp_path / "store", dtype=dtype)
    store = open_store(tiny.path)
    for sample_id, sample in tiny.samples.items():
        states = store.sample(sample_id).hidden_states
        assert states.dtype == ("float16" if dtype == "float16" else "float32")
        assert states.attrs["captured_dtype"] == dtype
        np.testing.assert_array_equal(states.values, sample.states)
        assert np.isfinite(states.values).all()


def test_manifest_says_what_is_there(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", parts=1, images=2, written=[])
    samples = list(tiny.samples.values())
    manifest = write_part(tiny.path, tiny_part(0, samples, layers=tiny.layers, dim=16), plan_sha256=PLAN)
    content = (tiny.path / "parts/00000000.json").read_bytes()
    assert json.loads(content) == manifest
    assert has_true_sha256(content)
    assert (manifest["part"], manifest["samples"], manifest["tokens"], manifest["seconds"]) == (0, 4, 28, 1.5)
    assert manifest["plan_sha256"] == PLAN
    assert manifest["run"]["attention"] == "sdpa"
    assert manifest["arrays"]["token/hidden_states"]["shape"] == [5, 28, 16]
    files = {path.relative_to(tiny.path / "parts").as_posix() for path in (tiny.path / "parts").rglob("*.*")}
    assert "00000000.parquet" in manifest["files"]
    assert {name for name in files if name.endswith(("zarr.json", "parquet"))} <= manifest["files"].keys()
    assert not list((tiny.path / ".staging").iterdir())


def test_consolidated_metadata_is_zarrs_own(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store")
    part = tiny.path / "parts/00000000.zarr"
    ours = json.loads((part / "zarr.json").read_text())
    with pytest.warns(ZarrUserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(part)
    theirs = json.loads((part / "zarr.json").read_text())
    assert ours == theirs


def test_mantissa_rounding_is_recorded(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", dtype="float32", mantissa_bits=6)
    store = open_store(tiny.path)
    worst_absolute = worst_relative = 0.0
    for part in store.parts:
        attributes = part.manifest["arrays"]["token/hidden_states"]["attributes"]
        assert attributes == dict(part.array("token/hidden_states").attrs)
        assert attributes["mantissa_bits"] == 6
        worst_absolute = max(worst_absolute, attributes["rounding_max_absolute_error"])
        worst_relative = max(worst_relative, attributes["rounding_max_relative_error"])
    errors = [
        np.abs(store.sample(sample_id).hidden_states.values.astype(float) - sample.states)
        for sample_id, sample in tiny.samples.items()
    ]
    relative = [error / np.abs(s.states.astype(float)) for error, s in zip(errors, tiny.samples.values(), strict=True)]
    assert worst_absolute == max(error.max() for error in errors) > 0
    assert worst_relative == pytest.approx(max(error.max() for error in relative))
    assert worst_relative <= 2**-7
    assert "mantissa_bits" not in store.parts[0].manifest["arrays"]["sample/mean"]["attributes"]


def test_a_part_without_samples(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", parts=1, empty_parts=1)
    assert not verify(tiny.path).problems
    empty = open_store(tiny.path).parts[1]
    assert empty.array("token/hidden_states").shape == (5, 0, 16)
    assert len(empty.samples) == 0
    assert empty.manifest["bad_samples"][0] == {"sample_id": "bad0/normal-1", "reason": "zero bytes"}


def test_a_committed_part_never_changes(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store")
    before = {path: path.read_bytes() for path in tiny.path.rglob("*") if path.is_file()}
    with pytest.raises(StrataError, match=r"00000001 .* already committed"):
        write_part(tiny.path, tiny_part(1, [], layers=tiny.layers, dim=16), plan_sha256=PLAN)
    assert {path: path.read_bytes() for path in tiny.path.rglob("*") if path.is_file()} == before


def test_leftovers_of_a_crash_are_replaced(tmp_path: Path) -> None:
    """A folder renamed without its manifest, and a staging folder, are what a kill leaves."""
    tiny = tiny_store(tmp_path / "store", written=[0])
    shutil.copytree(tiny.path / "parts/00000000.zarr", tiny.path / "parts/00000001.zarr")
    (tiny.path / "parts/00000001.zarr/token/stray").write_bytes(b"x")
    (tiny.path / "parts/00000001.parquet").write_bytes(b"torn")
    (tiny.path / ".staging/00000001-dead").mkdir()
    samples = [sample for sample in tiny.samples.values() if sample.part == 1]
    write_part(tiny.path, tiny_part(1, samples, layers=tiny.layers, dim=16), plan_sha256=PLAN)
    result = verify(tiny.path)
    assert (result.problems, result.notes) == ((), ())


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_store(tmp_path / "store", written=[0])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1234))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    samples = [sample for sample in tiny.samples.values() if sample.part == 1]
    content = tiny_part(1, samples, layers=tiny.layers, dim=16)
    with monkeypatch.context() as patch:
        patch.setattr(shards_module._Shard, "_append", fail)
        with pytest.raises(
            StrataError, match=r"00000001 .*No space left.* needs at most [\d,]+ bytes and 1,234 are free"
        ):
            write_part(tiny.path, content, plan_sha256=PLAN)
    assert set(committed_parts(tiny.path)) == {0}
    assert not list((tiny.path / ".staging").iterdir())
    assert [problem.file for problem in verify(tiny.path).problems] == ["parts/00000001.json"]
    write_part(tiny.path, content, plan_sha256=PLAN)
    assert not verify(tiny.path).problems


def test_after_a_failure_no_further_layer_is_asked_for(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[0])
    content = tiny_part(1, [one for one in tiny.samples.values() if one.part == 1], layers=tiny.layers, dim=16)
    states = next(array for array in content.arrays if array.path == "token/hidden_states")
    asked = []

    def slab(index: int) -> np.ndarray:
        asked.append(index)
        if index == 0:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.01)
        return np.zeros(states.shape[1:], np.float16)

    many = dataclasses.replace(states, shape=(500, *states.shape[1:]), slab=slab)
    with pytest.raises(StrataError, match="Input/output error"):
        write_part(tiny.path, dataclasses.replace(content, arrays=(many,)), plan_sha256=PLAN)
    assert len(asked) < 500


def test_errors_of_rounding_count_values_that_come_late(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[0])
    content = tiny_part(1, [one for one in tiny.samples.values() if one.part == 1], layers=tiny.layers, dim=16)
    states = next(array for array in content.arrays if array.path == "token/hidden_states")
    values = np.zeros(states.shape, np.float32)
    values[-1] = 1 + 2**-12

    def slow(index: int) -> np.ndarray:
        time.sleep(0.05)
        return values[index]

    rounded = dataclasses.replace(states, dtype="float16", slab=slow, slab_dtype="float32")
    manifest = write_part(tiny.path, dataclasses.replace(content, arrays=(rounded,)), plan_sha256=PLAN)
    attributes = manifest["arrays"]["token/hidden_states"]["attributes"]
    assert attributes["rounding_max_absolute_error"] == 2**-12


def test_what_is_not_as_announced(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[0])
    samples = [sample for sample in tiny.samples.values() if sample.part == 1]
    good = tiny_part(1, samples, layers=tiny.layers, dim=16)
    states = next(array for array in good.arrays if array.path == "token/hidden_states")
    wrong_dtype = dataclasses.replace(states, slab=lambda index: states.slab(index).astype(np.float32))
    wrong_shape = dataclasses.replace(states, slab=lambda index: states.slab(index)[1:])
    short = PartArray("sample/x", ("role", "sample"), (7, 1), "int32", lambda index: np.zeros(1, np.int32))
    for content, message in [
        (dataclasses.replace(good, arrays=(wrong_dtype,)), "announced"),
        (dataclasses.replace(good, arrays=(wrong_shape,)), "announced"),
        (dataclasses.replace(good, arrays=(*good.arrays, short)), "disagree"),
        (dataclasses.replace(good, samples=good.samples.drop_columns(["width"])), "PART_SAMPLES_SCHEMA"),
        (
            dataclasses.replace(good, coordinates=(Coordinate("token/role", ("token",), np.zeros(3)),)),
            "must be int32",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            write_part(tiny.path, content, plan_sha256=PLAN)
    assert set(committed_parts(tiny.path)) == {0}
    assert not list((tiny.path / ".staging").iterdir())


@pytest.mark.parametrize(
    "changes", [{}, {"mantissa_bits": 3}, {"dtype": "float16"}, {"dtype": "float16", "mantissa_bits": 2}]
)
def test_bit_patterns_of_bfloat16_are_stored_as_their_values(tmp_path: Path, changes: dict[str, object]) -> None:
    """As those that were widened before, with the same errors of rounding."""
    tiny = tiny_store(tmp_path / "store", dtype="bfloat16", written=[])
    content = tiny_part(0, list(tiny.samples.values()), layers=tiny.layers, dim=16, dtype="bfloat16")
    path = "token/hidden_states"
    widened = next(array for array in content.arrays if array.path == path)

    def bits(index: int) -> np.ndarray:
        return (widened.slab(index).view(np.uint32) >> 16).astype(np.uint16)

    as_values = dataclasses.replace(widened, slab_dtype="float32", **changes)
    as_bits = dataclasses.replace(widened, slab=bits, slab_dtype="bfloat16", **changes)
    np.testing.assert_array_equal(as_bits.values(1), widened.slab(1))
    stored = []
    for number, states in enumerate([as_values, as_bits]):
        arrays = [states if array.path == path else array for array in content.arrays]
        part = dataclasses.replace(content, number=number, arrays=tuple(arrays))
        attributes = write_part(tiny.path, part, plan_sha256=PLAN)["arrays"][path]["attributes"]
        stored.append((zarr.open_array(tiny.path / f"parts/{number:08d}.zarr" / path, mode="r")[...], attributes))
    (values, expected), (read, attributes) = stored
    np.testing.assert_array_equal(read, values)
    assert (read.dtype, attributes) == (values.dtype, expected)
    assert ("rounding_max_absolute_error" in attributes) is bool(changes)
    if not changes:
        np.testing.assert_array_equal(read, np.stack([widened.slab(index) for index in range(len(tiny.layers))]))


def test_columns_of_the_sample_table(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store")
    table = pq.read_table(tiny.path / "parts/00000000.parquet")
    assert table["segments"][0].as_py() == [{"start": 0, "stop": 6}, {"start": 6, "stop": 9}]
    assert table["references"][0].as_py() == ["a red circle", "a circle"]
    assert table["grids"][0].as_py()[0]["thumbnail"] is False


def test_a_second_process_on_the_same_part_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[0])
    content = tiny_part(1, [s for s in tiny.samples.values() if s.part == 1], layers=tiny.layers, dim=16)
    with staging_folder(tiny.path, "00000001", alone=True) as held:
        (held / "half").write_text("written")
        with pytest.raises(StrataError, match="another process is writing part 00000001"):
            write_part(tiny.path, content, plan_sha256=PLAN)
        assert (held / "half").read_text() == "written"
    left = tiny.path / ".staging" / "00000001-0123"
    left.mkdir()
    write_part(tiny.path, content, plan_sha256=PLAN)
    assert not left.exists(), "what a crash left is nobody's"
    assert not verify(tiny.path).problems


@pytest.mark.parametrize("damage", ["", "{}", "other plan"])
def test_a_manifest_that_cannot_be_trusted_is_no_finished_part(tmp_path: Path, damage: str) -> None:
    path = tiny_store(tmp_path / "store").path
    manifest = path / "parts" / "00000001.json"
    if damage == "other plan":
        content = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "sha256"}
        manifest.write_bytes(seal_json({**content, "plan_sha256": "1" * 64}))
    else:
        manifest.write_text(damage)
    for read in (committed_parts, open_store):
        with pytest.raises(
            StrataError, match=r"00000001\.json .*repair removes it, and strata extract does this part again"
        ):
            read(path)


def test_without_locks_shared_files_of_another_process_stay_and_a_parts_leftover_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("engine.store.commit.fcntl.flock", unsupported)
    for name in ("store-1", "00000000-1"):
        (tmp_path / ".staging" / name).mkdir(parents=True)
    with staging_folder(tmp_path, "store", alone=False), staging_folder(tmp_path, "00000000", alone=True):
        left = {path.name for path in (tmp_path / ".staging").iterdir()}
    assert "store-1" in left
    assert "00000000-1" not in left


def test_many_processes_may_stage_the_shared_files_at_once(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from engine.store.commit import staging_folder
for _ in range(60):
    with staging_folder(Path(sys.argv[1]), "store", alone=False) as folder:
        (folder / "file").write_text("x")
        assert (folder / "file").exists()
"""
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert not list((tmp_path / ".staging").iterdir())


def test_an_empty_folder_of_a_dead_process_goes_after_an_hour(tmp_path: Path) -> None:
    young, old = (tmp_path / ".staging" / f"new-00000000-{name}" for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    with staging_folder(tmp_path, "00000000", alone=True):
        assert young.exists()
        assert not old.exists()


def test_an_empty_folder_of_a_process_that_is_provably_dead_goes_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = commit._machine()
    dead, alive, elsewhere = (
        tmp_path / ".staging" / f"new-{owner}-00000000-x"
        for owner in (f"{here}.{child.pid}", f"{here}.{os.getpid()}", f"0123456789ab.{child.pid}")
    )
    for folder in (dead, alive, elsewhere):
        folder.mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert here
    assert (dead.exists(), alive.exists(), elsewhere.exists()) == (False, True, True)
