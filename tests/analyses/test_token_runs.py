import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyses.token_runs import plan_runs, runs_within

SETS = [(2,), (3, 4)]


@st.composite
def part(draw: st.DrawFn) -> tuple[NDArray[np.integer], list[list[tuple[int, int]]]]:
    """Roles and samples of one or two segments, some prefixes shared, some tokens unused, lengths down to 0."""
    roles = np.array(draw(st.lists(st.integers(0, 4), max_size=30)), np.int32)
    edge = st.integers(0, len(roles))
    segments = draw(
        st.lists(st.lists(st.tuples(edge, edge).map(sorted).map(tuple), min_size=1, max_size=2), max_size=6)
    )
    # A sample sees no token twice.
    return roles, [[own[0]] if len(own) == 2 and own[1][0] < own[0][1] else own for own in segments]


@given(part(), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_runs_sum_to_what_each_sample_sees(
    case: tuple[NDArray[np.integer], list[list[tuple[int, int]]]], seed: int
) -> None:
    roles, segments = case
    values = np.random.default_rng(seed).integers(0, 1000, len(roles))
    runs = plan_runs(roles, segments, SETS)
    sums = np.array([values[start:stop].sum() for start, stop in runs.bounds], float)
    for group, codes in enumerate(SETS):
        got = runs.members[group] @ sums
        for sample, own in enumerate(segments):
            seen = [t for start, stop in own for t in range(start, stop) if roles[t] in codes]
            assert got[sample] == values[seen].sum()
            assert runs.counts[group, sample] == len(seen)
    assert (runs.bounds[1:, 0] >= runs.bounds[:-1, 1]).all()
    used = {t for own in segments for start, stop in own for t in range(start, stop) if roles[t] in (2, 3, 4)}
    assert {t for start, stop in runs.bounds for t in range(start, stop)} == used


def test_a_shared_prefix_is_one_run() -> None:
    roles = np.array([0, 1, 2, 2, 2, 3, 4, 3, 3, 4])
    segments = [[(0, 5), (5, 7)], [(0, 5), (7, 10)]]
    runs = plan_runs(roles, segments, SETS)
    assert runs.bounds.tolist() == [[2, 5], [5, 6], [6, 7], [7, 9], [9, 10]]
    assert runs.counts.tolist() == [[3, 3], [2, 3]]


@given(part(), st.integers(1, 7))
@settings(max_examples=100)
def test_stretches_cover_every_run_once(
    case: tuple[NDArray[np.integer], list[list[tuple[int, int]]]], step: int
) -> None:
    roles, segments = case
    bounds = plan_runs(roles, segments, SETS).bounds
    lengths = np.zeros(len(bounds), int)
    for start in range(0, len(roles), step):
        touching, inside = runs_within(bounds, start, min(len(roles), start + step))
        assert ((inside >= 0) & (inside <= step)).all()
        lengths[touching] += inside[:, 1] - inside[:, 0]
    assert lengths.tolist() == (bounds[:, 1] - bounds[:, 0]).tolist()
