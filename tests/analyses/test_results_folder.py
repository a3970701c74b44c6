import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
import zarr

from analyses.registry import run
from analyses.results_folder import RESULTS_FORMAT
from engine.errors import UsageError
from engine.store import open_store
from tests.engine.store.builders import TinyStore, tiny_store

WrittenStore = Callable[..., TinyStore]
USE = {"workers": 1, "memory": 2 * 2**30}
FEW = {**USE, "bootstraps": 5}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, match: str, name: str, stores: list[str], **options: object) -> None:
    before = content(folder)
    with pytest.raises(UsageError, match=match):
        run(name, stores, folder, **{**USE, **options})
    assert content(folder) == before


@pytest.fixture
def store(written_store: WrittenStore) -> str:
    return str(written_store(layers=9).path)


def test_every_dataset_says_what_it_is(store: str, tmp_path: Path) -> None:
    run("all", [store], tmp_path, **FEW)
    for name in ("contextualization", "phases"):
        attributes = xr.open_zarr(tmp_path / f"{name}.zarr").attrs
        assert (attributes["analysis"], attributes["results_format"]) == (name, RESULTS_FORMAT)
        assert (attributes["text_roles"], attributes["adjustment"]) == ("instruction,template", "none")
        assert json.loads(attributes["stores"])[0]["plan_sha256"] == open_store(store).record["plan_sha256"]
        assert "items" in attributes["resampled"]
        assert json.loads(attributes["settings"])["text_roles"] == ["instruction", "template"]


@pytest.mark.parametrize("name", ["contextualization", "phases"])
def test_a_dataset_of_another_analysis_or_format_is_not_overwritten(store: str, tmp_path: Path, name: str) -> None:
    for attributes, holds in (
        ({}, "no results that this strata knows"),
        ({"analysis": "logit-lens", "results_format": RESULTS_FORMAT}, "results of the analysis logit-lens"),
        ({"analysis": name, "results_format": 99}, "results of format 99"),
    ):
        folder = tmp_path / holds.replace(" ", "-")
        zarr.open_group(folder / f"{name}.zarr", mode="w", attributes=attributes)
        refused(folder, rf"{name}\.zarr holds {holds}, .*choose another --out, or remove .*{name}\.zarr", name, [store])
        refused(folder, holds, "phases", [store], bootstraps=5)  # which would write both


@pytest.mark.parametrize("first", ["contextualization", "phases"])
def test_results_of_other_stores_roles_or_adjustment_are_not_mixed(store: str, tmp_path: Path, first: str) -> None:
    folder, other = tmp_path / "r", str(tiny_store(tmp_path / "other", layers=9, seed=1).path)
    use = {"bootstraps": 5} if first == "phases" else {}
    run(first, [store], folder, **USE, **use)
    for name, own in (("contextualization", {}), ("phases", {"bootstraps": 5})):
        stores = r"store store \(plan 00000000\), asked is store other \(plan 00000000\)"
        refused(folder, rf"holds .* of {stores}; .*another --out, or remove", name, [other], **own)
        refused(folder, r"asked is stores store .*, other", name, [store, other], **own)
        roles = "--text-roles instruction,template, asked is --text-roles preamble,instruction"
        refused(folder, roles, name, [store], text_roles=("instruction", "preamble"), **own)
        both = "--text-roles .* and --adjustment none, asked is --text-roles template and --adjustment anisotropy"
        refused(folder, both, name, [store], text_roles=("template",), adjustment="anisotropy", **own)


def test_own_options_replace_and_the_same_stores_may_have_moved(store: str, tmp_path: Path) -> None:
    run("all", [store], tmp_path / "r", **FEW)
    moved = shutil.copytree(store, tmp_path / "moved")
    run("phases", [str(moved)], tmp_path / "r", **USE, bootstraps=6, pattern="three")
    table = pd.read_parquet(tmp_path / "r" / "phases.parquet")
    assert (table["pattern"].unique().tolist(), table["store"].unique().tolist()) == (["three"], ["moved"])
    run("contextualization", [store], tmp_path / "r", **USE, self_pairs=True)
    assert pd.read_parquet(tmp_path / "r" / "contextualization.parquet")["self_pairs"].any()


def test_a_store_that_grows_is_analysed_again_into_the_same_folder(tmp_path: Path) -> None:
    path, results = tmp_path / "store", tmp_path / "r"
    whole = tiny_store(tmp_path / "whole", layers=9, parts=3).path
    tiny_store(path, layers=9, parts=3, written=[0])
    run("all", [str(path)], results, **FEW)
    assert pd.read_parquet(results / "contextualization.parquet")["image_id"].nunique() == 1
    for name in ("00000001.zarr", "00000002.zarr"):
        shutil.copytree(whole / "parts" / name, path / "parts" / name)
    for name in ("00000001.parquet", "00000002.parquet", "00000001.json", "00000002.json"):
        shutil.copy(whole / "parts" / name, path / "parts" / name)
    notes: list[str] = []
    run("contextualization", [str(path)], results, **USE, notify=notes.append)
    assert notes == [
        f"{results}/{name}.zarr is of other parts of its stores than what was written now: run strata analyze {name} "
        "again"
        for name in ("logit-lens", "phases")
    ]
    run("phases", [str(path)], results, **FEW, notify=notes.append)
    assert notes[2:] == notes[:1]
    own: list[str] = []
    run("logit-lens", [str(path)], results, topk=4, **FEW, notify=own.append)
    assert not [note for note in own if "again" in note]
    assert pd.read_parquet(results / "contextualization.parquet")["image_id"].nunique() == 3
    assert pd.read_parquet(results / "phases.parquet")["images"].eq(3).all()


def test_what_other_programs_left_there_is_no_concern(store: str, tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "mine.zarr", mode="w", attributes={"analysis": "mine", "results_format": 1})
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    words = {"stores": "a shop", "text_roles": "x", "adjustment": "y", "results_format": RESULTS_FORMAT}
    zarr.open_group(tmp_path / "shop.zarr", mode="w", attributes=words)
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    run("contextualization", [store], tmp_path, **USE)
    assert {"mine.zarr", "other.zarr", "broken.zarr", "contextualization.zarr"} <= set(os.listdir(tmp_path))
