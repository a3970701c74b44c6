"""What the README shows must run: its Python blocks on a store, its commands against the real options."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest

from engine.store import open_store
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import tiny_store

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    tiny_store(path, layers=13, images=4)
    return path


def run_block(code: str, store: Path) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(compile(code.replace("out/demo/store", str(store)), "README.md", "exec"), names)
    return names


def block(language: str, marker: str) -> str:
    (code,) = [code for code in blocks(language) if marker in code]
    return code


def test_every_python_block_runs(store: Path) -> None:
    assert len(blocks("python")) >= 2
    for code in blocks("python"):
        run_block(code, store)


def test_the_probe_sees_every_token_of_its_roles(store: Path) -> None:
    code = block("python", ".tokens(")
    names = run_block(code + "\n        total = globals().get('total', 0) + len(seen)", store)
    stored = open_store(store).hidden_states.role
    assert names["total"] == 3 * int(stored.isin([ROLE_CODES["image"], ROLE_CODES["instruction"]]).sum())
    assert names["loss"].isfinite()  # type: ignore[attr-defined]


def test_the_function_over_samples_gives_a_row_for_each(store: Path) -> None:
    table = run_block(block("python", ".map_samples(norms"), store)["table"]
    assert isinstance(table, pd.DataFrame)
    opened = open_store(store)
    for row in table.to_dict("records"):
        states = opened.sample(row["sample_id"]).hidden_states.sel(layer=[0, 6]).values.astype("f8")
        assert row["largest_norm"] == pytest.approx(np.linalg.norm(states, axis=-1).max(), rel=1e-5)
    assert len(table) == len(opened.samples)


def test_the_analysis_of_another_package_runs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points_text = block("toml", "strata.analyses")
    (group, entry) = entry_points_text.strip().splitlines()
    installed = tmp_path / "site" / "token_norms-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: token-norms\nVersion: 1.0\n")
    assert group == '[project.entry-points."strata.analyses"]'
    (installed / "entry_points.txt").write_text(f"[strata.analyses]\n{entry.replace(chr(34), '')}\n")
    (tmp_path / "site" / "token_norms.py").write_text(block("python", "ANALYSIS"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    analyze = entry_points(group="console_scripts", name="strata")["strata"].load()
    results = tmp_path / "results"
    analyze(["analyze", "token-norms", str(store), "--out", str(results), "--layer", "4"], standalone_mode=False)
    table = pd.read_parquet(results / "token-norms.parquet")
    for name, norm in zip(table["sample_id"], table["norm"], strict=True):
        states = open_store(store).sample(name).hidden_states.sel(layer=4).values.astype("f8")
        assert norm == pytest.approx(np.sqrt((states**2).sum(-1).mean()), rel=1e-5)


def test_the_lines_without_strata_give_the_analysis_curve(store: Path, tmp_path: Path) -> None:
    code = next(code for code in blocks("python") if "import xarray" in code)
    assert "import engine" not in code
    assert "import analyses" not in code
    assert "from " not in code
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    curve = run_block(code, store)["curve"]
    analyze = entry_points(group="console_scripts", name="strata")["strata"].load()
    analyze(
        ["analyze", "contextualization", str(store), "--out", str(tmp_path), "--workers", "1"], standalone_mode=False
    )
    table = pd.read_parquet(tmp_path / "contextualization.parquet")
    inter = table[(table["pair"] == "image-text") & ~table["normed"]]
    expected = inter.groupby("layer")["cosine"].mean()
    assert len(open_store(store).samples) == inter["sample_id"].nunique()
    np.testing.assert_allclose(curve, expected, atol=1e-6)


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words and words[0] == "strata":
                yield words[1:]


def test_the_choices_of_single_tensors_are_read(tmp_path: Path) -> None:
    text = block("toml", "[residual]")
    (tmp_path / "run.toml").write_text(text)
    main = entry_points(group="console_scripts", name="strata")["strata"].load()
    estimate = main.get_command(click.Context(main), "estimate")
    arguments = ["--config", str(tmp_path / "run.toml"), "--model", "any", "--source", "folder"]
    context = estimate.make_context("estimate", arguments)
    tables = {name: dict(entries) for name, entries in tomllib.loads(text).items()}
    assert context.params["queries"] == tables["attention"].pop("queries")
    assert context.params["tensors"] == tables


def test_every_command_exists_with_the_options_shown() -> None:
    main = entry_points(group="console_scripts", name="strata")["strata"].load()
    shown = list(commands())
    assert {words[0] for words in shown} >= {"extract", "estimate", "verify", "analyze"}
    for words in shown:
        command: click.Command = main
        rest = words
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known, words
