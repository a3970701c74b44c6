import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.sources import ImageRecord, choose

ids = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=30, unique=True)


def records(image_ids: list[str]) -> list[ImageRecord]:
    return [ImageRecord(image_id, f"{image_id}.jpg", ()) for image_id in image_ids]


@given(ids, st.integers(-5, 5), st.randoms(), st.data())
def test_a_smaller_limit_is_a_prefix_whatever_the_order(image_ids, seed, random, data) -> None:
    everything = choose(records(image_ids), kind="coco", seed=seed, limit=None)
    assert sorted(record.image_id for record in everything) == sorted(image_ids)
    limit = data.draw(st.integers(1, len(image_ids)))
    random.shuffle(image_ids)
    assert choose(records(image_ids), kind="coco", seed=seed, limit=limit) == everything[:limit]


def test_order_is_the_documented_hash() -> None:
    image_ids = [str(number) for number in range(50)]
    chosen = choose(records(image_ids), kind="folder", seed=7, limit=20)
    expected = sorted(image_ids, key=lambda i: hashlib.sha256(b"7/folder/" + i.encode()).hexdigest())
    assert [record.image_id for record in chosen] == expected[:20]


def test_seed_and_kind_change_the_order() -> None:
    some = records([str(number) for number in range(50)])
    orders = {choose(some, kind=kind, seed=seed, limit=None) for kind in ("coco", "folder") for seed in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize("limit", [0, -1, 4])
def test_limit_that_cannot_be_met(limit: int) -> None:
    with pytest.raises(UsageError, match=f"--limit {limit} "):
        choose(records(["a", "b", "c"]), kind="coco", seed=0, limit=limit)
    assert len(choose(records(["a", "b", "c"]), kind="coco", seed=0, limit=3)) == 3
