"""Analyses of installed packages: folders that look to Python like pip's, and what is wrong with broken ones."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from analyses import plugins
from analyses.registry import ALL, ANALYSES, options_of, run
from engine.cli.main import main
from engine.errors import UsageError
from tests.engine.store.builders import TinyStore

ROOT = Path(__file__).parents[2]
GOOD = """
from analyses import Analysis, Option
ANALYSIS = Analysis("token-count", "stored tokens per sample", "counting_run", (
    Option("most", int, 100, "count no further"),
    Option("half", float, 1.0, "factor"),
    Option("names", tuple, ("a",), "names"),
    Option("quick", bool, False, "flag"),
    Option("how", str, "plain", "way", ("plain", "other")),
))
"""
RUN = """
import pyarrow as pa
from analyses.execution import run_tasks
from analyses.identity import identify
from analyses.resources import Resources
from analyses.results import write_table
from engine.errors import StrataError, UsageError
from engine.store import open_part, open_store

def lengths(task):
    url, name, most = task
    segments = open_part(url, name).samples["segments"]
    return [min(most, sum(run["stop"] - run["start"] for run in runs)) for runs in segments]

def run(stores, results_folder, resources: Resources, *, most, **options):
    opened = [open_store(url) for url in stores]
    tables = []
    for store, identity in zip(opened, identify(opened)):
        counts = run_tasks(lengths, [(part.url, part.name, most) for part in store.parts], resources)
        tables.append(pa.table({"store": [identity.store] * len(store.samples), "tokens": sum(counts, [])}))
    resources.tell(f"{sorted(options.items())}")
    return [write_table(results_folder, "token-count", tables, tables[0].schema)]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Lay a distribution into a folder on ``sys.path``, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def lay(distribution: str, entries: dict[str, str], **files: str) -> Path:
        information = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in entries.items()]
        (information / "entry_points.txt").write_text("".join(["[strata.analyses]\n", *lines]))
        for name, content in files.items():
            (site / f"{name}.py").write_text(content)
        return site

    yield lay
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def counting(install: Callable[..., Path]) -> Path:
    return install(
        "strata-counting",
        {"token-count": "counting:ANALYSIS"},
        counting=GOOD,
        counting_run=RUN,
    )


def strata(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "engine.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def expected(tiny: TinyStore) -> list[int]:
    return [len(sample.roles) for sample in tiny.samples.values()]


def test_an_installed_analysis_runs_from_the_command_line(
    counting: Path, written_store: Callable[..., TinyStore], tmp_path: Path
) -> None:
    tiny = written_store(layers=9)
    done = strata(counting, "analyze", "token-count", tiny.path, "--out", tmp_path / "r", "--half", "2", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "r" / "token-count.parquet")]
    assert done.stderr == "note: [('half', 2.0), ('how', 'plain'), ('names', ('a',)), ('quick', True)]\n"
    assert pd.read_parquet(tmp_path / "r" / "token-count.parquet")["tokens"].tolist() == expected(tiny)


def test_it_runs_from_python_with_its_options(
    counting: Path, written_store: Callable[..., TinyStore], tmp_path: Path
) -> None:
    tiny = written_store(layers=9)
    written = run("token-count", [str(tiny.path)], tmp_path, memory=2**31, most=9, workers=1)
    assert pd.read_parquet(written[0])["tokens"].tolist() == [min(9, count) for count in expected(tiny)]
    assert [option.name for option in options_of("token-count")] == ["most", "half", "names", "quick", "how"]
    with pytest.raises(UsageError, match="token-count has no option 'least'; it has most, half"):
        run("token-count", [str(tiny.path)], tmp_path, memory=2**31, least=9)
    with pytest.raises(UsageError, match=r"choose from contextualization, .*all, token-count"):
        run("token-counts", [str(tiny.path)], tmp_path, memory=2**31)


def test_all_runs_our_own_only(counting: Path) -> None:
    assert "token-count" in plugins.plugin_names()
    assert {option.name for option in options_of(ALL)}.isdisjoint({"most", "half"})


