"""Cores of a process, alone and beside other ranks of its machine."""

import os

import pytest

from engine.cores import usable_cores


@pytest.fixture(autouse=True)
def twelve_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(12)), raising=False)


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, 12),
        ({"LOCAL_WORLD_SIZE": "1"}, 12),
        ({"LOCAL_WORLD_SIZE": "4"}, 3),
        ({"LOCAL_WORLD_SIZE": "5"}, 2),
        ({"LOCAL_WORLD_SIZE": "100"}, 1),
        ({"LOCAL_WORLD_SIZE": "0"}, 12),
        ({"LOCAL_WORLD_SIZE": "four"}, 12),
        ({"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "64"}, 12),
        ({"SLURM_STEP_ID": "0"}, 12),
        ({"SLURM_CPUS_PER_TASK": "3"}, 12),
        ({"LOCAL_WORLD_SIZE": "2", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "3"}, 6),
    ],
)
def test_cores_are_shared_with_the_ranks_of_the_machine(environment: dict[str, str], cores: int) -> None:
    assert usable_cores(environment) == cores


def test_a_machine_that_cannot_say_where_a_process_may_run_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores({}) == 6
