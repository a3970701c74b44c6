"""Whatever step fails, and whether or not the process lives to clean up, a part is whole or it is not there."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StrataError
from engine.store import PartContent, committed_parts, open_store, verify, write_part
from engine.store import commit as commit_module
from tests.engine.store.builders import tiny_part, tiny_store

PLAN = f"{0:064x}"
PRIMITIVES = ("rename", "replace", "fsync")
LAST_STEPS = 16  # the commit itself and the syncs before it; earlier steps are many and alike


class Killed(BaseException):
    """Stands for the process ending: nothing may handle it."""


def fail_at(step: int, error: BaseException, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Make the ``step``-th call of a durability primitive fail; return what counts the calls."""
    numbers = itertools.count()

    def wrap(name: str) -> None:
        original = getattr(os, name)

        def primitive(*arguments: object, **options: object) -> object:
            if next(numbers) == step:
                raise error
            return original(*arguments, **options)

        patch.setattr(os, name, primitive)

    for name in PRIMITIVES:
        wrap(name)
    return lambda: next(numbers)


def write_with_fault(store: Path, content: PartContent, step: int, killed: bool) -> tuple[bool, int]:
    """Whether the fault struck, and how many steps were made."""
    with pytest.MonkeyPatch.context() as patch:
        count = fail_at(step, Killed() if killed else OSError(5, "I/O error"), patch)
        if killed:
            patch.setattr(commit_module.shutil, "rmtree", lambda *_, **__: None)
        try:
            write_part(store, content, plan_sha256=PLAN)
        except (Killed, StrataError):
            return True, count()
        return False, count()


@pytest.mark.parametrize("killed", [False, True])
def test_a_fault_at_any_step(tmp_path: Path, killed: bool) -> None:
    base = tiny_store(tmp_path / "base", layers=1, dim=4, images=2, prompts=1, written=[0], pooled=False)
    sample = next(sample for sample in base.samples.values() if sample.part == 1)
    content = tiny_part(1, [sample], layers=base.layers, dim=4, pooled=False)
    shutil.copytree(base.path, tmp_path / "dry")
    _, steps = write_with_fault(tmp_path / "dry", content, -1, False)
    assert steps > 2 * LAST_STEPS

    committed = []
    for step in [*range(0, steps - LAST_STEPS, 17), *range(steps - LAST_STEPS, steps)]:
        path = tmp_path / f"store{step}"
        shutil.copytree(base.path, path)
        assert write_with_fault(path, content, step, killed)[0]
        committed.append(1 in committed_parts(path))
        check_whole_or_absent(path, killed)
        if not committed[-1]:
            write_part(path, content, plan_sha256=PLAN)
            found = verify(path)
            assert not found.problems
            # A kill before the staging folder has its name leaves it empty; it goes an hour later.
            left = list((path / ".staging").iterdir())
            assert all(folder.name.startswith("new-") and not any(folder.iterdir()) for folder in left)
            assert bool(found.notes) == bool(left)
        assert len(open_store(path).samples) == 2
    assert not committed[0]
    assert committed == sorted(committed)  # once the manifest is there, it stays


def check_whole_or_absent(path: Path, killed: bool) -> None:
    problems = {problem.file for problem in verify(path).problems}
    if not killed:
        assert not list((path / ".staging").iterdir())
    if 1 in committed_parts(path):
        assert not problems
    else:
        assert "parts/00000001.json" in problems
        assert problems <= {"parts/00000001.json", "parts/00000001.zarr", "parts/00000001.parquet"}
        assert len(open_store(path).parts) == 1
