"""Repair removes exactly what the next extraction must do again, and nothing that is not the store's."""

import importlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import StrataError
from engine.store import committed_parts, repair, verify
from engine.store.commit import staging_folder
from engine.store.inventory import Inventory, Problem
from engine.store.repair import plan_repair
from tests.engine.store.builders import tiny_store
from tests.engine.store.test_verify import edit, flip, link, truncate
from tests.faults import Death, Faults, faulty_files

STATES = "parts/00000000.zarr/token/hidden_states/c/0/0/0"
PARTS = {0, 1, 2}
WHOLE_PART = tuple(f"parts/00000000{suffix}" for suffix in (".json", ".parquet", ".zarr"))


def write(path: Path, written: list[int] | None = None) -> Path:
    """Write the store that these tests damage, or again what it lacks."""
    return tiny_store(path, dim=8, layers=2, empty_parts=1, written=written).path


def tree(store: Path) -> dict[str, bytes]:
    files = (path for path in store.rglob("*") if path.is_file() and ".staging" not in path.parts)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("repair") / "store")


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "store"))


def link_outside(path: Path) -> None:
    """Put a link in place of something at the store's top."""
    target = path.parent.with_name("outside")
    path.rename(target)
    path.symlink_to(target)


def stray(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


@pytest.mark.parametrize(
    ("file", "damage", "redone", "rewritten"),
    [
        (STATES, flip, {0}, ()),
        (STATES, truncate, {0}, ()),
        (STATES, Path.unlink, {0}, ()),
        (STATES, link, {0}, ()),
        ("parts/00000000.zarr/token", link, {0}, ()),
        ("parts/00000000.zarr", link, {0}, ()),
        ("parts/00000000.zarr", shutil.rmtree, {0}, ()),
        ("parts/00000000.parquet", flip, {0}, ()),
        ("parts/00000001.json", flip, {1}, ()),
        ("parts/00000001.json", truncate, {1}, ()),
        ("parts/00000001.json", Path.unlink, {1}, ()),
        ("parts/00000001.json", link, {1}, ()),
        ("parts/00000001.json", lambda path: edit(path, plan_sha256="x"), {1}, ()),
        (
            "parts/00000001.json",
            lambda path: edit(path, files={"../x": {"sha256": "", "bytes": 0}}),
            {1},
            (),
        ),
        ("parts/00000007.json", stray, set(), ()),
        ("parts/00000007.zarr/zarr.json", stray, set(), ()),
        ("parts/notes.txt", stray, set(), ()),
        ("parts/old/notes.txt", stray, set(), ()),
        ("parts/00000000.zarr/token/extra/notes.txt", stray, set(), ()),
        ("model.zarr/notes.txt", stray, set(), ()),
        ("plan.parquet", flip, set(), ("plan.parquet",)),
        ("plan.parquet", Path.unlink, set(), ("plan.parquet",)),
        ("vocab.parquet", link_outside, set(), ("vocab.parquet",)),
        ("model.zarr/unembedding/c/0/0", flip, set(), ("model.zarr/unembedding/c/0/0",)),
    ],
)
def test_damage_and_nothing_else_is_removed_and_done_again(
    good: Path, store: Path, file: str, damage: Callable[[Path], object], redone: set[int], rewritten: tuple[str, ...]
) -> None:
    damage(store / file)
    damaged = tree(store)
    announced = repair(store, dry_run=True)
    assert tree(store) == damaged
    done = repair(store)
    assert done == announced
    assert (set(done.redone), done.rewritten, done.kept) == (redone, rewritten, ())
    gone = tree(good).keys() - tree(store).keys()
    assert gone == {name for name in tree(good) if any(name.startswith(f"parts/{part:08d}.") for part in redone)} | set(
        rewritten
    )
    assert set(committed_parts(store)) == PARTS - redone
    write(store, sorted(redone))
    assert verify(store).problems == ()
    assert tree(store).keys() == tree(good).keys()
    assert {name: content for name, content in tree(store).items() if not name.startswith("parts/")} == {
        name: content for name, content in tree(good).items() if not name.startswith("parts/")
    }


def test_a_whole_folder_of_the_model_as_a_link(good: Path, store: Path) -> None:
    link_outside(store / "model.zarr")
    done = repair(store)
    assert {name.split("/")[0] for name in done.rewritten} == {"model.zarr"}
    assert [removal.name for removal in done.removals] == ["model.zarr"]
    write(store, [])
    assert tree(store) == tree(good)


def test_a_sound_store_is_left_alone(store: Path) -> None:
    before = tree(store)
    assert repair(store) == ((), (), (), ())
    assert tree(store) == before


def test_parts_with_bad_samples_go_on_request(store: Path) -> None:
    done = repair(store, retry_bad=True)
    assert [(removal.name, removal.part) for removal in done.removals] == [("parts/00000002", 2)]
    assert "bad0/normal-1 (zero bytes) and 1 more" in done.removals[0].reason
    assert done.redone == (2,)
    assert set(committed_parts(store)) == {0, 1}
    write(store, [2])
    assert verify(store).problems == ()


def test_what_links_lead_to_stays(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(store / "parts/00000000.zarr", outside)
    (store / "parts/00000000.zarr").symlink_to(outside)
    (store / "notes").symlink_to(tmp_path)
    (store / ".staging").mkdir(exist_ok=True)
    (store / ".staging/piece").symlink_to(outside)
    before = tree(outside)
    assert repair(store).redone == (0,)
    assert tree(outside) == before
    assert [path for path in store.rglob("*") if path.is_symlink()] == [store / "notes"]


@pytest.mark.parametrize("folder", ["parts", ".staging"])
def test_a_link_in_place_of_a_whole_folder_is_left_and_said(store: Path, folder: str) -> None:
    (store / folder).mkdir(exist_ok=True)
    link(store / folder)
    (store / "elsewhere").rename(store.parent / "elsewhere")
    (store / folder).unlink()
    (store / folder).symlink_to(store.parent / "elsewhere")
    (store.parent / "elsewhere/file").write_text("mine")
    before = tree(store.parent / "elsewhere")
    kept = repair(store).kept
    assert [problem.file for problem in kept] == [folder]
    assert tree(store.parent / "elsewhere") == before


def test_a_damaged_record_stops_everything(store: Path) -> None:
    (store / "store.json").write_text((store / "store.json").read_text().replace('"seed": 0', '"seed": 1'))
    flip(store / STATES)
    before = tree(store)
    with pytest.raises(StrataError, match=r"store\.json .*nothing was removed.*restore it.*writes it again"):
        repair(store)
    assert tree(store) == before


def test_a_lost_record_is_written_again_and_keeps_the_parts(good: Path, store: Path) -> None:
    (store / "store.json").unlink()
    write(store, [])
    assert tree(store) == tree(good)
    (store / "store.json").unlink()
    with pytest.raises(StrataError, match="another plan"):
        tiny_store(store, seed=1, dim=8, layers=2, empty_parts=1, written=[])


def test_a_common_file_that_would_be_another_is_not_put_in_its_place(store: Path) -> None:
    (store / "vocab.parquet").unlink()
    record = store / "store.json"
    files = json.loads(record.read_bytes())["files"]
    edit(record, files=files | {"vocab.parquet": {"sha256": "0" * 64, "bytes": 3}})
    with pytest.raises(StrataError, match=r"lacks vocab\.parquet, and what this run would write is not what"):
        write(store, [])
    assert not (store / "vocab.parquet").exists()


def test_leftovers_of_the_dead_go_and_the_living_keep_theirs(store: Path) -> None:
    (store / "parts/00000000.json").unlink()
    (store / "parts/00000001.json").unlink()
    dead = store / ".staging/00000009-dead"
    dead.mkdir(parents=True)
    (dead / "file").write_text("x")
    with staging_folder(store, "00000001", alone=True) as alive:
        (alive / "file").write_text("x")
        done = repair(store)
        assert (alive / "file").exists()
        assert (store / "parts/00000001.zarr").exists()
    assert not dead.exists()
    assert [(problem.file, "being written" in problem.message) for problem in done.kept] == [("parts/00000001", True)]
    assert [removal.name for removal in done.removals] == ["parts/00000000", ".staging/00000009-dead"]
    assert repair(store).redone == (0, 1)
    write(store, [0, 1])
    assert verify(store).problems == ()


def test_a_part_that_was_written_again_meanwhile_stays(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("engine.store.repair")

    def verify_and_write(path: Path, progress: object = None) -> object:
        found = verify(path)
        shutil.rmtree(path / "parts/00000000.zarr")
        (path / "parts/00000000.json").unlink()
        write(path, [0])
        return found

    flip(store / STATES)
    monkeypatch.setattr(module, "verify", verify_and_write)
    done = repair(store)
    assert [problem.file for problem in done.kept] == ["parts/00000000"]
    assert done.removals == ()
    assert verify(store).problems == ()


def test_a_crash_at_any_step_leaves_no_part_that_only_looks_whole(good: Path, tmp_path: Path) -> None:
    for step in range(100):
        path = Path(shutil.copytree(good, tmp_path / f"store{step}"))
        flip(path / STATES)
        with faulty_files(Faults(step, "death")) as faults, suppress(Death):
            repair(path)
        if not faults.struck:
            break
        there = [name for name in WHOLE_PART if os.path.lexists(path / name)]
        assert there == [name for name in WHOLE_PART if name in there][-len(there) :], "the manifest goes first"
        assert repair(path).redone == (0,)
        assert set(committed_parts(path)) == {1, 2}
        write(path, [0])
        assert verify(path).problems == ()
    assert step > 3


def test_the_plan_of_a_repair_needs_no_disk() -> None:
    manifest = {"files": {"00000000.parquet": {}, "00000000.zarr/zarr.json": {}}, "bad_samples": []}
    inventory = Inventory({"files": {"plan.parquet": {}}}, {0: manifest, 1: manifest | {"files": {}}}, ())
    problems = [
        Problem("parts/00000000.zarr/zarr.json", "is missing"),
        Problem("parts/00000002.json", "is missing, the part is planned"),
        Problem("parts/00000001.zarr/new", "is listed by no manifest"),
    ]
    found = plan_repair(
        problems, inventory, {"00000002-x": "alive"}, planned=range(4), exists=lambda file: file.endswith("new")
    )
    assert [removal[:1] + removal[2:] for removal in found.removals] == [
        ("parts/00000000", 0),
        ("parts/00000001.zarr/new", None),
    ]
    assert found.redone == (0, 2, 3)


def test_what_is_not_among_the_parts_may_be_the_users_and_stays(store: Path) -> None:
    for name in ("notes.txt", "results/phases.png"):
        stray(store / name)
    before = tree(store)
    done = repair(store)
    assert done.removals == ()
    assert [problem.file for problem in done.kept] == ["notes.txt", "results/phases.png"]
    assert tree(store) == before
