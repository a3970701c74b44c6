import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyses.anisotropy import pair_sums_bytes
from analyses.centring import part_means
from analyses.contextualization import analyze_store, join_parts
from analyses.contextualization_plan import plan_means, plan_tasks
from analyses.curves import band, image_curves
from analyses.kept_parts import KeptParts
from analyses.memory import PROCESS_BYTES, check_memory, format_bytes, means_bytes, part_bytes, statistics_bytes
from analyses.part_cosines import part_cosines
from analyses.part_runs import cosines_of_parts
from analyses.part_task import Origin, PartTask
from analyses.phases import find_phases
from analyses.registry import run
from analyses.resources import Resources
from engine.errors import UsageError
from engine.store import open_store, write_part
from engine.vocabulary import ROLE_CODES
from tests.analyses.builders import planted_result, random_samples, write_samples
from tests.engine.store import builders

DIM, LAYERS = 1024, 3
TEXT = ("instruction", "template")


@pytest.fixture(scope="module")
def large_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of 3 layers of 20 MiB, so that reads are cut and the fixed costs are small beside them."""
    path = tmp_path_factory.mktemp("large") / "store"
    tiny = builders.tiny_store(path, images=1, prompts=1, layers=LAYERS, dim=DIM, parts=1, written=[])
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal((LAYERS, 1000, DIM), dtype=np.float32).astype(np.float16)
    roles = np.full(1000, ROLE_CODES["image"], np.int32)
    roles[:2], roles[900:] = 0, ROLE_CODES["instruction"]
    for number in range(2):
        samples = [
            builders.TinySample(f"{number}-{k}/normal-1", f"{number}-{k}", "normal-1", number, pattern, roles)
            for k in range(10)
        ]
        content = builders.tiny_part(number, samples, layers=range(LAYERS), dim=DIM)
        write_part(path, content, plan_sha256=str(tiny.record["plan_sha256"]))
    return path


def peak(task: PartTask, function: Callable[[PartTask], object] = part_cosines) -> int:
    function(task)  # imports and caches are not the part's
    tracemalloc.start()
    function(task)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used


@pytest.mark.parametrize("source", ["hidden_states", "pooled"])
def test_peak_memory_of_a_part_is_within_the_prediction(large_parts: Path, source: str) -> None:
    part = open_store(large_parts).parts[0]
    task = PartTask(part.url, part.name, source, TEXT, False, False, None)
    predicted, used = part_bytes(part, task), peak(task)
    assert used <= predicted
    assert predicted <= 2.5 * used  # a bound that is far off would refuse what fits


@pytest.mark.parametrize("source", ["hidden_states", "pooled"])
def test_peak_memory_with_a_baseline_is_within_the_prediction(large_parts: Path, source: str) -> None:
    part = open_store(large_parts).parts[0]
    prompts = ("normal-1", *(f"other-{number}" for number in range(200)))  # sums of prompts outweigh all else
    task = PartTask(part.url, part.name, source, TEXT, False, False, None, prompts)
    predicted, used = part_bytes(part, task), peak(task)
    assert used <= predicted <= 2.5 * used


@pytest.mark.parametrize("source", ["hidden_states", "pooled"])
def test_peak_memory_of_centring_is_within_the_prediction(large_parts: Path, source: str) -> None:
    store = open_store(large_parts)
    (states, *_) = plan_tasks(store, "hidden_states", TEXT, False, "mean-centred")
    (means, *_) = plan_means(store, [states], "auto" if source == "pooled" else source)
    assert (means.source, means.normed) == (source, True)
    predicted, used = means_bytes(store.parts[0], means), peak(means, part_means)
    assert used <= predicted <= 2.5 * used
    origin = Origin(np.full((LAYERS, DIM), 0.1), np.full(DIM, 0.1))
    centred = replace(states, origin=origin)
    predicted, used = part_bytes(store.parts[0], centred), peak(centred)
    assert used <= predicted <= 2.5 * used


def test_adjustments_need_more_memory_and_are_refused_early(large_parts: Path) -> None:
    store, prompts = open_store(large_parts), 500
    store.samples["prompt_id"] = [f"p{number % prompts}" for number in range(len(store.samples))]
    needed = {}
    for adjustment in ("none", "anisotropy", "mean-centred"):
        with pytest.raises(UsageError, match=r"is too small: .* Raise --memory to \d") as caught:
            analyze_store(store, source="hidden_states", adjustment=adjustment, resources=Resources(memory=1))
        needed[adjustment] = int(float(re.findall(r"Raise --memory to ([0-9.]+)MiB", str(caught.value))[0]) * 2**20)
    # One layer more than there are: the last one after the final norm.
    assert needed["anisotropy"] - needed["none"] >= 3 * 20 * (LAYERS + 1) * DIM * 8
    assert needed["mean-centred"] > needed["none"]


def test_adding_parts_up_does_not_grow_with_their_number(tmp_path: Path) -> None:
    samples = random_samples(0, images=24, prompts=2, layers=4, dim=64, parts=24, empty=False)
    store = open_store(write_samples(tmp_path / "store", samples, residual=False))
    prompts = tuple(f"p{number}" for number in range(400))
    tasks = [replace(task, prompts=prompts) for task in plan_tasks(store, "pooled", TEXT, False, "none")]
    sums = pair_sums_bytes(len(prompts), 5, 64)
    used = {}
    for count in (1, 3, 24):  # the first pays for imports
        kept = KeptParts(tmp_path / f"{count}")
        used[count] = traced(
            lambda count=count, kept=kept: join_parts(
                cosines_of_parts(store.parts[:count], tasks[:count], Resources(), kept)
            )
        )
    assert used[24] <= 1.1 * used[3] <= 8 * sums


def test_the_prediction_is_per_part_and_not_per_store(large_parts: Path) -> None:
    parts = open_store(large_parts).parts
    tasks = [PartTask(part.url, part.name, "hidden_states", TEXT, False, False, None) for part in parts]
    assert len({part_bytes(part, task) for part, task in zip(parts, tasks, strict=True)}) == 1


def test_the_heaviest_part_of_pooled_states_is_the_one_with_most_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    tiny = builders.tiny_store(path, images=1, prompts=1, dim=16, parts=1, written=[])
    for number, (count, tokens) in enumerate(((2, 900), (40, 6))):
        rng = np.random.default_rng(number)
        states = rng.standard_normal((5, tokens, 16), dtype=np.float32).astype(np.float16)
        roles = np.full(tokens, ROLE_CODES["image"], np.int32)
        roles[-3:] = ROLE_CODES["instruction"]
        names = [f"{number}-{k}" for k in range(count)]
        samples = [builders.TinySample(f"{name}/normal-1", name, "normal-1", number, states, roles) for name in names]
        content = builders.tiny_part(number, samples, layers=range(5), dim=16)
        write_part(path, content, plan_sha256=str(tiny.record["plan_sha256"]))
    weighed: list[str] = []
    monkeypatch.setattr(
        "analyses.contextualization_plan.part_bytes",
        lambda part, task: weighed.append(part.name) or part_bytes(part, task),
    )
    for source in ("pooled", "hidden_states"):
        analyze_store(open_store(path), source=source)
    assert weighed == ["00000001", "00000000"]


def traced(function: Callable[[], object]) -> int:
    tracemalloc.start()
    function()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used


def test_bands_and_phases_of_40000_images_stay_within_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    images, layers, bootstraps = 40_000, 12, 200
    monkeypatch.setattr("analyses.curves.BOOTSTRAPS", bootstraps)
    item = planted_result(((0, 2, 4, 9, 11), (0.0, 0.1, 0.0, 0.5, 0.3)), images=8, blocks=layers - 1)
    find_phases([item], bootstraps=5)  # imports are not the analysis'
    item = planted_result(((0, 2, 4, 9, 11), (0.0, 0.1, 0.0, 0.5, 0.3)), images=images, blocks=layers - 1)
    only = replace(item.result, cosine=item.result.cosine[:, :, :1], rows=item.result.rows[:1])
    curves = only.cosine[:, :, 0]
    used = traced(lambda: band(image_curves(only.samples, curves).curves))
    predicted = statistics_bytes(images, layers, bootstraps)
    assert used <= predicted <= 2.5 * used
    used = traced(lambda: find_phases([item._replace(result=only)], bootstraps=bootstraps))
    predicted = statistics_bytes(images, layers, bootstraps, cut=True)
    assert used <= predicted <= 2.5 * used
    assert predicted < 8 * images * bootstraps * 2  # far from all draws at once


def test_bootstraps_hardly_add_to_the_prediction() -> None:
    few, many = (statistics_bytes(40_000, 41, count, cut=True) for count in (1000, 10_000))
    assert many - few == 4 * 9000 * 41 * 8


def test_phases_are_refused_before_anything_is_read_where_their_curves_do_not_fit(
    large_parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--memory 321.0MiB is too small: .* Raise --memory to"):
        run("phases", [str(large_parts)], tmp_path / "r", memory=321 * 2**20, bootstraps=10**6, pattern="auto")
    assert not (tmp_path / "r").exists()


def test_too_little_memory_is_refused_before_anything_is_read(large_parts: Path) -> None:
    store = open_store(large_parts)
    seen: list[tuple[int, int]] = []
    resources = Resources(workers=2, memory=PROCESS_BYTES + 2**20, progress=lambda *now: seen.append(now))
    with pytest.raises(UsageError, match=r"--memory 321.0MiB is too small: 2 workers of .* Raise --memory to \d"):
        analyze_store(store, source="hidden_states", resources=resources)
    assert seen == []


def test_the_refusal_says_how_many_workers_fit() -> None:
    with pytest.raises(UsageError, match=r"Raise --memory to 1\.1GiB, or lower --workers to 4"):
        check_memory(100 * 2**20, 0, 8, PROCESS_BYTES + 450 * 2**20)
    assert check_memory(100, 10, 2, PROCESS_BYTES + 210) == PROCESS_BYTES + 210


@pytest.mark.parametrize(("count", "text"), [(1, "1KiB"), (2**20, "1.0MiB"), (1.25 * 2**30, "1.3GiB")])
def test_bytes_are_rounded_up(count: int, text: str) -> None:
    assert format_bytes(int(count)) == text
