import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import pandas as pd
import pytest
import xarray as xr
import zarr

from analyses.contextualization_plan import SOURCES, TEXT_ROLES
from analyses.curves import BOOTSTRAPS
from analyses.kept_parts import KeptParts
from analyses.logit_lens_plan import SOURCES as LENS_SOURCES
from analyses.memory import PROCESS_BYTES, part_bytes, result_bytes, statistics_bytes
from analyses.part_cosines import PartCosines, part_cosines
from analyses.part_task import PartTask
from analyses.phase_detection import PATTERNS
from analyses.registry import ALL, ANALYSES, options_of, run
from engine.errors import StrataError, UsageError
from engine.store import open_store
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import TinyStore, tiny_store

WrittenStore = Callable[..., TinyStore]
USE = {"workers": 2, "memory": 2 * 2**30}
NAMES = {f"contextualization{end}" for end in (".zarr", ".parquet", ".png", ".svg")}
COMPARISON = {"contextualization-comparison.png", "contextualization-comparison.svg"}
LENS = {f"logit-lens{end}" for end in (".zarr", ".parquet", ".png", ".svg", "-words.parquet", "-patches.png")}
LENS |= {"logit-lens-patches.svg"}
FEW_PIECES = "its vocabulary has 4 pieces, so --topk 5 is all"
PHASES = {f"phases{end}" for end in (".zarr", ".parquet", ".png", ".svg", "-images.parquet", "-scores.parquet")}


def test_all_analyses_write_all_files_of_all_stores(written_store: WrittenStore, tmp_path: Path) -> None:
    stores = [str(written_store(**options).path) for options in ({"layers": 9}, {"layers": 12, "pooled": False})]
    counts: list[tuple[int, int]] = []
    written = run(
        ALL, stores, tmp_path / "r", progress=lambda *n: counts.append(n), bootstraps=20, self_pairs=True, **USE
    )
    second = {"logit-lens-patches-2.png", "logit-lens-patches-2.svg"}  # patches of the other store
    assert {path.name for path in written} == NAMES | PHASES | COMPARISON | LENS | second
    assert (
        set(os.listdir(tmp_path / "r")) == NAMES | PHASES | COMPARISON | LENS | second
    )  # kept parts are gone, nothing else is there
    assert counts == [(0, 2), (1, 2), (2, 2)] * 4  # of two analyses: phases reads what contextualization wrote
    for name in ("contextualization", "phases", "phases-images", "logit-lens", "logit-lens-words"):
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
    other = str(written_store(layers=12, pooled=False).path)
    with pytest.raises(UsageError, match=r"holds contextualization of store store \(plan 0+\), asked is stores .*, "):
        phases([*store, other], source="hidden_states")


def test_phases_does_not_overwrite_contextualization_of_other_roles(
    written_store: WrittenStore, tmp_path: Path
) -> None:
    stores, use = [str(written_store(layers=9).path)], {**USE, "text_roles": ("instruction",)}
    run("contextualization", stores, tmp_path / "r", **use)
    before = (tmp_path / "r" / "contextualization.parquet").read_bytes()
    there, asked = r"--text-roles instruction", r"--text-roles instruction,template"
    with pytest.raises(UsageError, match=rf"of {there}, asked is {asked}; .* choose another --out, or remove .*r/cont"):
        run("phases", stores, tmp_path / "r", bootstraps=5, **USE)
    assert (tmp_path / "r" / "contextualization.parquet").read_bytes() == before
    assert {path.name for path in run("phases", stores, tmp_path / "r", bootstraps=5, **use)} == PHASES
    assert {path.name for path in run(ALL, stores, tmp_path / "r", bootstraps=5, **use)} == NAMES | PHASES | LENS


def test_results_of_another_version_are_computed_again(
    written_store: WrittenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = written_store(layers=9)
    run("contextualization", [str(tiny.path)], tmp_path, **USE)
    part = open_store(tiny.path).parts[0]
    task = PartTask(part.url, part.name, "pooled", TEXT_ROLES, False, True, None)
    before = KeptParts(tmp_path).name("cosines", part, task)
    for module in ("identity", "kept_parts"):
        monkeypatch.setattr(f"analyses.{module}.__version__", "9.9")
    assert KeptParts(tmp_path).name("cosines", part, task) != before
    assert {path.name for path in run("phases", [str(tiny.path)], tmp_path, bootstraps=5, **USE)} >= NAMES


def drop_chunks(folder: Path, variable: str) -> None:
    shutil.rmtree(folder / variable / "c")


def cut_chunk(folder: Path) -> None:
    chunk = next(path for path in (folder / "cosine" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "zarr.json").unlink(),
        lambda folder: (folder / "zarr.json").write_text("{"),
        cut_chunk,
        lambda folder: drop_chunks(folder, "cosine"),
        lambda folder: drop_chunks(folder, "cosine_normed"),
        lambda folder: drop_chunks(folder, "tokens"),
        lambda folder: drop_chunks(folder, "sample_id"),
    ],
)
def test_damaged_contextualization_is_computed_again(
    written_store: WrittenStore, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    stores, use = [str(written_store(layers=9).path)], {**USE, "bootstraps": 5}
    run("phases", stores, tmp_path, **use)
    whole = pd.read_parquet(tmp_path / "phases.parquet")
    damage(tmp_path / "contextualization.zarr")
    notes: list[str] = []
    assert {path.name for path in run("phases", stores, tmp_path, notify=notes.append, **use)} == NAMES | PHASES
    assert [note for note in notes if "contextualization.zarr is damaged" in note] == notes != []
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "phases.parquet"), whole)


