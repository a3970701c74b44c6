"""The shape of the code base: who may import whom, what lies at the top, how long a file may be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "engine", "analyses", "tests", "data", "pyproject.toml", "Makefile", "README.md",
    "LICENSE", "CHANGELOG.md", "constraints.txt",
}  # fmt: skip
BLOCKED = ("torch", "transformers", "safetensors", "tokenizers", "accelerate")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def test_imports_go_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_top_level_holds_the_agreed_entries() -> None:
    entries = {path.parts[0] for path in tracked_files()}
    assert {entry for entry in entries if not entry.startswith(".")} == TOP_LEVEL


def test_every_file_holds_one_idea() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in tracked_files() if path.suffix == ".py"}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_weights_but_safetensors_and_nothing_pickled() -> None:
    forbidden = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".ckpt"}
    assert [path for path in tracked_files() if path.suffix in forbidden] == []


def run_without(script: str, *arguments: object) -> str:
    """Run a script in a Python that cannot import what only extraction needs."""
    block = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Refuse())
"""
    command = [sys.executable, "-W", "error", "-c", block + script, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_a_python_without_torch_opens_verifies_and_analyses_a_store(tmp_path: Path) -> None:
    from tests.engine.store.builders import tiny_store  # noqa: PLC0415

    tiny_store(tmp_path / "store", layers=13, images=4)
    script = """
from engine.cli import main
store, results = sys.argv[1:]
for arguments in (["inspect", store], ["verify", store],
                  ["analyze", "all", store, "--out", results, "--bootstraps", "20", "--workers", "1"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0, stop
assert not set(sys.modules) & {"torch", "transformers"}
"""
    run_without(script, tmp_path / "store", tmp_path / "results")
    for name in ("contextualization.parquet", "contextualization.png", "phases.parquet", "phases.svg"):
        assert (tmp_path / "results" / name).stat().st_size > 0


def test_extracting_without_torch_says_what_to_install() -> None:
    script = """
from engine.cli import main
try:
    main(["extract", "--help"])
except SystemExit as stop:
    assert stop.code == 2, stop
"""
    assert "pip install 'activation-strata[extract]'" in run_without(script)
