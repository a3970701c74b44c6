"""Creating, resuming and refusing stores."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import StrataError, UsageError
from engine.store import PLAN_SCHEMA, ModelMatrix, committed_parts, create_store, open_store, verify
from engine.store import record as record_module
from engine.store.differences import list_differences
from engine.store.layout import FORMAT_VERSION
from engine.store.manifest import has_true_sha256, seal_json
from tests.engine.store.builders import tiny_record, tiny_store, tiny_vocabulary

ROOT = Path(__file__).parents[3]
ATTRIBUTES = {
    "norm_kind": "layer",
    "norm_eps": 1e-6,
    "norm_weight_offset": 1.0,
    "logit_softcap": 30.0,
    "tied_embeddings": True,
}


def create(path: Path, *, layers: range = range(9), **changes: Any) -> None:
    plan = pa.table([["a/normal-1"], ["a"], ["normal-1"], [0]], schema=PLAN_SCHEMA)
    record = tiny_record(layers, 8, "float16", f"{layers.stop:064x}") | changes.pop("record", {})
    options: dict[str, Any] = {
        "unembedding": None,
        "final_norm_weight": np.arange(4, dtype=np.float32),
        "final_norm_bias": np.ones(4, np.float32),
        "attributes": ATTRIBUTES,
    }
    create_store(path, record=record, plan=plan, vocabulary=tiny_vocabulary(), **(options | changes))


def test_a_store_of_another_format_is_refused_with_both_formats(tmp_path: Path) -> None:
    path = tmp_path / "store/store.json"
    create(tmp_path / "store")
    older = json.loads(path.read_bytes()) | {"format_version": "0.1", "plan_sha256": "0" * 64}
    del older["sha256"]
    path.write_bytes(seal_json(older))
    with pytest.raises(UsageError, match=f"other settings:\n  format_version: stored 0.1, asked {FORMAT_VERSION}\nuse"):
        create(tmp_path / "store")


def test_what_is_written(tmp_path: Path) -> None:
    create(tmp_path / "store", record={"extra": {"kept": [1]}})
    content = (tmp_path / "store/store.json").read_bytes()
    record = json.loads(content)
    assert has_true_sha256(content)
    assert record["format_version"] == FORMAT_VERSION
    assert record["extra"] == {"kept": [1]}
    assert {"plan.parquet", "vocab.parquet", "model.zarr/zarr.json"} < record["files"].keys()
    store = open_store(tmp_path / "store")
    assert (store.block_count, store.layers.tolist(), store.complete) == (8, list(range(9)), False)
    model = store.model
    assert model.final_norm_weight.tolist() == [0, 1, 2, 3]
    assert model.final_norm_bias is not None
    assert model.final_norm_bias.tolist() == [1, 1, 1, 1]
    assert (model.norm_kind, model.norm_eps, model.norm_weight_offset) == ("layer", 1e-6, 1.0)
    assert (model.logit_softcap, model.tied_embeddings, model.unembedding) == (30.0, True, None)
    assert model.vocabulary["piece"].tolist()[3] == "▁a"
    assert committed_parts(tmp_path / "store") == {}


def test_unembedding_is_asked_for_in_blocks(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((3000, 1024)).astype(np.float32)
    asked = []

    def rows(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return matrix[start:stop]

    create(tmp_path / "store", unembedding=ModelMatrix(matrix.shape, "float32", rows))
    assert len(asked) == 3
    assert all(2**20 <= length * 4096 <= 2**22 for length in asked)
    unembedding = open_store(tmp_path / "store").model.unembedding
    assert unembedding is not None
    assert unembedding.chunks[0] == tuple(asked)
    np.testing.assert_array_equal(unembedding.compute(), matrix)


def test_the_same_plan_is_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    monkeypatch.setattr(record_module, "write_model_group", None)
    create(tmp_path / "store")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before


def test_another_plan_is_refused_setting_by_setting(tmp_path: Path) -> None:
    create(tmp_path / "store")
    with pytest.raises(UsageError) as caught:
        create(tmp_path / "store", layers=range(5), record={"seed": 1})
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "capture.layers: stored 0..8, asked 0..4" in message
    assert "seed: stored 0, asked 1" in message
    assert message.count("stored") == 2
    assert "--out" in message


def test_differences_in_words() -> None:
    stored = {"a": {"b": [0, 4, 8], "c": []}, "prompts": [{"id": "x", "text": "t"}], "long": "y" * 200}
    asked = {"a": {"b": (0, 1, 2), "c": [1]}, "prompts": [{"id": "x", "text": "u"}, {"id": "z"}], "d": None}
    assert list_differences(stored, asked) == [
        "a.b: stored 0, 4, 8, asked 0..2",
        "a.c: stored nothing, asked 1",
        "d: stored nothing, asked None",
        f"long: stored {'y' * 79}…, asked nothing",
        "prompts.0.text: stored t, asked u",
        "prompts.1.id: stored nothing, asked z",
    ]
    assert list_differences(stored, dict(stored)) == ["the settings are the same, but they chose other samples"]


def test_a_newer_major_format_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "store")
    path = tmp_path / "store/store.json"
    record = json.loads(path.read_bytes())
    record.pop("sha256")
    path.write_bytes(seal_json(record | {"format_version": "2.0"}))
    for action in (lambda: create(tmp_path / "store"), lambda: open_store(tmp_path / "store")):
        with pytest.raises(StrataError, match=r"format 2\.0.*upgrade"):
            action()
    path.write_bytes(seal_json(record | {"format_version": "1.9", "unknown": 1}))
    assert open_store(tmp_path / "store").record["unknown"] == 1
    for version in (None, "1", "1.x", "-1.0", 1.0):
        path.write_bytes(seal_json(record | {"format_version": version}))
        with pytest.raises(StrataError, match="damaged"):
            open_store(tmp_path / "store")


@pytest.mark.parametrize("field", ["plan_sha256", "model", "capture", "files", "sha256"])
def test_a_record_that_lacks_a_field(tmp_path: Path, field: str) -> None:
    create(tmp_path / "store")
    path = tmp_path / "store/store.json"
    record = json.loads(path.read_bytes())
    del record[field]
    path.write_text(json.dumps(record))
    for action in (lambda: create(tmp_path / "store"), lambda: open_store(tmp_path / "store")):
        with pytest.raises(StrataError, match=f"lacks {field}"):
            action()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*notes\.txt"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="is a file"):
        create(tmp_path / "notes.txt")


def test_a_creation_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    create(tmp_path / "store")
    (tmp_path / "store/store.json").unlink()
    create(tmp_path / "store")
    assert (tmp_path / "store/store.json").exists()


def test_common_files_of_another_run_are_noticed(tmp_path: Path) -> None:
    create(tmp_path / "store")
    (tmp_path / "store/store.json").unlink()
    with pytest.raises(StrataError, match="different bytes"):
        create(tmp_path / "store", final_norm_weight=np.zeros(4, np.float32))
    assert not (tmp_path / "store/store.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": {"sha256": "x"}}, "may not hold"),
        ({"record": {"capture": {}}}, r"lacks capture\.layers"),
        ({"attributes": {}}, "norm_kind"),
        ({"unembedding": ModelMatrix((4, 4), "float16", lambda *_: np.zeros((4, 4)))}, "announced"),
    ],
)
def test_what_a_record_must_hold(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "store", **change)


def test_a_failing_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StrataError, match="could not be created"):
        create(tmp_path / "file" / "store")


def test_two_processes_create_the_same_store(tmp_path: Path) -> None:
    """Both succeed, each writes its part, and the store is whole."""
    script = (
        "import sys; from pathlib import Path; from tests.engine.store.builders import tiny_store;"
        "print('ready', flush=True); sys.stdin.readline();"
        "tiny_store(Path(sys.argv[1]), written=[int(sys.argv[2])])"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(tmp_path / "store"), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for rank in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        run.stdout.readline()
    for run in runs:
        run.communicate("go\n")
        assert run.returncode == 0
    assert not verify(tmp_path / "store").problems
    assert open_store(tmp_path / "store").complete
    alone = tiny_store(tmp_path / "alone")
    assert (tmp_path / "store/store.json").read_bytes() == (alone.path / "store.json").read_bytes()
