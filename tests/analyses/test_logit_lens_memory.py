import tracemalloc
from pathlib import Path

import pytest

from analyses.lens_memory import part_lens_bytes, results_bytes
from analyses.lens_model import forget_model, lens_model
from analyses.lens_task import LensTask
from analyses.logit_lens_plan import LensChoice, plan_tasks, plan_workers
from analyses.memory import PROCESS_BYTES
from analyses.part_lens import part_lens
from analyses.resources import Resources
from engine.store import Store, open_store
from tests.analyses.attention_builders import Spec
from tests.analyses.lens_builders import lens_samples, write_lens

ROLES = f"sp{'i' * 500}{'n' * 20}t"


def large_store(folder: Path, images: int, *, stored_pieces: int = 0) -> Store:
    specs = [Spec(str(number), "normal-1", ROLES, ((20, 25, False),), part=number // 2) for number in range(images)]
    captions = {spec.image: ("a red circle",) for spec in specs}
    samples = lens_samples(specs, layers=8)
    return open_store(write_lens(folder, specs, samples, captions=captions, stored_pieces=stored_pieces))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return large_store(tmp_path_factory.mktemp("large") / "store", 4, stored_pieces=5)


def peak(task: LensTask) -> int:
    """Bytes of a part beyond the model, which is prepared before."""
    part_lens(task)
    lens_model(task.url, task.model_sha256, unembedding=task.needs_unembedding)
    tracemalloc.start()
    part_lens(task)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    forget_model()
    return used


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("source", ["hidden_states", "lens"])
def test_a_part_needs_no_more_than_predicted(large: Store, source: str, trajectory: bool) -> None:
    task = plan_tasks(large, LensChoice(5, (), source, trajectory))[0]
    predicted, measured = part_lens_bytes(large, large.parts[0], task), peak(task)
    assert measured <= predicted
    if source == "lens" and not trajectory:
        assert predicted <= 6 * measured


def test_a_longer_store_needs_no_more_but_its_results(large: Store, tmp_path: Path) -> None:
    longer = large_store(tmp_path / "s", 16)
    one, many = (plan_tasks(store, LensChoice(5, (), "hidden_states", False)) for store in (large, longer))
    needed = part_lens_bytes(large, large.parts[0], one[0])
    assert {part_lens_bytes(longer, part, task) for part, task in zip(longer.parts, many, strict=True)} == {needed}
    assert peak(many[0]) == pytest.approx(peak(one[0]), rel=0.05)
    assert results_bytes(longer, many[0], 1000) < 2 * results_bytes(large, one[0], 1000)


def test_fewer_workers_are_taken_where_memory_is_little(large: Store) -> None:
    tasks = plan_tasks(large, LensChoice(5, (), "lens", False))
    needed = part_lens_bytes(large, large.parts[0], tasks[0])
    results = results_bytes(large, tasks[0], 1000)
    assert plan_workers(large, tasks, Resources(2, 2**32), 1000).workers == 2
    little = PROCESS_BYTES + results + int(1.5 * needed)
    assert plan_workers(large, tasks, Resources(2, little, fewer_workers=True), 1000).workers == 1
