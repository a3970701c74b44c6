"""What the README shows must run: its Python blocks on a store, its commands against the real options."""

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest

from engine.store import open_store
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


def test_every_python_block_runs(store: Path) -> None:
    assert len(blocks("python")) == 2
    for code in blocks("python"):
        run_block(code, store)


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
