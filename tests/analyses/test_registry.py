import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
import zarr

from analyses.contextualization import SOURCES, TEXT_ROLES
from analyses.kept_parts import KeptParts
from analyses.phase_detection import PATTERNS
from analyses.registry import ALL, ANALYSES, options_of, run
from engine.errors import StrataError, UsageError
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import TinyStore, tiny_store

WrittenStore = Callable[..., TinyStore]
USE = {"workers": 2, "memory": 2 * 2**30}
NAMES = {f"contextualization{end}" for end in (".zarr", ".parquet", ".png", ".svg")}
PHASES = {f"phases{end}" for end in (".zarr", ".parquet", ".png", ".svg", "-images.parquet")}


def test_all_analyses_write_all_files_of_all_stores(written_store: WrittenStore, tmp_path: Path) -> None:
    stores = [str(written_store(**options).path) for options in ({"layers": 9}, {"layers": 12, "pooled": False})]
    counts: list[tuple[int, int]] = []
    written = run(
        ALL, stores, tmp_path / "r", progress=lambda *n: counts.append(n), bootstraps=20, self_pairs=True, **USE
    )
    assert {path.name for path in written} == NAMES | PHASES
    assert set(os.listdir(tmp_path / "r")) == NAMES | PHASES  # kept parts are gone, nothing else is there
    assert counts == [(0, 2), (1, 2), (2, 2)] * 2  # phases reads what contextualization wrote
    for name in ("contextualization", "phases", "phases-images"):
        table = pd.read_parquet(tmp_path / "r" / f"{name}.parquet")
        assert list(table.columns[:5]) == ["store", "model", "source", "prompt_kind", "prompt_id"]
        assert table["store"].nunique() == 2
    assert xr.open_zarr(tmp_path / "r" / "phases.zarr").sizes["curve"] == 6


def test_phases_computes_what_is_missing_or_of_other_settings(written_store: WrittenStore, tmp_path: Path) -> None:
    store = [str(written_store(layers=9).path)]
    counts: list[tuple[int, int]] = []

    def phases(stores: list[str] = store, **options: object) -> set[str]:
        counts.clear()
        use = {**USE, "progress": lambda *now: counts.append(now), "bootstraps": 5, **options}
        return {path.name for path in run("phases", stores, tmp_path, **use)}

    assert phases() == NAMES | PHASES
    assert phases() == PHASES
    assert counts == []
    # Pooled is what auto chose, and roles have no order.
    assert phases(pattern="three", source="pooled", text_roles=("template", "instruction")) == PHASES
    assert phases(source="hidden_states") == NAMES | PHASES
    assert phases(source="hidden_states", text_roles=("instruction",)) == NAMES | PHASES
    other = str(written_store(layers=12, pooled=False).path)
    assert phases([*store, other], source="hidden_states", text_roles=("instruction",)) == NAMES | PHASES


def test_a_broken_off_analysis_goes_on_with_the_parts_that_are_missing(
    written_store: WrittenStore, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    shutil.copytree(written_store(images=8, parts=8).path, path)
    states = path / "parts" / "00000007.zarr" / "token" / "hidden_states"
    states.rename(tmp_path / "away")
    counts: list[tuple[int, int]] = []
    use = {**USE, "workers": 1, "source": "hidden_states", "progress": lambda *now: counts.append(now)}
    with pytest.raises(KeyError):
        run("contextualization", [str(path)], tmp_path / "r", **use)
    assert os.listdir(tmp_path / "r") == [".unfinished"]
    kept = sorted((tmp_path / "r" / ".unfinished").iterdir())
    kept[0].write_bytes(b"damaged")
    (tmp_path / "away").rename(states)
    done = counts[-1][0]
    counts.clear()
    run("contextualization", [str(path)], tmp_path / "r", **use)
    assert counts[-1] == (8 - done + 1, 8 - done + 1)
    run("contextualization", [str(path)], tmp_path / "whole", **USE, source="hidden_states")
    files = [pd.read_parquet(tmp_path / name / "contextualization.parquet") for name in ("r", "whole")]
    pd.testing.assert_frame_equal(*files)
    assert not (tmp_path / "r" / ".unfinished").exists()
    assert KeptParts(tmp_path / "r").load("unknown") is None


def test_options_are_what_the_analyses_understand() -> None:
    options = {option.name: option for option in options_of(ALL)}
    assert options["source"].choices == SOURCES
    assert options["pattern"].choices == PATTERNS
    assert options["text_roles"].default == TEXT_ROLES
    assert list(ANALYSES) == ["contextualization", "phases"]
    for option in options.values():
        assert isinstance(option.default, option.type)
        assert not option.choices or option.default in option.choices


def test_wrong_requests_name_the_choices(written_store: WrittenStore, tmp_path: Path) -> None:
    store = str(written_store(layers=9).path)
    with pytest.raises(UsageError, match="no analysis 'phase'; choose from contextualization, phases, all"):
        run("phase", [store], tmp_path, **USE)
    with pytest.raises(UsageError, match="contextualization has no option 'pattern'; it has text_roles"):
        run("contextualization", [store], tmp_path, pattern="four", **USE)
    with pytest.raises(UsageError, match="--workers 0"):
        run("contextualization", [store], tmp_path, workers=0, memory=2**31)
    with pytest.raises(UsageError, match="named twice"):
        run("contextualization", [store, store], tmp_path, **USE)
    with pytest.raises(UsageError, match="no store is named"):
        run("contextualization", [], tmp_path, **USE)
    with pytest.raises(StrataError, match="not a strata store"):
        run("phases", [str(tmp_path)], tmp_path / "r", **USE)


def test_a_store_without_any_pair_of_tokens_has_no_phases(written_store: WrittenStore, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(written_store(parts=1).path, path)
    token = zarr.open_group(path / "parts" / "00000000.zarr" / "token", mode="r+", use_consolidated=False)
    token["role"][:] = ROLE_CODES["special"]
    with pytest.raises(StrataError, match="no sample has a curve to cut"):
        run("phases", [str(path)], tmp_path / "r", source="hidden_states", **USE)


def test_neither_torch_nor_transformers_is_needed(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", layers=9, parts=1)
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from analyses.registry import run\n"
        f"run('all', [{str(tiny.path)!r}], {str(tmp_path / 'r')!r}, workers=1, memory=2**31, bootstraps=5)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, check=True, timeout=120)
    assert set(os.listdir(tmp_path / "r")) == NAMES | PHASES
