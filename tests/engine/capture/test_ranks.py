"""Who extracts which part: flags, torchrun, Slurm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.capture import ranks
from engine.capture.ranks import Rank, find_local_rank, find_rank, share_cores
from engine.errors import UsageError

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}
STEP = {"SLURM_STEP_ID": "0"}


@given(st.integers(1, 9), st.sets(st.integers(0, 50)))
def test_every_part_is_owned_exactly_once(world: int, parts: set[int]) -> None:
    ordered = sorted(parts)
    owned = [part for rank in range(world) for part in Rank(rank, world, "--rank").owned(ordered)]
    assert sorted(owned) == ordered
    for rank in range(world):
        own = Rank(rank, world, "--rank").owned(ordered)
        assert own == tuple(part for part in range(rank, 51, world) if part in parts)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None), {}, Rank(0, 1, "one process")),
        ((1, 2), {**TORCHRUN, **SLURM, **STEP}, Rank(1, 2, "--rank")),
        ((0, 1), {}, Rank(0, 1, "--rank")),
        ((None, None), {**TORCHRUN, **SLURM, **STEP}, Rank(2, 4, "RANK")),
        ((None, None), {**SLURM, **STEP}, Rank(1, 3, "SLURM_PROCID")),
        ((None, None), SLURM, Rank(0, 1, "one process")),
        ((None, None), STEP, Rank(0, 1, "one process")),
    ],
)
def test_flags_go_before_torchrun_and_torchrun_before_a_step_of_slurm(
    flags: tuple[int | None, int | None], environment: dict[str, str], expected: Rank
) -> None:
    assert find_rank(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "missing"),
    [
        ((1, None), {}, "--world-size"),
        ((None, 4), {}, "--rank"),
        ((1, None), TORCHRUN, "--world-size"),
        ((None, None), {"RANK": "0"}, "WORLD_SIZE"),
        ((None, None), {"WORLD_SIZE": "2"}, "RANK"),
        ((None, None), {"SLURM_PROCID": "0", **STEP}, "SLURM_NTASKS"),
        ((None, None), {"SLURM_NTASKS": "2", **STEP}, "SLURM_PROCID"),
    ],
)
def test_one_of_a_pair_alone_is_wrong_usage(
    flags: tuple[int | None, int | None], environment: dict[str, str], missing: str
) -> None:
    with pytest.raises(UsageError, match=f"^{missing} is missing"):
        find_rank(*flags, environment)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (0, -1), (5, 1)])
def test_a_rank_outside_the_world_is_wrong_usage(rank: int, world: int) -> None:
    with pytest.raises(UsageError, match=f"--rank {rank} of --world-size {world}"):
        find_rank(rank, world, {})


@pytest.mark.parametrize("rank", ["", "one", "1.0", "-1", "²", "4"])
def test_an_environment_that_holds_no_rank_is_wrong_usage(rank: str) -> None:
    with pytest.raises(UsageError, match="a rank is a number from 0 below the world"):
        find_rank(None, None, {"RANK": rank, "WORLD_SIZE": "4"})


def test_the_first_line_says_who_this_is() -> None:
    assert Rank(2, 4, "SLURM_PROCID").describe(range(12)) == "rank 2 of 4 (SLURM_PROCID): parts 2, 6, 10"
    assert Rank(2, 4, "RANK").describe(range(2)) == "rank 2 of 4 (RANK): parts none"
    assert Rank(0, 1, "x").describe(range(10)) == "rank 0 of 1 (x): parts 0, 1, 2, 3, 4, 5, 6, 7, … (10 parts)"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"SLURM_LOCALID": "2"}, 0),
        ({"SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}, 1),
    ],
)
def test_the_local_rank_is_the_launchers(environment: dict[str, str], expected: int) -> None:
    assert find_local_rank(environment) == expected


@pytest.mark.parametrize(
    ("environment", "threads"), [({}, 3), ({"LOCAL_WORLD_SIZE": "4"}, 2), ({"OMP_NUM_THREADS": "1"}, None)]
)
def test_threads_stay_within_the_cores_of_a_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], threads: int | None
) -> None:
    """Eight cores; torch would take three threads, for a reason of its own."""
    chosen: list[int] = []
    monkeypatch.setattr(ranks, "usable_cores", lambda given: 8 // int(given.get("LOCAL_WORLD_SIZE", "1")))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    share_cores(environment)
    assert chosen == ([] if threads is None else [threads])
