from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyses.centring import StateMeans, find_origin, part_means
from analyses.contextualization import analyze_store
from analyses.contextualization_plan import plan_means, plan_tasks
from analyses.part_task import PAIRS
from engine.errors import StrataError, UsageError
from engine.store import open_store
from tests.analyses.builders import after_final_norm, random_samples, write_samples
from tests.analyses.test_anisotropy import SETS
from tests.engine.store.builders import TinySample


def states_of(sample: TinySample, layer: int | None) -> NDArray[np.float64]:
    """Float64 states of a layer; None is the last one after the final norm."""
    return after_final_norm(sample.states[-1]) if layer is None else sample.states[layer].astype(np.float64)


def origin_of(samples: list[TinySample], layer: int | None) -> NDArray[np.float64]:
    """Half the mean over samples of the mean image state, half that of the mean text state."""
    modalities = []
    for codes in SETS.values():
        chosen = [states_of(s, layer)[np.isin(s.roles, codes)] for s in samples]
        means = [own.mean(axis=0) for own in chosen if len(own)]
        if means:
            modalities.append(np.mean(means, axis=0))
    return np.mean(modalities, axis=0)


def centred_cosine(sample: TinySample, origin: NDArray[np.float64], pair: str, layer: int | None) -> float:
    centred = states_of(sample, layer) - origin
    a, b = ([i for i, role in enumerate(sample.roles) if role in SETS[name]] for name in pair.split("-"))
    cosines = [
        centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
        for i in a
        for j in b
        if i != j
    ]
    return float(np.mean(cosines)) if cosines else float("nan")


@pytest.mark.parametrize(("source", "pooled"), [("auto", True), ("auto", False), ("hidden_states", True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_cosines_are_of_states_less_the_mean_state(tmp_path: Path, source: str, pooled: bool, seed: int) -> None:
    samples = random_samples(seed, images=4, prompts=2)
    store = open_store(write_samples(tmp_path / "store", samples, pooled=pooled))
    means = plan_means(
        store, plan_tasks(store, "hidden_states", ("instruction", "template"), False, "mean-centred"), source
    )
    assert {task.source for task in means} == {"pooled" if (source, pooled) == ("auto", True) else "hidden_states"}
    result = analyze_store(store, source=source, adjustment="mean-centred")
    assert (result.source, result.adjustment, result.baseline) == ("hidden_states", "mean-centred", None)
    assert result.normed is not None
    for layer in (0, 1, None):
        origin = origin_of(samples, layer)
        values = result.normed if layer is None else result.cosine[:, layer]
        for s, sample in enumerate(samples):
            expected = [centred_cosine(sample, origin, pair, layer) for pair in PAIRS]
            np.testing.assert_allclose(values[s], expected, atol=5e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.lists(st.booleans(), min_size=2, max_size=2))
@settings(max_examples=40)
def test_the_origin_weighs_modalities_and_samples_alike(seed: int, parts: int, there: list[bool]) -> None:
    rng = np.random.default_rng(seed)
    counts = [rng.integers(1, 4, 2) * there for _ in range(parts)]
    means = [[rng.standard_normal((count, 3, 2)) for count in own] for own in counts]
    found = find_origin(
        StateMeans(np.stack([own.sum(axis=0) for own in part]), np.array([len(own) for own in part])) for part in means
    )
    modalities = [np.concatenate([part[k] for part in means]) for k in range(2)]
    expected = np.mean([own.mean(axis=0) for own in modalities if len(own)] or [np.zeros((3, 2))], axis=0)
    np.testing.assert_allclose(found.states, expected[:2])
    np.testing.assert_allclose(found.normed, expected[2])


def test_pooled_states_alone_cannot_be_centred(tmp_path: Path) -> None:
    samples = random_samples(0, images=2, prompts=1)
    pooled = open_store(write_samples(tmp_path / "pooled", samples, residual=False))
    with pytest.raises(UsageError, match=r"holds no hidden states: use --adjustment anisotropy, or .*residual,pooled"):
        analyze_store(pooled, adjustment="mean-centred")
    both = open_store(write_samples(tmp_path / "both", samples))
    with pytest.raises(UsageError, match=r"which pooled states cannot give: use --source auto"):
        analyze_store(both, adjustment="mean-centred", source="pooled")
    with pytest.raises(UsageError, match=r"--adjustment some: expected one of none, anisotropy, mean-centred"):
        analyze_store(both, adjustment="some")


def test_a_state_that_is_the_mean_is_named(tmp_path: Path) -> None:
    sample = random_samples(0, images=1, prompts=1, parts=1, empty=False)[0]
    sample.states[:] = 1.0
    store = open_store(write_samples(tmp_path / "store", [sample]))
    with pytest.raises(StrataError, match=r"sample 0/p0, layer 0, position 1 less the layer's mean is a zero vector"):
        analyze_store(store, adjustment="mean-centred")


def test_pooled_and_hidden_states_give_the_same_mean(tmp_path: Path) -> None:
    store = open_store(write_samples(tmp_path / "store", random_samples(3, images=3, prompts=2)))
    tasks = plan_tasks(store, "hidden_states", ("template",), False, "mean-centred")
    pooled, states = (
        find_origin(part_means(task) for task in plan_means(store, tasks, source))
        for source in ("auto", "hidden_states")
    )
    np.testing.assert_allclose(pooled.states, states.states, atol=1e-6)
    np.testing.assert_array_equal(pooled.normed, states.normed)


@pytest.mark.parametrize("adjustment", ["anisotropy", "mean-centred"])
def test_adjustments_take_out_what_all_states_share(tmp_path: Path, adjustment: str) -> None:
    """Isotropic states have cosines about 0; a constant added to all of them lifts raw cosines and nothing else."""
    curves = {}
    for common in (0.0, 3.0):
        samples = random_samples(7, images=12, prompts=3, dim=48, most=6, common=common, empty=False)
        store = open_store(write_samples(tmp_path / f"{common}", samples))
        for name in ("none", adjustment):
            curves[name, common] = np.nanmean(analyze_store(store, adjustment=name).cosine, axis=(0, 1))
    assert np.abs(curves["none", 0.0]).max() < 0.02
    assert (curves["none", 3.0] > 0.8).all()
    assert np.abs(curves[adjustment, 3.0]).max() < 0.02