def _but_the_certified_share(notes: list[str]) -> list[str]:
    """Leave out what depends on the processor: how many tokens its int8 screen decided."""
    return [note for note in notes if ": certified: " not in note]


def test_a_store_that_is_not_complete_is_analysed_and_said_to_be(tmp_path: Path) -> None:
    path = str(tiny_store(tmp_path / "store", layers=9, parts=3, written=[0]).path)
    notes: list[str] = []
    run(ALL, [path], tmp_path / "r", notify=notes.append, bootstraps=5, **USE)
    assert _but_the_certified_share(notes) == [
        f"norm-attention is left out: {path} holds no key/attention and no key/attention_norm",
        f"{path} holds 1 of 3 parts, 2 of 6 samples; 4 planned samples are missing (strata inspect {path})",
        f"store: {FEW_PIECES}",
        "store, normal: at 1 of 9 layers some samples decode no word, most at layer 7 (2 of 2 samples); their "
        "precision counts as 0 there",
    ]
    words = pd.read_parquet(tmp_path / "r" / "logit-lens-words.parquet")
    best = words[words["rank"] == 1].groupby("layer")["piece"].agg(lambda pieces: set(pieces.astype(str)))
    assert [layer for layer, pieces in best.items() if pieces == {"▁a"}] == [7]  # a stop word, the only one there
    for name in ("contextualization", "phases", "logit-lens"):
        (entry,) = json.loads(xr.open_zarr(tmp_path / "r" / f"{name}.zarr").attrs["stores"])
        counts = ("planned_parts", "stored_parts", "planned_samples", "stored_samples", "bad_samples")
        assert [entry[key] for key in counts] == [3, 1, 6, 2, 0]


def test_bad_samples_are_told_and_a_complete_store_is_not(written_store: WrittenStore, tmp_path: Path) -> None:
    notes: list[str] = []
    whole = str(written_store(layers=9).path)
    run("contextualization", [whole], tmp_path / "r", notify=notes.append, **USE)
    assert notes == []
    path = str(tiny_store(tmp_path / "store", layers=9, empty_parts=1).path)
    bad = len(open_store(path).parts[-1].manifest["bad_samples"])
    run("contextualization", [path], tmp_path / "r", notify=notes.append, **USE)
    assert notes == [
        f"{path} holds 3 of 3 parts, 6 of {6 + bad} samples; "
        f"{bad} bad sample{'s are' if bad > 1 else ' is'} left out (strata inspect --bad {path})"
    ]


def test_a_folder_that_cannot_be_written_is_an_error_with_a_next_step(
    written_store: WrittenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [str(written_store(layers=9).path)]
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"--out .*file is a file, and results need a folder"):
            run("contextualization", stores, out, **USE)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", disk_full)
    with pytest.raises(StrataError, match=r"could not be kept in .*No space left on device.*make room"):
        run("contextualization", stores, tmp_path / "r", **USE)


def test_workers_by_default_are_as_many_as_fit(written_store: WrittenStore, tmp_path: Path) -> None:
    store = open_store(written_store(images=8, parts=8).path)
    task = PartTask(store.parts[0].url, store.parts[0].name, "pooled", TEXT_ROLES, False, True, None)
    per_worker = max(part_bytes(part, task) for part in store.parts)
    results = result_bytes(store.parts, len(store.layers), self_pairs=False)
    results += statistics_bytes(len(store.samples), len(store.layers), BOOTSTRAPS)
    memory = PROCESS_BYTES + results + 3 * per_worker + 1
    used: list[int] = []
    original = dask.compute

    def compute(*args: object, **options: object) -> object:
        used.append(int(str(options["num_workers"])))
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dask.compute", compute)
        patch.setattr("os.sched_getaffinity", lambda _: range(64))
        run("contextualization", [store.url], tmp_path, memory=memory)
        run("contextualization", [store.url], tmp_path, memory=2**31)
        patch.setattr("os.sched_getaffinity", lambda _: range(2))
        run("contextualization", [store.url], tmp_path, memory=2**31)
    assert used == [3, 8, 2]
    with pytest.raises(UsageError, match="lower --workers to 3"):
        run("contextualization", [store.url], tmp_path, workers=4, memory=memory)
    with pytest.raises(UsageError, match=r"too small: 1 workers"):
        run("contextualization", [store.url], tmp_path, memory=PROCESS_BYTES + results)


