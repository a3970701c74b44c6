import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyses.anisotropy import PairSumsOfPart, add_pair_sums, empty_pair_sums, mean_of_unrelated
from analyses.contextualization import analyze_store
from analyses.part_task import PAIRS
from analyses.registry import run
from analyses.resources import Resources
from engine.store import open_store
from engine.vocabulary import ROLE_CODES
from tests.analyses.builders import after_final_norm, random_samples, write_samples
from tests.engine.store.builders import TinySample

SETS = {"image": [ROLE_CODES["image"]], "text": [ROLE_CODES["instruction"], ROLE_CODES["template"]]}


def tokens(sample: TinySample, name: str, layer: int, normed: bool) -> NDArray[np.float64]:
    states = after_final_norm(sample.states[-1]) if normed else sample.states[layer].astype(np.float64)
    return states[np.isin(sample.roles, SETS[name])]


def brute_force(samples: list[TinySample], pair: str, layer: int, normed: bool = False) -> tuple[float, int]:
    """Mean over unrelated samples of the mean over all pairs of their tokens, and how many such samples there are."""
    a, b = pair.split("-")
    means = []
    for s, t in itertools.product(samples, samples):
        if s.image_id == t.image_id or (pair == "text-text" and s.prompt_id == t.prompt_id):
            continue
        cosines = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            for x in tokens(s, a, layer, normed)
            for y in tokens(t, b, layer, normed)
        ]
        if cosines:
            means.append(np.mean(cosines))
    return (float(np.mean(means)) if means else float("nan")), len(means)


def sums_of(samples: list[TinySample], prompts: list[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of unit vectors (layer, set, sample, dim) and counts (set, sample)."""
    layers, _, dim = samples[0].states.shape
    sums = np.zeros((layers, 2, len(samples), dim))
    counts = np.zeros((2, len(samples)), np.int64)
    for number, sample in enumerate(samples):
        for group, name in enumerate(SETS):
            for layer in range(layers):
                own = tokens(sample, name, layer, False)
                sums[layer, group, number] = (own / np.linalg.norm(own, axis=1, keepdims=True)).sum(0)
                counts[group, number] = len(own)
    return sums, counts


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=60)
def test_sums_of_parts_give_the_mean_over_all_unrelated_pairs(seed: int, images: int, prompts: int, parts: int) -> None:
    samples = random_samples(seed, images=images, prompts=prompts, parts=parts)
    names = [f"p{number}" for number in range(prompts)]
    layers, _, dim = samples[0].states.shape
    total = empty_pair_sums(prompts, layers, dim)
    for part in range(parts):
        own = [sample for sample in samples if sample.part == part]
        if not own:
            continue
        sums, counts = sums_of(own, names)
        table = pd.DataFrame({"image_id": [s.image_id for s in own], "prompt_id": [s.prompt_id for s in own]})
        found = PairSumsOfPart(table, names, counts, layers, dim)
        for layer in range(layers):
            found.add(layer, sums[layer])
        add_pair_sums(total, found.sums)
    baseline, pairs = mean_of_unrelated(total)
    for p, pair in enumerate(PAIRS):
        for layer in range(layers):
            expected, count = brute_force(samples, pair, layer)
            assert pairs[p] == count
            np.testing.assert_allclose(baseline[layer, p], expected, atol=1e-12)


@pytest.mark.parametrize("source", ["pooled", "hidden_states"])
def test_adjusted_cosines_are_cosines_less_the_baseline(tmp_path: Path, source: str) -> None:
    samples = random_samples(5, images=4, prompts=3)
    store = open_store(write_samples(tmp_path / "store", samples))
    raw, adjusted = (
        analyze_store(store, source=source, adjustment=name, self_pairs=True) for name in ("none", "anisotropy")
    )
    assert raw.baseline is None
    assert adjusted.baseline is not None
    assert adjusted.normed is not None
    assert raw.normed is not None
    for p, pair in enumerate(PAIRS):
        rows = [r for r, row in enumerate(raw.rows) if row.pair == pair]
        for layer in range(2):
            expected, count = brute_force(samples, pair, layer)
            np.testing.assert_allclose(adjusted.baseline.layers[layer, p], expected, atol=1e-6)
            assert adjusted.baseline.pairs[p] == count
        expected, _ = brute_force(samples, pair, -1, normed=True)
        np.testing.assert_allclose(adjusted.baseline.normed[p], expected, atol=1e-6)
        for layer in range(2):
            np.testing.assert_allclose(
                adjusted.cosine[:, layer, rows], raw.cosine[:, layer, rows] - adjusted.baseline.layers[layer, p]
            )
        np.testing.assert_allclose(adjusted.normed[:, rows], raw.normed[:, rows] - adjusted.baseline.normed[p])


@pytest.mark.parametrize(
    ("images", "prompts", "missing", "reason"),
    [(3, 1, ["text-text"], "two prompts with text"), (1, 2, list(PAIRS), "two images")],
)
def test_without_unrelated_samples_there_is_no_baseline_and_one_sentence_says_so(
    tmp_path: Path, images: int, prompts: int, missing: list[str], reason: str
) -> None:
    samples = random_samples(1, images=images, prompts=prompts, parts=1, empty=False)
    path = write_samples(tmp_path / "store", samples)
    notes: list[str] = []
    use = {"memory": 2**31, "adjustment": "anisotropy", "notify": notes.append}
    run("contextualization", [str(path)], tmp_path / "r", **use)
    (note,) = notes
    assert f"baseline of {' and '.join(missing)} needs at least {reason}" in note
    table = pd.read_parquet(tmp_path / "r" / "contextualization.parquet")
    empty = table.groupby("pair")["cosine"].apply(lambda values: values.isna().all())
    assert set(empty.index[empty]) == set(missing)
    assert table["adjustment"].eq("anisotropy").all()


def test_the_order_in_which_parts_finish_changes_no_bit(tmp_path: Path) -> None:
    store = open_store(write_samples(tmp_path / "store", random_samples(2, images=8, prompts=2, parts=8)))
    one, many = (analyze_store(store, adjustment="anisotropy", resources=Resources(workers=n)) for n in (1, 4))
    assert one.baseline is not None
    assert many.baseline is not None
    np.testing.assert_array_equal(one.baseline.layers, many.baseline.layers)
    np.testing.assert_array_equal(one.cosine, many.cosine)
