"""The same bits, whoever computes them: threads, processes of a cluster, or a run after one that was killed."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from analyses.kept_parts import KeptParts
from analyses.registry import ANALYSES
from engine.cli.main import main
from engine.store import open_store
from tests.analyses.gated_analyze import analyze_behind
from tests.engine.store.builders import TinyStore
from tests.processes import fork_server, wait_for

PARTS = 6
CHOICES: Mapping[str, tuple[str, ...]] = {
    "contextualization": ("--source", "hidden_states", "--self-pairs"),
    "phases": ("--bootstraps", "20", "--adjustment", "mean-centred"),
    "norm-attention": ("--without-sinks",),
    "logit-lens": ("--trajectory", "--topk", "3", "--bootstraps", "20"),
}
TABLES = {
    "contextualization": {"contextualization"},
    "phases": {"contextualization", "phases", "phases-images", "phases-scores"},
    "norm-attention": {"norm-attention"},
    "logit-lens": {"logit-lens", "logit-lens-words", "logit-lens-trajectory"},
}
by_name = pytest.mark.parametrize("name", list(ANALYSES))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are the results once more, and drawing them takes longer than computing them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b""))


@pytest.fixture(scope="module")
def store(written_store: Callable[..., TinyStore]) -> Path:
    return written_store(images=PARTS, parts=PARTS, layers=9, capture=("attention",)).path


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two processes."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Results of one run on threads, by the analysis."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("undisturbed") / "results"
            analyze(name, store, done[name], "--workers", "2")
        return done[name]

    return run


def arguments(name: str, store: Path, results: Path, *more: str) -> list[str]:
    return [name, str(store), "--out", str(results), *CHOICES[name], *more]


def analyze(name: str, store: Path, results: Path, *more: str) -> None:
    result = CliRunner().invoke(main, ["analyze", *arguments(name, store, results, *more)])
    assert result.exit_code == 0, result.output


def numbers(results: Path) -> dict[str, bytes]:
    """Bytes of all tables and of every file of the datasets."""
    files = [path for path in results.rglob("*") if path.is_file() and path.suffix not in (".png", ".svg")]
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in files}


def kept_parts(unfinished: Path) -> set[str]:
    """Names of the parts that are whole, not of those being written."""
    return {path.stem for path in unfinished.glob("*.npz") if not path.stem.endswith(".tmp")}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the finished parts that are kept from now on."""
    seen: list[str] = []
    save = KeptParts.save

    def see(self: KeptParts, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        seen.append(name)
        save(self, name, arrays)

    monkeypatch.setattr(KeptParts, "save", see)
    return seen


@by_name
def test_a_cluster_of_two_processes_gives_the_same_bits(
    name: str,
    store: Path,
    cluster: LocalCluster,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = numbers(undisturbed(name))
    monkeypatch.setattr("analyses.execution._on_threads", None)  # nothing is computed here
    analyze(name, store, tmp_path / "results", "--scheduler", cluster.scheduler_address)
    assert numbers(tmp_path / "results") == expected
    assert {path.stem for path in (tmp_path / "results").glob("*.parquet")} == TABLES[name]


@by_name
def test_a_killed_analysis_goes_on_with_what_is_missing(
    name: str, store: Path, undisturbed: Callable[[str], Path], tmp_path: Path, saved: list[str]
) -> None:
    context = fork_server("tests.analyses.gated_analyze", "engine.cli.analyze", ANALYSES[name].module)
    gate, results = context.Semaphore(2), tmp_path / "results"
    process = context.Process(target=analyze_behind, args=(gate, arguments(name, store, results, "--workers", "1")))
    process.start()
    unfinished = results / ".unfinished"
    wait_for(lambda: len(kept_parts(unfinished)) == 2 or not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.listdir(results) == [".unfinished"]
    kept = kept_parts(unfinished)
    assert len(kept) == 2

    analyze(name, store, results, "--workers", "2")
    again = list(saved)
    assert numbers(results) == numbers(undisturbed(name))
    saved.clear()
    analyze(name, store, tmp_path / "whole", "--workers", "2")
    assert len(set(saved)) == len(saved) >= PARTS
    assert sorted([*kept, *again]) == sorted(saved), "what was kept is not computed again, and all else once"
    assert not unfinished.exists()


def test_functions_over_samples_give_the_same_table_on_two_processes(store: Path, cluster: LocalCluster) -> None:
    def with_process(sample: xr.Dataset) -> dict[str, Any]:  # not importable there, so it travels with the task
        import os  # noqa: PLC0415

        total = sample.hidden_states.astype("f8").sum()
        return {"sum": total, "states": sample.hidden_states[3].values.tobytes(), "process": os.getpid()}

    opened = open_store(store)
    here = opened.map_samples(with_process)
    with Client(cluster.scheduler_address) as client, client.as_current():
        there = opened.map_samples(with_process)
    assert set(here["process"]) == {os.getpid()}
    assert len(set(there["process"])) == 2
    pd.testing.assert_frame_equal(there.drop(columns="process"), here.drop(columns="process"))
