"""How well a pass over all tokens is shuffled, and in how much memory."""

import gc
import re
import tracemalloc

import numpy as np
import pytest

from engine.errors import UsageError
from engine.store import Store, open_store, tokens, write_part
from engine.vocabulary import ROLE_CODES
from tests.engine.store import builders
from tests.engine.store.builders import tiny_store


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """16 parts of two layers; a layer of a part is one chunk of 512 KiB."""
    path = tmp_path_factory.mktemp("many") / "store"
    tiny = tiny_store(path, images=1, prompts=1, layers=2, dim=1024, parts=1, written=[])
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 256, 1024), dtype=np.float32).astype(np.float16)
    roles = np.full(256, ROLE_CODES["image"], np.int32)
    roles[::4] = ROLE_CODES["instruction"]
    for number in range(16):
        sample = builders.TinySample(f"{number}/normal-1", str(number), "normal-1", number, states, roles)
        content = builders.tiny_part(number, [sample], layers=range(2), dim=1024, pooled=False)
        write_part(path, content, plan_sha256=str(tiny.record["plan_sha256"]))
    return open_store(path)


@pytest.mark.parametrize(
    ("shuffle", "layer", "batch", "roles"),
    [
        (None, 1, 16, None),
        (None, [0, 1], 256, "image"),
        (1, 1, 256, None),
        (1, [0, 1], 16, "image"),
        (1, [0, 1], 256, None),
    ],
)
def test_peak_memory_stays_within_the_bound(
    many: Store, shuffle: int | None, layer: int | list[int], batch: int, roles: str | None
) -> None:
    with pytest.raises(UsageError) as refused:
        many.tokens(layer=layer, batch=batch, memory=0)
    needed = int(re.search(r"need (\d+) bytes", str(refused.value))[1])
    for _ in many.tokens(layer=layer, batch=batch):  # imports and the event loop are not the pass's
        pass
    for memory in (needed, needed + 2**22):
        tracemalloc.start()
        for held in many.tokens(layer=layer, roles=roles, batch=batch, shuffle=shuffle, memory=memory):
            assert len(held.role) > 0
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used <= memory
    assert shuffle is None or used > 0.6 * memory  # what may be used is used: for mixing


@pytest.mark.parametrize("shuffle", [None, 1])
def test_a_part_is_forgotten_with_its_last_window(many: Store, shuffle: int | None) -> None:
    gc.collect()  # memory is too small for a second open part
    for _ in many.tokens(layer=0, batch=256, shuffle=shuffle, memory=2**22 + 2**20 + 2**19):
        assert sum(type(thing) is tokens._OpenPart for thing in gc.get_objects()) <= 1


def mixed(store: Store, memory: int) -> list[int]:
    """How many parts each batch of 64 draws from."""
    return [len(set(batch.part)) for batch in store.tokens(layer=0, batch=64, shuffle=5, memory=memory)]


def test_a_batch_mixes_as_many_parts_as_memory_holds(many: Store) -> None:
    everything = mixed(many, 2**30)
    assert min(everything) >= 13  # of 16, in 64 draws: 15.7 on average
    pool_of_7 = mixed(many, 2**19 * 12 + 2**21)
    assert np.mean(pool_of_7[:-8]) >= 6
    assert max(mixed(many, 4 * 2**20)) < 7


def test_a_pool_of_the_whole_store_shuffles_perfectly(many: Store) -> None:
    places = [256 * batch.part + batch.token for batch in many.tokens(layer=0, batch=512, shuffle=11)]
    first, last = places[0], places[-1]
    for half in (first, last):
        counts = np.bincount(half // 256, minlength=16)
        assert (np.abs(counts - 32) < 5 * np.sqrt(32)).all()
    assert abs(np.corrcoef(np.arange(4096), np.concatenate(places))[0, 1]) < 5 / np.sqrt(4096)


def test_no_state_is_read_of_windows_without_the_role(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens._OpenPart, "states", property(lambda _: pytest.fail("read"), lambda *_: None), False)
    assert list(many.tokens(layer=0, roles="preamble")) == []
