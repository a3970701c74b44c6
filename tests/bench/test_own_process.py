"""Contestants run in processes of their own. Nothing here is timed."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bench.own_process import own_processes

THREADS = 3  # other than the tests' own


def _note(path: Path) -> bytearray:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    return bytearray(10)


def _fail(value: str) -> None:
    raise ValueError(value)


def test_each_contestant_keeps_one_process_that_returns_nothing(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in "ab"}
    with own_processes({name: partial(_note, path) for name, path in paths.items()}, THREADS) as processes:
        assert [processes[name]() for name in "abab"] == [None] * 4  # type: ignore[func-returns-value]
    found = [path.read_text(encoding="utf-8").splitlines() for path in paths.values()]
    assert all(len(lines) == 2 and len(set(lines)) == 1 for lines in found), "one process each"
    numbers = {int(lines[0].split()[0]) for lines in found}
    assert len(numbers | {os.getpid()}) == 3, "no two of them and this one are the same"
    assert {line.split()[1] for lines in found for line in lines} == {str(THREADS)}


def test_what_fails_there_fails_here() -> None:
    failing = {"a": partial(_fail, "no such layer")}
    with own_processes(failing, THREADS) as processes, pytest.raises(ValueError, match="no such layer"):
        processes["a"]()
