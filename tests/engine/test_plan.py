"""The plan: who is in which part, what its hash depends on, and how layers and names are read."""

import hashlib
import json
import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import plan as plan_module
from engine.errors import UsageError
from engine.plan import (
    CAPTURES,
    CaptureChoice,
    Plan,
    images_per_part,
    make_plan,
    parse_blocks,
    parse_layers,
    parse_names,
)
from engine.prompts import Prompt
from engine.sources import ImageRecord
from engine.store import PLAN_SCHEMA
from engine.vocabulary import ROLES

# Image ids may hold slashes, prompt ids may not: the last slash of a sample id splits it.
IMAGE_IDS = st.lists(st.text("ab/1", min_size=1, max_size=4), max_size=13, unique=True)
PROMPT_IDS = st.lists(st.text("ab1-", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)

CAPTURE = CaptureChoice(
    tensors=("residual",), layers=(0, 1, 2), roles=None, share_prefix=True, mantissa_bits=None, unembedding=True
)
SETTINGS: dict[str, Any] = {
    "model": {"id": "tiny", "revision": "r0", "class": "C", "dtype": "float16"},
    "source": {"kind": "folder", "split": None, "annotations_sha256": "0" * 64},
    "images": [ImageRecord("a", "a.png", ("one",)), ImageRecord("b", "b.png", ())],
    "prompts": [Prompt("p", "custom", "What?"), Prompt("q", "custom", "Why?")],
    "capture": CAPTURE,
    "limit": 2,
    "seed": 0,
    "images_per_part": 1,
}


def plan_of(image_ids: list[str], prompt_ids: list[str], per_part: int) -> Plan:
    images = [ImageRecord(image_id, f"{number}.png", ()) for number, image_id in enumerate(image_ids)]
    prompts = [Prompt(prompt_id, "custom", prompt_id) for prompt_id in prompt_ids]
    return make_plan(**{**SETTINGS, "images": images, "prompts": prompts, "images_per_part": per_part})


@given(IMAGE_IDS, PROMPT_IDS, st.integers(1, 15))
def test_parts_are_whole_images_each_once_in_plan_order(
    image_ids: list[str], prompt_ids: list[str], per_part: int
) -> None:
    plan = plan_of(image_ids, prompt_ids, per_part)
    covered = [image for part in plan.parts for image in range(part.start, part.stop)]
    assert covered == list(range(len(image_ids)))
    assert [part.number for part in plan.parts] == list(range(len(plan.parts)))
    assert all(part.stop - part.start == per_part for part in plan.parts[:-1])
    assert all(0 < part.stop - part.start <= per_part for part in plan.parts)


@given(IMAGE_IDS, PROMPT_IDS, st.integers(1, 15))
def test_table_has_one_row_per_sample_and_agrees_with_the_parts(
    image_ids: list[str], prompt_ids: list[str], per_part: int
) -> None:
    plan = plan_of(image_ids, prompt_ids, per_part)
    table = plan.table()
    assert table.schema.equals(PLAN_SCHEMA)
    assert table.num_rows == plan.sample_count == len(image_ids) * len(prompt_ids)
    rows = table.to_pylist()
    assert [(row["image_id"], row["prompt_id"]) for row in rows] == list(product(image_ids, prompt_ids))
    assert len({row["sample_id"] for row in rows}) == len(rows)
    assert all(row["sample_id"].rpartition("/")[::2] == (row["image_id"], row["prompt_id"]) for row in rows)
    for part in plan.parts:
        members = {row["image_id"] for row in rows if row["part"] == part.number}
        assert members == set(image_ids[part.start : part.stop])


CHANGED: dict[str, dict[str, Any]] = {
    "model id": {"model": {**SETTINGS["model"], "id": "other"}},
    "revision": {"model": {**SETTINGS["model"], "revision": "r1"}},
    "dtype": {"model": {**SETTINGS["model"], "dtype": "float32"}},
    "source kind": {"source": {**SETTINGS["source"], "kind": "coco"}},
    "source file": {"source": {**SETTINGS["source"], "annotations_sha256": "1" * 64}},
    "split": {"source": {**SETTINGS["source"], "split": "val"}},
    "fewer images": {"images": SETTINGS["images"][:1]},
    "order of images": {"images": SETTINGS["images"][::-1]},
    "image id": {"images": [ImageRecord("c", "a.png", ("one",)), SETTINGS["images"][1]]},
    "image file": {"images": [ImageRecord("a", "c.png", ("one",)), SETTINGS["images"][1]]},
    "caption": {"images": [ImageRecord("a", "a.png", ("two",)), SETTINGS["images"][1]]},
    "captions cut elsewhere": {"images": [ImageRecord("a", "a.png", ("o", "ne")), SETTINGS["images"][1]]},
    "prompt text": {"prompts": [Prompt("p", "custom", "Who?"), SETTINGS["prompts"][1]]},
    "prompt id": {"prompts": [Prompt("r", "custom", "What?"), SETTINGS["prompts"][1]]},
    "prompt kind": {"prompts": [Prompt("p", "question", "What?"), SETTINGS["prompts"][1]]},
    "order of prompts": {"prompts": SETTINGS["prompts"][::-1]},
    "tensors": {"capture": replace(CAPTURE, tensors=("residual", "pooled"))},
    "layers": {"capture": replace(CAPTURE, layers=(0, 2))},
    "roles": {"capture": replace(CAPTURE, roles=("image",))},
    "share_prefix": {"capture": replace(CAPTURE, share_prefix=False)},
    "mantissa_bits": {"capture": replace(CAPTURE, mantissa_bits=7)},
    "unembedding": {"capture": replace(CAPTURE, unembedding=False)},
    "residual_layers": {"capture": replace(CAPTURE, residual_layers=(1,))},
    "blocks": {"capture": replace(CAPTURE, blocks=(1, 2))},
    "queries": {"capture": replace(CAPTURE, queries=("last_text",))},
    "dtypes": {"capture": replace(CAPTURE, dtypes={"residual": "float16"})},
    "lens_topk": {"capture": replace(CAPTURE, lens_topk=10)},
    "lens_layers": {"capture": replace(CAPTURE, lens_layers=(1,))},
    "limit": {"limit": None},
    "seed": {"seed": 1},
    "part size": {"images_per_part": 2},
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_every_setting_of_a_run_enters_the_hash(changed: dict[str, Any]) -> None:
    assert make_plan(**SETTINGS).sha256 != make_plan(**{**SETTINGS, **changed}).sha256


@given(st.lists(st.tuples(st.text(), st.text(), st.lists(st.text(), max_size=3), st.none() | st.text(min_size=1))))
def test_the_hash_of_images_is_that_of_lines_of_json(images: list[tuple[str, str, list[str], str | None]]) -> None:
    rows = [[image_id, uri, references, item or image_id] for image_id, uri, references, item in images]
    expected = hashlib.sha256("".join(json.dumps(row) + "\n" for row in rows).encode()).hexdigest()
    records = [ImageRecord(image_id, uri, tuple(references), item) for image_id, uri, references, item in images]
    assert plan_module._images_sha256(records) == expected


def test_equal_settings_give_the_same_plan_whatever_containers_hold_them() -> None:
    plan = make_plan(**SETTINGS)
    again = make_plan(
        **{
            **SETTINGS,
            "model": dict(reversed(SETTINGS["model"].items())),
            "images": tuple(SETTINGS["images"]),
            "prompts": tuple(SETTINGS["prompts"]),
        }
    )
    assert again.sha256 == plan.sha256
    assert re.fullmatch(r"[0-9a-f]{64}", plan.sha256)
    assert again.table().equals(plan.table())


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 10**7))
def test_part_bytes_round_down_to_whole_images_but_at_least_one(
    image_bytes: int, prompts: int, part_bytes: int
) -> None:
    count = images_per_part(image_bytes=image_bytes, prompts=prompts, part_bytes=part_bytes)
    assert count >= 1
    assert count == 1 or count * image_bytes <= part_bytes
    assert (count + 1) * max(image_bytes, 1) > part_bytes


