"""Whole runs with an adjustment: they resume, run on a cluster, and stay within the memory that they predict."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import LocalCluster

from analyses import part_runs
from analyses.contextualization import analyze_store
from analyses.kept_parts import KeptParts
from analyses.part_task import Origin, PartTask
from analyses.registry import run
from analyses.resources import Resources
from engine.errors import StrataError
from engine.store import open_store
from engine.vocabulary import ROLE_CODES
from tests.analyses.builders import random_samples, write_samples
from tests.engine.store.builders import tiny_store

ADJUSTMENTS = ("anisotropy", "mean-centred")
USE = {"workers": 1, "memory": 2 * 2**30}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as running:
        yield running.scheduler_address


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = random_samples(4, images=6, prompts=2, layers=10, parts=6, empty=False)
    return write_samples(tmp_path_factory.mktemp("adjusted") / "store", samples)


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_a_cluster_gives_the_same_bits(cluster: str, store: Path, adjustment: str) -> None:
    seen: list[tuple[int, int]] = []
    here = analyze_store(open_store(store), adjustment=adjustment)
    resources = Resources(scheduler=cluster, progress=lambda *now: seen.append(now))
    there = analyze_store(open_store(store), adjustment=adjustment, resources=resources)
    np.testing.assert_array_equal(here.cosine, there.cosine)
    np.testing.assert_array_equal(here.normed, there.normed)
    assert seen == [(n, 6) for n in range(7)] * (2 if adjustment == "mean-centred" else 1)


@pytest.mark.parametrize(
    ("adjustment", "broken", "left"),
    [("anisotropy", "part_cosines", [(0, 3)]), ("mean-centred", "part_means", [(0, 3), (0, 6)]),
     ("mean-centred", "part_cosines", [(0, 0), (0, 3)])],
)  # fmt: skip
def test_a_broken_off_run_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adjustment: str, broken: str, left: list
) -> None:
    original, calls = getattr(part_runs, broken), []

    def break_off_at_the_fourth(task: PartTask) -> object:
        calls.append(task.name)
        if len(calls) == 4:
            raise StrataError("the cluster went away")
        return original(task)

    use = {**USE, "adjustment": adjustment}
    with monkeypatch.context() as patch:
        patch.setattr(part_runs, broken, break_off_at_the_fourth)
        with pytest.raises(StrataError, match="went away"):
            run("contextualization", [str(store)], tmp_path / "r", **use)
    assert os.listdir(tmp_path / "r") == [".unfinished"]
    seen: list[tuple[int, int]] = []
    run("contextualization", [str(store)], tmp_path / "r", **use, progress=lambda *now: seen.append(now))
    assert [now for now in seen if now[0] == 0] == left
    run("contextualization", [str(store)], tmp_path / "whole", **use)
    once, twice = (pd.read_parquet(tmp_path / name / "contextualization.parquet") for name in ("r", "whole"))
    pd.testing.assert_frame_equal(once, twice)
    assert not (tmp_path / "r" / ".unfinished").exists()


def test_names_of_kept_parts_tell_what_they_depend_on(store: Path, tmp_path: Path) -> None:
    part = open_store(store).parts[0]
    task = PartTask(part.url, part.name, "hidden_states", ("template",), False, False, None)
    origin = Origin(np.zeros((10, 4)), np.zeros(4))
    moved = origin._replace(normed=np.ones(4))
    tasks = [task, replace(task, prompts=("a",)), replace(task, origin=origin), replace(task, origin=moved)]
    names = [KeptParts(tmp_path).name(what, part, own) for what in ("cosines", "means") for own in tasks]
    assert len(set(names)) == 8


def test_parts_removed_meanwhile_are_an_error_with_a_next_step(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptParts, "save", lambda *_: None)
    with pytest.raises(StrataError, match=r"was removed from the results folder while .*: run it again"):
        run("contextualization", [str(store)], tmp_path / "r", **USE)


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_phases_of_adjusted_cosines_say_so(store: Path, tmp_path: Path, adjustment: str) -> None:
    run("all", [str(store)], tmp_path, **USE, adjustment=adjustment, bootstraps=5)
    for name in ("contextualization", "phases"):
        assert pd.read_parquet(tmp_path / f"{name}.parquet")["adjustment"].eq(adjustment).all()
        assert xr.open_zarr(tmp_path / f"{name}.zarr").attrs["adjustment"] == adjustment
    assert ("baseline" in xr.open_zarr(tmp_path / "contextualization.zarr")) == (adjustment == "anisotropy")


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_an_empty_part_has_no_say(tmp_path: Path, adjustment: str) -> None:
    got, expected = (
        analyze_store(open_store(tiny_store(tmp_path / f"{empty}", empty_parts=empty).path), adjustment=adjustment)
        for empty in (1, 0)
    )
    np.testing.assert_array_equal(got.cosine, expected.cosine)


def test_a_prompt_without_text_is_told_and_left_out(tmp_path: Path) -> None:
    samples = random_samples(3, images=4, prompts=2, layers=10, empty=False)
    bare = [
        replace(
            own,
            states=own.states[:, own.roles < ROLE_CODES["instruction"]],
            roles=own.roles[own.roles < ROLE_CODES["instruction"]],
        )
        if own.prompt_id == "p1"
        else own
        for own in samples
    ]
    path = write_samples(tmp_path / "store", bare, kinds={"p1": "empty"})
    for adjustment in ("none", *ADJUSTMENTS):
        notes: list[str] = []
        run("all", [str(path)], tmp_path / adjustment, **USE, adjustment=adjustment, bootstraps=5, notify=notes.append)
        told = [note for note in notes if "none of the 4 samples of empty has a token of instruction, template" in note]
        left = [note for note in notes if "store, empty: no image has a curve image-text or text-text" in note]
        assert (len(told), len(left)) == (1, 1)
        phases = pd.read_parquet(tmp_path / adjustment / "phases.parquet")
        assert set(phases.loc[phases["prompt_kind"] == "empty", "pair"]) == {"image-image"}
        dataset = xr.open_zarr(tmp_path / adjustment / "contextualization.zarr")
        assert dataset["curve_prompt_kind"].values.tolist() == ["normal", "empty"]
        assert dataset["curve_images"].values[1, [0, 2]].tolist() == [0, 0]
        assert dataset["curve_images"].values[0, 0] == 4


def test_a_single_token_of_text_is_told(tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "store", layers=9).path
    notes: list[str] = []
    run("contextualization", [str(path)], tmp_path / "r", **USE, text_roles=("preamble",), notify=notes.append)
    assert notes == [
        "store: each of the 6 samples of normal has a single token of preamble, which has no other to be paired with, "
        "so the curve text-text is empty"
    ]
