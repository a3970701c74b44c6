"""What ``--limit`` takes: the same images on every machine, in any order of the annotation file, fewer within more."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources import SOURCES, ImageRecord, Source, choose, read_source
from tests.engine.sources.builders import (
    FLICKR,
    png,
    winoground_items,
    write_coco,
    write_folder,
    write_karpathy,
    write_parquet,
    write_winoground,
    write_winoground_parquet,
)

IMAGES = 12


def coco(folder: Path, order: Sequence[int]) -> Source:
    rows = [{"id": number, "file_name": f"{number}.jpg"} for number in order]
    captions = [{"id": number, "image_id": number, "caption": "x"} for number in order]
    annotations, root = write_coco(folder, rows, captions)
    return read_source("coco", annotations=annotations, images=root)


def images_in_a_folder(folder: Path, order: Sequence[int]) -> Source:
    return read_source("folder", images=write_folder(folder, [f"{number}.png" for number in order]))


def karpathy(folder: Path, order: Sequence[int]) -> Source:
    rows = [FLICKR[0] | {"imgid": number, "filename": f"{number}.jpg"} for number in order]
    annotations, root = write_karpathy(folder, rows)
    return read_source("karpathy", annotations=annotations, images=root, split="train")


def winoground(folder: Path, order: Sequence[int]) -> Source:
    items = winoground_items(IMAGES // 2)
    annotations, root = write_winoground(folder, [items[number] for number in order if number < len(items)])
    return read_source("winoground", annotations=annotations, images=root)


def winoground_parquet(folder: Path, order: Sequence[int]) -> Source:
    items = winoground_items(IMAGES // 2)
    path = write_winoground_parquet(folder / "a.parquet", [items[n] for n in order if n < len(items)])
    return read_source("winoground", annotations=path)


def parquet(folder: Path, order: Sequence[int]) -> Source:
    """Two shards, however the rows are dealt out to them."""
    for name, rows in (("a", order[: IMAGES // 3]), ("b", order[IMAGES // 3 :])):
        image: list[object] = [{"bytes": png(number), "path": f"{number}.png"} for number in rows]
        columns = {"image": image, "caption": ["x"] * len(rows), "image_id": list(rows)}
        write_parquet(folder / f"{name}.parquet", columns)
    return read_source("parquet", annotations=folder)


WRITERS: dict[str, Callable[[Path, Sequence[int]], Source]] = {
    "coco": coco,
    "folder": images_in_a_folder,
    "karpathy": karpathy,
    "winoground": winoground,
    "winoground-parquet": winoground_parquet,
    "parquet": parquet,
}
# Computed once outside of this package, with printf '0/coco/3' | sha256sum and sort: another machine, another version
# of Python or of this package must find the very same images.
FIRST = {
    "coco": ["0", "8", "5", "2", "9"],
    "folder": ["6", "1", "4", "9", "8"],
    "karpathy": ["7", "10", "2", "8", "5"],
    "winoground": ["1-1", "0-0", "5-1", "2-1", "1-0"],
    "winoground-parquet": ["1-1", "0-0", "5-1", "2-1", "1-0"],
    "parquet": ["10", "0", "5", "6", "1"],
}


def test_every_kind_is_here() -> None:
    assert {name.partition("-")[0] for name in WRITERS} == set(SOURCES)


@pytest.mark.parametrize("name", WRITERS)
def test_fixed_images(tmp_path: Path, name: str) -> None:
    source = WRITERS[name](tmp_path, range(IMAGES))
    chosen = choose(source.records, kind=source.kind, seed=0, limit=5)
    assert [record.image_id for record in chosen] == FIRST[name]


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=6)
@given(order=st.permutations(range(IMAGES)), seed=st.integers(0, 3), limit=st.integers(1, IMAGES - 1))
def test_order_of_the_file_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, order: list[int], seed: int, limit: int
) -> None:
    sorted_file = WRITERS[name](tmp_path_factory.mktemp("sorted"), range(IMAGES))
    shuffled = WRITERS[name](tmp_path_factory.mktemp("shuffled"), order)
    fewer = choose(shuffled.records, kind=shuffled.kind, seed=seed, limit=limit)
    more = choose(sorted_file.records, kind=sorted_file.kind, seed=seed, limit=limit + 1)
    assert fewer == more[:limit]


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), limit=st.integers(1, 12))
def test_both_layouts_of_winoground_choose_the_same_images(
    both_layouts: tuple[Source, Source], seed: int, limit: int
) -> None:
    lines, table = (choose(source.records, kind=source.kind, seed=seed, limit=limit) for source in both_layouts)
    assert lines == table


@pytest.fixture(scope="module")
def both_layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    folder = tmp_path_factory.mktemp("layouts")
    return winoground(folder / "lines", range(IMAGES)), winoground_parquet(folder / "table", range(IMAGES)[::-1])


@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6), shuffle=st.integers(0, 10**6))
def test_600_are_among_5000(kind: str, seed: int, shuffle: int) -> None:
    records = [ImageRecord(str(number), f"{number}.jpg", ()) for number in range(6000)]
    many = choose(records, kind=kind, seed=seed, limit=5000)
    Random(shuffle).shuffle(records)
    few = choose(records, kind=kind, seed=seed, limit=600)
    assert few == many[:600]
    places = [hashlib.sha256(f"{seed}/{kind}/{record.image_id}".encode()).hexdigest() for record in few]
    assert places == sorted(places)
    assert len(set(few)) == 600


def test_limit_takes_from_the_chosen_split_alone(tmp_path: Path) -> None:
    rows = [
        FLICKR[0] | {"imgid": number, "filename": f"{number}.jpg", "split": "val" if number % 2 else "train"}
        for number in range(IMAGES)
    ]
    annotations, root = write_karpathy(tmp_path, rows)
    everything = read_source("karpathy", annotations=annotations, images=root)
    split = read_source("karpathy", annotations=annotations, images=root, split="val")
    chosen = choose(split.records, kind="karpathy", seed=0, limit=4)
    ordered = choose(everything.records, kind="karpathy", seed=0, limit=None)
    assert list(chosen) == [record for record in ordered if int(record.image_id) % 2][:4]
