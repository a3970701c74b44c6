"""Records that are gigantic, nested without end, or hold something else than they should.

Refused by their length, and as no record, with the file's name.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import change_record

MANIFEST = f"{PART}.json"
NODE = f"{PART}.zarr/token/hidden_states/zarr.json"


def gigantic(path: Path) -> None:
    os.truncate(path, 2**40)


def nested(path: Path) -> None:
    path.write_text("[" * 10**6)


def wide(path: Path) -> None:
    path.write_text("[" + "{}," * 2_700_000 + "{}]")


@pytest.mark.parametrize("damage", [gigantic, nested, wide])
@pytest.mark.parametrize("name", ["store.json", MANIFEST])
def test_a_record(store: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(store / name)
    withstand(store, Refusals.everywhere("has more than|is not JSON|not an object|is damaged"), tmp_path / "results")


@pytest.mark.parametrize("damage", [gigantic, nested])
def test_a_description(store: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(store / NODE)
    said = "zarr.json (has more than|is not JSON)"
    withstand(store, Refusals(None, "zarr.json: has", "zarr.json: has", None, said), tmp_path / "results")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": []},
        {"model": {"blocks": "many"}},
        {"capture": {"layers": "all"}},
        {"capture": {"layers": [0, 1], "queries": 3}},
        {"plan_sha256": ["x"]},
        {"files": ["plan.parquet"]},
        {"prompts": [1]},
    ],
    ids=json.dumps,
)
def test_fields_of_other_types(store: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    change_record(store / "store.json", lambda record: record.update(changes))
    withstand(store, Refusals.everywhere(r"store\.json (lacks|has a)"), tmp_path / "results")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": -1},
        {"samples": "two"},
        {"tokens": 2**70},
        {"seconds": "long"},
        {"run": []},
        {"bad_samples": [3]},
        {"arrays": []},
        {"arrays": {"../token/x": {}}},
        {"files": {"00000000.parquet": {"bytes": -1, "sha256": ""}}},
    ],
    ids=json.dumps,
)
def test_fields_of_a_manifest_of_other_types(store: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    change_record(store / MANIFEST, lambda record: record.update(changes))
    withstand(store, Refusals.everywhere(r"00000000\.json:? (has|says|lacks|is no manifest)"), tmp_path / "results")


@pytest.mark.parametrize("name", ["x" * 256, "x/" * 600 + "x", "\x1b[2Jx", "line\nbreak"], ids=ascii)
def test_names_that_no_file_has(store: Path, tmp_path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    change_record(store / MANIFEST, lambda record: record["files"].update({f"00000000.zarr/{name}": entry}))
    withstand(store, Refusals.everywhere("outside of its part"), tmp_path / "results")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": ["float16"]},
        {"attributes": {"captured_dtype": ["float16"]}},
        {"attributes": {"mantissa_bits": -5000}},
        {"attributes": {"rounding_max_relative_error": "x"}},
        {"attributes": {"roles": 5}},
        {"attributes": {"roles": [[]]}},
        {"attributes": {"layers": "all"}},
    ],
    ids=json.dumps,
)
def test_an_array_with_fields_of_other_types(store: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    change_record(store / MANIFEST, lambda record: record["arrays"]["token/hidden_states"].update(changes))
    said = "token/hidden_states' what cannot be: (the (dtype|captured_dtype|mantissa_bits|rounding_max)|roles,)"
    withstand(store, Refusals.everywhere(said), tmp_path / "results")