def test_help_lists_what_works_and_says_in_one_line_what_does_not(
    counting: Path, install: Callable[..., Path], tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    noisy = f"from pathlib import Path\nPath({str(touched)!r}).touch()\n"
    noisy += "raise RuntimeError('two\\nlines ' + 'and a reason ' * 9)"
    install("strata-torn", {"torn": "torn:ANALYSIS", "stops": "stops:ANALYSIS"}, torn=noisy, stops="exit(7)")
    install("strata-thief", {"phases": "counting:ANALYSIS", "all": "counting:ANALYSIS"})
    done = strata(counting, "analyze", "--help")
    assert done.returncode == 0, done.stderr
    commands, broken = done.stdout.split("Broken analyses of other packages:\n")
    assert re.search(r"token-count +Stored tokens per sample\.", commands)
    assert all(name in commands for name in (*ANALYSES, ALL))
    reason = "torn:ANALYSIS cannot be imported (RuntimeError: two lines " + ("and a reason " * 9).strip() + ")"
    assert broken.splitlines() == [
        "  analysis 'all' of strata-thief 1.0 is not used: strata's own names cannot be replaced",
        "  analysis 'phases' of strata-thief 1.0 is not used: strata's own names cannot be replaced",
        "  analysis 'stops' of strata-torn 1.0 cannot be used: stops:ANALYSIS cannot be imported (SystemExit: 7)",
        f"  analysis 'torn' of strata-torn 1.0 cannot be used: {reason}",
    ]
    touched.unlink()
    assert strata(counting, "inspect", "--help").returncode == 0
    assert strata(counting, "analyze", "phases", "--help").returncode == 0
    assert not touched.exists()  # what is not asked for is not loaded
    done = strata(counting, "analyze", "torn", "store", "--out", "r")
    assert done.returncode == 2
    assert done.stderr == f"strata: analysis 'torn' of strata-torn 1.0 cannot be used: {reason}\n"


DECLARATION = "from analyses import Analysis, Option\nANALYSIS = "


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("None", "is no analyses.Analysis but NoneType"),
        ("Analysis('other', 'h', 'm')", "calls itself 'other': entry point and Analysis.name must be the same"),
        ("Analysis('mine', '', 'm')", "needs texts for help and module"),
        ("Analysis('mine', 'h', 3)", "needs texts for help and module"),
        ("Analysis('mine', 'h', 'm', None)", "needs a tuple of options"),
        ("Analysis('mine', 'h', 'm', ('most',))", "has an option that is no analyses.Option but str"),
        ("Analysis('mine', 'h', 'm', (Option('a-b', int, 1, 'h'),))", "'a-b' that is no lower-case Python name"),
        ("Analysis('mine', 'h', 'm', (Option('out', int, 1, 'h'),))", "'out' whose name every analysis uses already"),
        ("Analysis('mine', 'h', 'm', (Option('a', dict, {}, 'h'),))", "'a' of another type than str, int, float"),
        ("Analysis('mine', 'h', 'm', (Option('a', int, 'b', 'h'),))", "'a' whose default is of another type"),
        ("Analysis('mine', 'h', 'm', (Option('a', str, 'b', 'h', ('c',)),))", "default is none of its choices"),
        ("Analysis('mine', 'h', 'm', (Option('a', int, 1, ''),))", "'a' without help"),
        ("Analysis('mine', 'h', 'm', (Option('a', int, 1, 'h'),) * 2)", "declares an option twice"),
        ("Analysis('mine', 'h', 'no.such.module')", r"no.such.module.run cannot be imported \(ModuleNotFoundError"),
        ("Analysis('mine', 'h', 'math')", r"math.run cannot be imported \(AttributeError"),
    ],
)
def test_a_broken_declaration_is_wrong_usage_with_its_reason(
    install: Callable[..., Path], tmp_path: Path, declared: str, reason: str
) -> None:
    install("strata-mine", {"mine": "mine:ANALYSIS"}, mine=DECLARATION + declared)
    done = CliRunner().invoke(main, ["analyze", "mine", "store", "--out", str(tmp_path / "r")])
    assert done.exit_code == 2
    assert re.fullmatch(f"strata: analysis 'mine' of strata-mine 1.0 cannot be used: .*{reason}.*\n", done.stderr)
    assert CliRunner().invoke(main, ["analyze", "--help"]).exit_code == 0


def test_two_packages_with_one_name(install: Callable[..., Path]) -> None:
    install("strata-one", {"same": "one:ANALYSIS"}, one=DECLARATION + "Analysis('same', 'h', 'm')")
    install("strata-two", {"same": "two:ANALYSIS"})
    with pytest.raises(UsageError, match=r"'same' is declared by strata-\w+ 1.0 and strata-\w+ 1.0: uninstall all but"):
        options_of("same")


def test_an_unknown_name_is_clicks_to_refuse() -> None:
    done = CliRunner().invoke(main, ["analyze", "nothing", "store", "--out", "r"])
    assert done.exit_code == 2
    assert "No such command 'nothing'" in done.stderr


def test_what_the_module_promises_to_packages_is_there() -> None:
    promised = re.findall(r"`((?:analyses|engine)[\w.]+)`", plugins.__doc__ or "")
    assert len(promised) >= 10
    for name in promised:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