@given(st.integers(1, 9), st.integers(1, 10**4))
def test_samples_per_part_round_up_to_whole_images(prompts: int, samples: int) -> None:
    count = images_per_part(image_bytes=1, prompts=prompts, samples_per_part=samples)
    assert count * prompts >= samples > (count - 1) * prompts


def test_a_part_takes_two_gibibytes_unless_told() -> None:
    assert images_per_part(image_bytes=2**20, prompts=3) == 2048
    assert images_per_part(image_bytes=2**40, prompts=3) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"part_bytes": 5, "samples_per_part": 5}, "--part-bytes and --samples-per-part"),
        ({"part_bytes": 0}, "--part-bytes is 0"),
        ({"part_bytes": -1}, "--part-bytes is -1"),
        ({"samples_per_part": 0}, "--samples-per-part is 0"),
        ({"samples_per_part": -3}, "--samples-per-part is -3"),
    ],
)
def test_part_sizes_that_make_no_sense_are_wrong_usage(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        images_per_part(image_bytes=1, prompts=1, **sizes)


def layers_one_by_one(item: str, block_count: int) -> set[int] | None:
    """Every layer that an item names, found by counting up; None where the item is refused."""
    fields = item.split(":")
    if len(fields) == 1:
        return {int(item)} if int(item) <= block_count else None
    start = int(fields[0]) if fields[0] else 0
    stop = int(fields[1]) if fields[1] else block_count + 1
    step = int(fields[2]) if fields[2:] and fields[2] else 1
    named, layer = set(), start
    while step and layer < stop:
        named.add(layer)
        layer += step
    return named if named and max(named) <= block_count else None


NUMBER = st.integers(0, 12).map(str)
MAYBE = st.one_of(st.just(""), NUMBER)
ITEM = st.one_of(NUMBER, st.tuples(MAYBE, MAYBE).map(":".join), st.tuples(MAYBE, MAYBE, MAYBE).map(":".join))


@given(st.lists(ITEM, min_size=1, max_size=4), st.integers(1, 10), st.sampled_from(["", " "]))
def test_layers_are_those_that_each_item_names(items: list[str], block_count: int, blank: str) -> None:
    named = [layers_one_by_one(item, block_count) for item in items]
    text = f"{blank},{blank}".join(items)
    if any(layers is None for layers in named):
        with pytest.raises(UsageError, match="--layers"):
            parse_layers(text, block_count)
    else:
        expected = set().union(*(layers for layers in named if layers is not None))
        assert parse_layers(text, block_count) == tuple(sorted(expected))


def test_all_layers_unless_told() -> None:
    assert parse_layers(None, 3) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9", r"layer 9 does not exist; this model has 8 blocks"),
        ("0:10", r"layer 9 does not exist"),
        ("0:999999999", r"does not exist"),
        ("-1", r"'-1' is neither a layer nor a range"),
        ("--1", "neither"),
        ("²", "neither"),
        ("3,,4", "'' is neither"),
        ("", "'' is neither"),
        ("1:2:3:4", "neither"),
        ("two", "'two' is neither"),
        ("1.5", "neither"),
        ("1e2", "neither"),
        ("0:8:0", "'0:8:0' is neither"),
        ("5:2", "'5:2' names no layer"),
        ("9" * 5000, "neither"),
    ],
)
def test_layers_that_are_none_name_the_item_and_the_rule(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_layers(text, 8)


@pytest.mark.parametrize(
    ("text", "blocks"), [(None, (1, 2, 3)), ("2", (2,)), (":3", (1, 2)), ("2:", (2, 3)), ("::2", (1, 3))]
)
def test_blocks_count_from_1(text: str | None, blocks: tuple[int, ...]) -> None:
    assert parse_blocks("blocks", text, 3) == blocks


@pytest.mark.parametrize(("text", "message"), [("0", "block 0"), ("1:5", "block 4"), ("0:2", "block 0")])
def test_blocks_that_the_model_lacks_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"\[attention\] blocks '{text}': {message} does not exist; .* blocks 1 to 3"):
        parse_blocks("[attention] blocks", text, 3)


@given(st.lists(st.sampled_from(ROLES), min_size=1), st.sampled_from([",", " , ", ",,"]))
def test_names_come_in_the_order_of_the_known_ones(names: list[str], separator: str) -> None:
    assert parse_names("--roles", separator.join(names), ROLES) == tuple(name for name in ROLES if name in names)


def test_names_that_are_unknown_or_missing_are_wrong_usage() -> None:
    assert parse_names("--capture", None, CAPTURES) is None
    with pytest.raises(UsageError, match=r"--capture 'residual,nose': 'nose' is unknown; choose from residual, pooled"):
        parse_names("--capture", "residual,nose", CAPTURES)
    for nothing in ("", " , "):
        with pytest.raises(UsageError, match="no name is given"):
            parse_names("--capture", nothing, CAPTURES)
