"""Several processes fill one store: nobody waits for anybody, readers see whole parts, and whoever dies is replaced."""

import functools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from engine.store import open_store, verify
from engine.store.commit import staged_pieces
from tests.engine.cli.conftest import Dataset, write_images
from tests.engine.cli.gated_extract import extract_behind
from tests.processes import fork_server, wait_for

Strata = Callable[..., Result]

IMAGES = 6
README = Path(__file__).parents[3] / "README.md"


class Fill(NamedTuple):
    """A data set, and the store that a single process makes of it: one part per image."""

    dataset: Dataset
    whole: Path

    def arguments(self, out: Path, *more: object) -> list[str]:
        return self.dataset.arguments("--out", out, "--samples-per-part", 1, *more)


class Rank:
    """One process that extracts, and commits a part for each permit that it is given."""

    def __init__(self, fill: Fill, out: Path, rank: int) -> None:
        context = fork_server("tests.engine.cli.gated_extract", "engine.cli.extract", "tests.tiny_llava")
        self.gate = context.Semaphore(0)
        arguments = fill.arguments(out, "--rank", rank, "--world-size", 2)
        self.process: BaseProcess = context.Process(target=extract_behind, args=(self.gate, arguments))
        self.process.start()

    def exit_code(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode


@pytest.fixture(scope="module")
def fill(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, strata: Strata) -> Fill:
    folder = tmp_path_factory.mktemp("fill")
    dataset = Dataset(checkpoint, write_images(folder / "images", IMAGES), folder / "images")
    fill = Fill(dataset, folder / "whole")
    assert strata("extract", *fill.arguments(fill.whole)).exit_code == 0
    return fill


@pytest.fixture
def start(fill: Fill, tmp_path: Path) -> Iterator[Callable[[int], Rank]]:
    """Start a rank of two; those that a failed test leaves are ended."""
    ranks: list[Rank] = []

    def run(rank: int) -> Rank:
        ranks.append(Rank(fill, tmp_path / "store", rank))
        return ranks[-1]

    yield run
    for rank in ranks:
        if rank.process.is_alive():
            rank.process.kill()
        rank.process.join(60)


def staged(store: Path, part: int) -> str | None:
    """Who writes a part: its writer is alive, there is none, or nothing of it is staged."""
    found = [writer for name, writer in staged_pieces(store).items() if name.startswith(f"{part:08d}-")]
    return found[0] if found else None


def committed(store: Path) -> list[int]:
    return [part.number for part in open_store(store).parts]


def is_committed(store: Path, part: int) -> bool:
    return part in committed(store)


def assert_same_parts(store: Path, whole: Path, parts: list[int]) -> None:
    """Every one of these parts has the very bytes that a single process wrote."""
    opened = {part.number: part for part in open_store(store).parts}
    expected = {part.number: part for part in open_store(whole).parts}
    assert sorted(opened) == sorted(parts)
    for number, part in opened.items():
        assert part.manifest["files"] == expected[number].manifest["files"]
        assert part.manifest["arrays"] == expected[number].manifest["arrays"]
        pd.testing.assert_frame_equal(part.samples, expected[number].samples)
        for name, array in part.open("token").items():
            np.testing.assert_array_equal(array, expected[number].open("token")[name])


def assert_finished(store: Path, whole: Path) -> None:
    assert_same_parts(store, whole, list(range(IMAGES)))
    found = verify(store)
    assert (found.problems, found.notes) == ((), ())
    assert open_store(store).complete
    assert (store / "plan.parquet").read_bytes() == (whole / "plan.parquet").read_bytes()
    assert (store / "store.json").read_bytes() == (whole / "store.json").read_bytes()


def test_two_ranks_fill_a_store_while_readers_see_whole_parts_only(
    fill: Fill, start: Callable[[int], Rank], strata: Strata, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    ranks = (start(0), start(1))
    wait_for(lambda: staged(store, 0) == staged(store, 1) == "alive")
    assert committed(store) == []
    said = strata("inspect", store, "--ranks", 2).stdout  # which no manifest says so far
    for rank in (0, 1):
        assert re.search(rf"{rank} +0 of 3 +0 of 3 +unknown +part {rank} is being written", said)
    for step in range(IMAGES):
        ranks[step % 2].gate.release()
        wait_for(functools.partial(is_committed, store, step))
        assert_same_parts(store, fill.whole, list(range(step + 1)))
        missing = {problem.file for problem in verify(store).problems}
        assert missing == {f"parts/{part:08d}.json" for part in range(step + 1, IMAGES)}
    assert [rank.exit_code() for rank in ranks] == [0, 0]
    assert_finished(store, fill.whole)
    written_by = [
        (part.manifest["run"]["rank"], part.manifest["run"]["world_size"]) for part in open_store(store).parts
    ]
    assert written_by == [(part % 2, 2) for part in range(IMAGES)]


@pytest.mark.parametrize("again", [("--rank", 1, "--world-size", 2), ()], ids=["its own rank", "no ranks"])
def test_a_killed_rank_is_finished_by_itself_or_by_a_run_without_ranks(
    fill: Fill, start: Callable[[int], Rank], strata: Strata, tmp_path: Path, again: tuple[object, ...]
) -> None:
    store = tmp_path / "store"
    victim = start(1)
    victim.gate.release()  # part 1 and no more
    wait_for(lambda: (store / "parts/00000001.json").exists() and staged(store, 3) == "alive")
    assert victim.process.pid is not None
    victim.process.kill()
    assert victim.exit_code() == -signal.SIGKILL
    assert staged(store, 3) == "none"
    assert strata("extract", *fill.arguments(store, "--rank", 0, "--world-size", 2)).exit_code == 0
    said = strata("inspect", store).stdout
    assert re.search(r"0 +3 of 3 +3 of 3 +[\d.]+ +nothing", said)
    assert re.search(r"1 +1 of 3 +1 of 3 +[\d.]+ .*part 3 was left by a\s+crash", said)
    assert_same_parts(store, fill.whole, [0, 1, 2, 4])

    kept = {part: (store / f"parts/{part:08d}.json").stat().st_mtime_ns for part in (0, 1, 2, 4)}
    result = strata("extract", *fill.arguments(store, *again))
    assert result.exit_code == 0, result.output
    assert "2 samples in 2 parts written" in result.stdout
    assert kept == {part: (store / f"parts/{part:08d}.json").stat().st_mtime_ns for part in kept}
    assert_finished(store, fill.whole)
    assert list((store / ".staging").iterdir()) == []
    assert ("2 by other runs" in strata("inspect", store).stdout) == (not again)


def test_the_slurm_array_of_the_readme_fills_a_store(fill: Fill, tmp_path: Path) -> None:
    """Each element of the array is a process that bash starts with the variables that Slurm gives it."""
    (script,) = [code for code in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL) if "#SBATCH" in code]
    size = int(re.search(r"--world-size (\d+)", script).group(1))  # type: ignore[union-attr]
    assert f"#SBATCH --array=0-{size - 1}\n" in script, "the array has an index for every rank"
    (tmp_path / "extract.sbatch").write_text(script)
    dataset = fill.dataset
    settings = {"model": dataset.model, "annotations": dataset.annotations, "images": dataset.images}
    lines = [f'{name} = "{value}"' for name, value in {**settings, "source": "coco"}.items()]
    (tmp_path / "run.toml").write_text("\n".join([*lines, "samples-per-part = 3", ""]))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    python = ":".join(entry for entry in sys.path if entry)
    environment = {"PATH": path, "PYTHONPATH": python, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the bits compared are the CPU's

    def element(index: int) -> subprocess.Popen[str]:
        slurm = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
        command = ["bash", "extract.sbatch"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | slurm, stdout=subprocess.PIPE, text=True)

    running = [element(index) for index in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for rank, text in enumerate(said):
        assert f"rank {rank} of {size} (--rank): parts {rank}\n" in text
    (store,) = tmp_path.glob("*.strata")
    assert verify(store).problems == ()
    assert open_store(store).complete
    states, whole = (open_store(path).hidden_states.to_numpy() for path in (store, fill.whole))
    np.testing.assert_array_equal(states, whole)
