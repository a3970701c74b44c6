"""The rule and the draw, against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.audit.compare import Deviations, compare_vectors
from engine.audit.draw import draw_samples
from engine.audit.verdict import find_worst

VALUES = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
VECTORS = arrays(np.float64, (3, 4), elements=VALUES)


@given(VECTORS, VECTORS, VECTORS, VECTORS, st.sampled_from([0.0, 0.25]))
def test_deviations_are_those_of_loops(
    stored: np.ndarray, fresh: np.ndarray, other: np.ndarray, third: np.ndarray, allowance: float
) -> None:
    found = compare_vectors(stored, fresh, [other, fresh, third], allowance)
    for row in range(3):
        length = math.sqrt(sum(value**2 for value in fresh[row])) or 1.0
        offsets = []
        for one, two in zip(stored[row], fresh[row], strict=True):
            size = max(abs(one - two) - allowance, 0.0)
            offsets.append(math.copysign(size, one - two))
        assert found.difference[row] == pytest.approx(max(map(abs, offsets)) / length, rel=1e-5, abs=1e-12)
        assert abs(offsets[found.at[row]]) == pytest.approx(max(map(abs, offsets)))
        noise = max(abs(one - two) for again in (other, third) for one, two in zip(again[row], fresh[row], strict=True))
        assert found.floor[row] == pytest.approx(noise / length, rel=1e-5, abs=1e-12)
        explained = fresh[row] + offsets
        lengths = np.linalg.norm(explained), np.linalg.norm(fresh[row])
        if min(lengths) > 0:
            cosine = float(explained @ fresh[row]) / (lengths[0] * lengths[1])
            assert found.angle[row] == pytest.approx(1 - cosine, abs=1e-6)
            assert found.stretch[row] == pytest.approx(abs(lengths[0] / lengths[1] - 1), rel=1e-4, abs=1e-6)


def test_values_that_both_lack_agree_and_one_that_one_lacks_does_not() -> None:
    nan = math.nan
    fresh = np.array([[nan, nan], [1.0, 2.0], [nan, 2.0], [3.0, 4.0]])
    stored = np.array([[nan, nan], [nan, 2.0], [1.0, 2.0], [math.inf, 4.0]])
    found = compare_vectors(stored, fresh, [fresh])
    assert found.difference.tolist() == [0.0, math.inf, math.inf, math.inf]
    assert found.angle.tolist() == [0.0, math.inf, math.inf, math.inf]
    worst = find_worst([Deviations(*(values[None] for values in found))], 1e-4)
    assert worst is not None
    assert not worst.passed


def test_values_that_both_lack_agree_where_the_others_were_rounded_too() -> None:
    fresh = np.array([[np.nan, np.nan], [1.0, 2.0]])
    stored = np.array([[np.nan, np.nan], [1.1, 2.0]])
    found = compare_vectors(stored, fresh, [fresh], 0.125 * np.abs(fresh))
    assert found.difference.tolist() == found.angle.tolist() == [0.0, 0.0]
    worst = find_worst([Deviations(*(values[np.newaxis] for values in found))], 1e-6)
    assert worst is not None
    assert worst.passed


def test_zero_vectors_agree_with_each_other_alone() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert compare_vectors(zero, zero, [zero])[:4] == (0, 0, 0, 0)
    for stored, fresh in ((zero, one), (one, zero)):
        worst = find_worst([Deviations(*(part[None] for part in compare_vectors(stored, fresh, [fresh])))], 1e-4)
        assert worst is not None
        assert not worst.passed


def deviations(difference: np.ndarray, floor: np.ndarray, *, angle: float = 1.0, stretch: float = 0.0) -> Deviations:
    """Of (slab, vector), all vectors with one angle."""
    shape = difference.shape
    return Deviations(
        difference.astype(np.float32),
        floor.astype(np.float32),
        np.full(shape, angle, np.float32),
        np.full(shape, stretch, np.float32),
        np.zeros(shape, np.int32),
    )


def test_a_layer_has_the_floor_of_all_samples_and_of_the_layers_next_to_it() -> None:
    floors = np.array([[0.1, 0.1], [0.1, 0.2], [0.0, 0.0], [0.0, 0.0], [0.4, 0.1]])
    quiet = deviations(np.full((5, 2), 0.1), floors)
    loud = deviations(np.full((5, 1), 0.2), np.array([[0.1], [0.1], [0.1], [0.1], [0.1]]))
    for samples, expected in (([quiet], [0.6, 0.6, 0.6, 1.2, 1.2]), ([loud, quiet], [0.6, 0.6, 0.6, 1.2, 1.2])):
        for layer, bound in enumerate(expected):
            spoilt = loud.difference.copy()
            spoilt[layer] = 0.99 * bound
            entry = [*samples[:-1], samples[-1]._replace(difference=np.repeat(spoilt, 2, axis=1))]
            worst = find_worst(entry, 1e-4)
            assert worst is not None
            assert worst.passed
            assert worst.index[0] == layer
            assert worst.bound == pytest.approx(bound)
            spoilt[layer] = 1.01 * bound
            beyond = find_worst([*samples[:-1], samples[-1]._replace(difference=np.repeat(spoilt, 2, axis=1))], 1e-4)
            assert beyond is not None
            assert not beyond.passed
            assert (beyond.sample, beyond.index) == (len(samples) - 1, (layer, 0))


def test_where_two_kernels_agree_to_the_bit_any_difference_is_beyond_the_floor() -> None:
    none = np.zeros((3, 1))
    worst = find_worst([deviations(np.array([[0.0], [1e-9], [0.0]]), none)], 1e-4)
    assert worst is not None
    assert not worst.passed
    assert (worst.index, worst.bound) == ((1, 0), 0.0)
    equal = find_worst([deviations(none, none)], 1e-4)
    assert equal is not None
    assert equal.passed


@pytest.mark.parametrize(
    ("angle", "stretch", "passed"),
    [(0.9e-4, 0.0, True), (1.1e-4, 0.0, False), (0.9e-4, 0.013, True), (0.0, 0.015, False), (0.0, 1.0, False)],
)
def test_beyond_the_floor_angle_and_length_decide(angle: float, stretch: float, passed: bool) -> None:
    one = deviations(np.full((1, 1), 0.4), np.full((1, 1), 0.1), angle=angle, stretch=stretch)
    worst = find_worst([one], 1e-4)
    assert worst is not None
    assert worst.passed is passed
    within = find_worst([one._replace(floor=np.full((1, 1), 0.14))], 1e-4)
    assert within is not None
    assert within.passed


def test_a_tensor_without_vectors_has_no_worst() -> None:
    assert find_worst([deviations(np.empty((2, 0)), np.empty((2, 0)))], 1e-4) is None


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 3))
def test_every_part_is_drawn_from_before_any_is_drawn_from_twice(parts: list[int], count: int, seed: int) -> None:
    names = [f"sample-{number}" for number in range(len(parts))]
    rows = draw_samples(names, parts, count=count, seed=seed)
    assert rows == sorted(set(rows))
    assert len(rows) == min(count, len(parts))
    drawn = [sum(parts[row] == part for row in rows) for part in set(parts)]
    left = [sum(own == part for own in parts) for part in set(parts)]
    for one, rest in zip(drawn, left, strict=True):
        assert one == rest or one >= max(drawn) - 1
    shuffled = list(reversed(range(len(parts))))
    again = draw_samples([names[row] for row in shuffled], [parts[row] for row in shuffled], count=count, seed=seed)
    assert {names[row] for row in rows} == {names[shuffled[row]] for row in again}


def test_another_seed_draws_other_samples() -> None:
    names, parts = [str(number) for number in range(50)], [0] * 50
    drawn = {tuple(draw_samples(names, parts, count=5, seed=seed)) for seed in range(4)}
    assert len(drawn) == 4
