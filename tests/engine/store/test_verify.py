"""Every kind of damage is found and named by its file; a good store has none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StrataError
from engine.store import verify
from engine.store.manifest import seal_json
from tests.engine.store.builders import tiny_store

BAD = [{"sample_id": "x/y", "reason": "unreadable"}]
STATES = "parts/00000000.zarr/token/hidden_states/c/0/0/0"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("verify") / "store", empty_parts=1).path


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "store"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def edit(path: Path, **changes: object) -> None:
    """Change fields and seal again, as somebody who knows the format would."""
    value = json.loads(path.read_bytes())
    value.pop("sha256")
    path.write_bytes(seal_json(value | changes))


def rewrite(path: Path) -> None:
    """Change a field without sealing again."""
    path.write_text(path.read_text().replace('"seconds": 1.5', '"seconds": 0.5').replace('"seed": 0', '"seed": 1'))


def problems(store: Path) -> dict[str, str]:
    found = verify(store).problems
    assert len({problem.file for problem in found}) == len(found)
    return dict(found)


def test_a_good_store(store: Path) -> None:
    reports: list[tuple[int, int]] = []
    assert verify(store, lambda done, total: reports.append((done, total))) == ((), ())
    assert reports[-1][0] == reports[-1][1] > 10_000
    assert reports == sorted(reports)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (STATES, flip, "another sha256"),
        (STATES, truncate, "bytes"),
        (STATES, Path.unlink, "is missing"),
        ("parts/00000000.zarr/token/hidden_states/zarr.json", flip, "another sha256"),
        ("parts/00000000.parquet", flip, "another sha256"),
        ("parts/00000000.zarr/token/role/c/0", Path.unlink, "is missing"),
        ("model.zarr/unembedding/c/0/0", flip, "another sha256"),
        ("vocab.parquet", Path.unlink, "is missing"),
        ("plan.parquet", Path.unlink, "is missing"),
        ("plan.parquet", lambda path: path.write_bytes(b"x"), "bytes"),
        ("parts/00000001.json", rewrite, "sha256 that it states"),
        ("parts/00000001.json", lambda path: edit(path, plan_sha256="x"), "another plan"),
        ("parts/00000001.json", lambda path: edit(path, bad_samples=BAD), "accounts for 3 samples, 2 are planned"),
        ("parts/00000001.json", lambda path: edit(path, files={"../store.json": {}}), "no manifest"),
        ("store.json", rewrite, "sha256 that it states"),
        ("parts/00000007.json", lambda path: path.write_text("{}"), "no manifest"),
        ("parts/notes.txt", lambda path: path.write_text("mine"), "no manifest"),
        ("notes.txt", lambda path: path.write_text("mine"), "listed by no manifest"),
        ("parts/00000000.zarr/token/extra", lambda path: path.write_text("mine"), "listed by no manifest"),
        ("parts/00000000.zarr/token/loop", lambda path: path.symlink_to("/"), "symbolic link"),
    ],
)
def test_damage(store: Path, file: str, damage: Callable[[Path], object], message: str) -> None:
    damage(store / file)
    found = problems(store)
    assert message in found[file]
    allowed = {file} | ({"parts/00000001.parquet", "parts/00000001.zarr"} if "no manifest" in found[file] else set())
    assert found.keys() <= allowed


def test_a_link_in_place_of_a_file(store: Path) -> None:
    link(store / STATES)
    found = problems(store)
    assert "symbolic link" in found[STATES]
    assert found.keys() == {STATES, STATES.removesuffix("0") + "elsewhere"}


def test_a_planned_part_without_manifest(store: Path) -> None:
    (store / "parts/00000001.json").unlink()
    assert {file: message.split(" ")[0] for file, message in problems(store).items()} == {
        "parts/00000001.json": "is",
        "parts/00000001.zarr": "belongs",
        "parts/00000001.parquet": "belongs",
    }


def test_a_part_that_is_not_planned(store: Path) -> None:
    for suffix in ("json", "parquet"):
        shutil.copy(store / f"parts/00000001.{suffix}", store / f"parts/00000005.{suffix}")
    edit(store / "parts/00000005.json", part=5, files={}, arrays={})
    found = problems(store)
    assert "plan does not have" in found["parts/00000005.json"]


def test_a_manifest_under_another_name(store: Path) -> None:
    shutil.copy(store / "parts/00000001.json", store / "parts/00000005.json")
    assert "another part number" in problems(store)["parts/00000005.json"]


def test_a_listed_file_outside_of_the_store(store: Path) -> None:
    path = store / "parts/00000001.json"
    outside = {"../../secret": {"sha256": "0" * 64, "bytes": 1}}
    edit(path, files=json.loads(path.read_bytes())["files"] | outside)
    (store.parent / "secret").write_text("x")
    found = problems(store)
    assert "'../../secret', which is outside of its part" in found["parts/00000001.json"]
    assert found.keys() == {f"parts/00000001.{suffix}" for suffix in ("json", "parquet", "zarr")}


def test_staging_is_a_note(store: Path) -> None:
    (store / ".staging/00000002-abc").mkdir(parents=True)
    (store / ".staging/00000002-abc/file").write_text("x")
    result = verify(store)
    assert not result.problems
    assert "00000002-abc" in result.notes[0]


def test_a_record_without_files(store: Path) -> None:
    edit(store / "store.json", files={"plan.parquet": 3})
    with pytest.raises(StrataError, match="list of files that is none"):
        verify(store)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StrataError, match=r"no store\.json"):
        verify(tmp_path)
