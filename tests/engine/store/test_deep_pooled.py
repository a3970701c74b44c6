"""Pooled states that are not those of the hidden states beside them: after the final norm, and over shared prefixes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.store import open_store, verify
from engine.store.deep_axes import read_axes
from engine.store.deep_runs import find_pooled_runs
from engine.store.part import Part
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import PREFIX_ROLES, tiny_store
from tests.engine.store.forge import change_array, change_record

NORMS: dict[str, dict[str, Any]] = {
    "rms": {},
    "rms, weights stored minus one": {"weight_offset": 1.0},
    "layer": {"bias": True, "weight_offset": 0.5},
}
NORMED = "sample/normed_unit_mean"
IMAGE, INSTRUCTION = ROLE_CODES["image"], ROLE_CODES["instruction"]
ONCE = "once per image"
SHARED = len(PREFIX_ROLES)


@pytest.fixture(params=NORMS, scope="module")
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normed") / "store"
    return tiny_store(folder, layers=3, dim=8, images=2, parts=1, **NORMS[str(request.param)]).path


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "store"))


def add(*place: int, value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(place, values[place] + value)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float16", "mantissa_bits": 4}])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sound_store(tmp_path: Path, norm: str, options: dict[str, Any]) -> None:
    path = tiny_store(tmp_path / "store", layers=2, dim=8, images=1, parts=1, **options, **NORMS[norm]).path
    assert verify(path, deep=True) == ((), ())


def test_a_normed_mean_is_named(store: Path) -> None:
    assert verify(store, deep=True) == ((), ())
    change_array(store, NORMED, add(INSTRUCTION, 1, 3, value=1e-4))
    (problem,) = verify(store, deep=True).problems
    assert problem.file == f"parts/00000000.zarr/{NORMED}/c/0/0/0"
    assert problem.message.startswith(
        f"{NORMED} layer 2 is not the mean of unit vectors, after the final norm, of the hidden states beside it: "
        "sample 000/normal-2, role instruction, dim 3 is "
    )
    assert "more there" not in problem.message


def test_a_norm_that_was_left_out(store: Path) -> None:
    before = open_store(store).unit_mean.values[-1].copy()
    change_array(store, NORMED, lambda values: values.__setitem__(..., before))
    (problem,) = verify(store, deep=True).problems
    assert problem.message.startswith(f"{NORMED} layer 2 is not")
    assert ", and 1" in problem.message


def test_a_norm_of_another_model(store: Path) -> None:
    has_bias = (store / "model.zarr/final_norm_bias").exists()
    change_array(store, "final_norm_bias" if has_bias else "final_norm_weight", add(5, value=0.5), "model.zarr")
    files = {problem.file for problem in verify(store, deep=True).problems}
    assert files == {f"parts/00000000.zarr/{NORMED}/c/0/0/0"}


def test_without_states_of_the_last_layer_nothing_is_said(store: Path) -> None:
    change_array(store, NORMED, add(INSTRUCTION, 1, 3, value=1e-4))
    change_record(store / "store.json", lambda record: record["model"].update(blocks=3))
    assert verify(store, deep=True) == ((), ())


@pytest.mark.parametrize("said", [None, f"{ONCE}, of 1 of 2 images with every prompt: …", ONCE])
@pytest.mark.parametrize("array", ["sample/mean", "sample/unit_mean", NORMED])
def test_a_prefix_that_ran_once_has_one_mean(tmp_path: Path, array: str, said: str | None) -> None:
    path = tiny_store(tmp_path / "store", layers=1, dim=8, images=1, parts=1).path
    place = (IMAGE, 1, 3) if array == NORMED else (0, IMAGE, 1, 3)
    change_array(path, array, add(*place, value=0.02))
    change_record(path / "parts/00000000.json", lambda record: record["run"].update(prefix_pass=said))
    found = [problem.message for problem in verify(path, deep=True).problems]
    assert len(found) == (1 if said == ONCE else 0)
    assert all(f"{array} layer 0 is not" in message and "000/normal-2, role image" in message for message in found)


@pytest.mark.parametrize(
    ("run", "bad", "roles", "again"),
    [
        ({}, (), None, range(SHARED)),
        ({"prefix_pass": "with every prompt: a block slides"}, (), None, range(SHARED)),
        ({"prefix_pass": ONCE}, (), None, ()),
        ({"prefix_pass": ONCE}, ("001/normal-3",), None, ()),
        ({"prefix_pass": ONCE}, ("000/normal-3",), None, (SHARED - 1,)),
        ({"prefix_pass": ONCE}, (), PREFIX_ROLES, (SHARED - 1,)),
    ],
)
def test_which_tokens_a_later_sample_ran_for_itself(
    tmp_path: Path, run: dict[str, str], bad: tuple[str, ...], roles: tuple[str, ...] | None, again: tuple[int, ...]
) -> None:
    listed = open_store(tiny_store(tmp_path / "store", layers=1, dim=8, images=1, parts=1, roles=roles).path).parts[0]
    not_stored = [{"sample_id": sample, "reason": "NaN"} for sample in bad]
    part = Part(listed.location, listed.name, {**listed.manifest, "run": run, "bad_samples": not_stored})
    found = find_pooled_runs(part, read_axes(part), "token/hidden_states")
    assert found is not None
    ends = [*found.starts[1:], part.tokens]
    of_first, of_second = (
        [token for pooled in sample for number in pooled.again for token in range(found.starts[number], ends[number])]
        for sample in found.of_sample
    )
    assert (of_first, sorted(of_second)) == ([], list(again))