def test_a_broken_off_analysis_goes_on_with_the_parts_that_are_missing(
    written_store: WrittenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(written_store(images=8, parts=8).path)
    use = {**USE, "source": "hidden_states"}
    computed: list[str] = []

    def break_off_at_the_sixth(task: PartTask) -> PartCosines:
        computed.append(task.name)
        if len(computed) == 6:
            raise StrataError("the cluster went away")
        return part_cosines(task)

    monkeypatch.setattr("analyses.part_runs.part_cosines", break_off_at_the_sixth)
    with pytest.raises(StrataError, match="went away"):
        run("contextualization", [path], tmp_path / "r", **{**use, "workers": 1})
    assert os.listdir(tmp_path / "r") == [".unfinished"]
    kept = sorted((tmp_path / "r" / ".unfinished").iterdir())
    assert len(kept) == 5
    kept[0].write_bytes(b"damaged")

    counts: list[tuple[int, int]] = []
    run("contextualization", [path], tmp_path / "r", **use, progress=lambda *now: counts.append(now))
    assert counts[0] == (0, 4)  # three were never computed, one was damaged
    assert counts[-1] == (4, 4)
    run("contextualization", [path], tmp_path / "whole", **use)
    files = [pd.read_parquet(tmp_path / name / "contextualization.parquet") for name in ("r", "whole")]
    pd.testing.assert_frame_equal(*files)
    assert not (tmp_path / "r" / ".unfinished").exists()
    assert KeptParts(tmp_path / "r").load("unknown") is None


def test_options_are_what_the_analyses_understand() -> None:
    options = {option.name: option for option in options_of(ALL)}
    assert set(options["source"].choices) == {*SOURCES, *LENS_SOURCES}
    assert options["pattern"].choices == PATTERNS
    assert options["text_roles"].default == TEXT_ROLES
    assert list(ANALYSES) == ["contextualization", "phases", "norm-attention", "logit-lens"]
    for option in options.values():
        assert isinstance(option.default, option.type)
        assert not option.choices or option.default in option.choices


def test_wrong_requests_name_the_choices(written_store: WrittenStore, tmp_path: Path) -> None:
    store = str(written_store(layers=9).path)
    with pytest.raises(
        UsageError, match="no analysis 'phase'; choose from contextualization, phases, norm-attention, logit-lens, all"
    ):
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


def test_phases_that_cannot_be_are_refused_before_anything_is_computed(
    written_store: WrittenStore, tmp_path: Path
) -> None:
    short, whole = (str(written_store(layers=layers).path) for layers in (5, 9))
    for stores, options, message in (
        ([whole, short], {}, "4 segments need at least 5 layers and the curve has 4"),
        ([whole], {"bootstraps": 0}, "--bootstraps 0: at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            run("phases", stores, tmp_path / "r", **USE, **options)
    assert not (tmp_path / "r").exists()


def test_all_leaves_out_phases_of_too_few_layers(written_store: WrittenStore, tmp_path: Path) -> None:
    notes: list[str] = []
    written = run(ALL, [str(written_store(layers=5).path)], tmp_path, notify=notes.append, bootstraps=5, **USE)
    assert {path.name for path in written} >= NAMES | LENS
    assert not {path.name for path in written} & PHASES
    reason = "4 segments need at least 5 layers and the curve has 4: capture more layers, or use --pattern auto"
    assert [note for note in notes if "phases" in note] == [f"phases is left out: store: {reason}"]


def test_a_store_without_any_pair_of_tokens_has_no_phases(written_store: WrittenStore, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(written_store(parts=1, layers=9).path, path)
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
    assert set(os.listdir(tmp_path / "r")) == NAMES | PHASES | LENS


def test_a_store_without_text_says_so_and_draws_no_empty_figure(tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "store", layers=12, pooled=False).path
    notes: list[str] = []
    options = {"workers": 1, "memory": 2**31, "notify": notes.append}
    written = run("all", [str(path)], tmp_path / "r", **options, text_roles=("generated",), bootstraps=5)
    notes = _but_the_certified_share(notes)
    assert len(notes) == 5
    assert "norm-attention is left out" in notes[0]
    assert "store holds no generated token" in notes[1]
    assert notes[2] == "store, normal: no image has a curve image-text or text-text, so it is left out of phases"
    assert notes[3] == f"store: {FEW_PIECES}"
    words = pd.read_parquet(tmp_path / "r" / "logit-lens-words.parquet")
    best = words[words["rank"] == 1].groupby(["layer", "sample_id"], observed=True)["piece"].agg(set)
    wordless = {layer for (layer, _), pieces in best.items() if pieces == {"▁a"}}  # a stop word
    assert notes[4].startswith(f"store, normal: at {len(wordless)} of 12 layers some samples decode no word")
    names = {file.name for file in written}
    assert "phases.parquet" in names
    assert "phases.png" not in names
