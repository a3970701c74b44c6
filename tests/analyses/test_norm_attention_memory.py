import tracemalloc
from pathlib import Path

import pytest

from analyses.attention_task import AttentionTask
from analyses.memory import PROCESS_BYTES
from analyses.norm_attention_plan import attention_bytes, plan_tasks, plan_workers
from analyses.part_attention import part_attention
from analyses.resources import Resources
from engine.errors import UsageError
from engine.store import Store, open_store
from tests.analyses.attention_builders import Spec, attention_samples, write_attention

LONG = Spec("", "", f"sppp{'i' * 400}t{'n' * 60}ttt")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    specs = [
        Spec(f"{number}", f"{kind}-1", LONG.roles, ((20, 20, False),), part=number // 4)
        for number in range(8)
        for kind in ("normal", "noisy")
    ]
    samples = attention_samples(specs, blocks=range(1, 9))
    return open_store(write_attention(tmp_path_factory.mktemp("large") / "store", specs, samples))


def peak(task: AttentionTask) -> int:
    part_attention(task)  # imports and caches are not the part's
    tracemalloc.start()
    part_attention(task)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used


def test_a_part_needs_no_more_than_predicted_and_not_far_less(large: Store) -> None:
    task = plan_tasks(large, False)[0]
    predicted = attention_bytes(large.parts[0], len(task.groups), len(LONG.roles))
    assert predicted / 3 < peak(task) <= predicted


def test_too_little_memory_is_refused_with_what_is_needed(large: Store) -> None:
    tasks = plan_tasks(large, False)
    with pytest.raises(UsageError, match=r"--memory .* is too small.*Raise --memory to"):
        plan_workers(large, tasks, Resources(memory=PROCESS_BYTES))
    needed = attention_bytes(large.parts[0], 2, len(LONG.roles))
    assert plan_workers(large, tasks, Resources(2, 2**31)).workers == 2
    little = PROCESS_BYTES + 200 * 2**20
    assert needed * 2 < 200 * 2**20
    assert plan_workers(large, tasks, Resources(8, little, fewer_workers=True)).workers == 2


def test_a_longer_store_needs_no_more_for_a_part(large: Store, tmp_path: Path) -> None:
    one = attention_bytes(large.parts[0], 2, len(LONG.roles))
    assert {attention_bytes(part, 2, len(LONG.roles)) for part in large.parts} == {one}
