"""strata extract on every further kind of source, from the options to the stored table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result

from engine.store import Store, open_store
from tests.engine.sources.builders import (
    FLICKR,
    png,
    winoground_items,
    write_karpathy,
    write_parquet,
    write_winoground,
    write_winoground_parquet,
)

Strata = Callable[..., Result]


@pytest.fixture
def extracted(strata: Strata, checkpoint: Path) -> Callable[..., tuple[Store, Result]]:
    """Extract, inspect and verify a store."""

    def run(out: Path, *options: object) -> tuple[Store, Result]:
        result = strata("extract", "--model", checkpoint, "--out", out, *options)
        assert result.exit_code == 0, result.output
        assert "complete" in strata("inspect", out).stdout
        verified = strata("verify", out)
        assert verified.exit_code == 0, verified.output
        return open_store(out), result

    return run


def test_karpathy(extracted: Callable[..., tuple[Store, Result]], tmp_path: Path) -> None:
    annotations, root = write_karpathy(tmp_path, FLICKR, dataset="flickr30k")
    options = ["--source", "karpathy", "--annotations", annotations, "--images", root]
    store, result = extracted(tmp_path / "store", *options, "--split", "val, test", "--limit", 2)
    assert set(store.samples["image_id"]) < {"1", "2", "3"}
    assert store.record["source"]["kind"] == "karpathy"
    assert store.record["source"]["split"] == "test,val"
    assert store.samples["item_id"].tolist() == store.samples["image_id"].tolist()
    assert "note:" not in result.stderr
    _, again = extracted(tmp_path / "store", *options, "--split", "test,val", "--limit", 2)
    assert "nothing to do" in again.stdout


def test_both_layouts_of_winoground_give_equal_states(
    extracted: Callable[..., tuple[Store, Result]], tmp_path: Path
) -> None:
    items = winoground_items(4)
    annotations, root = write_winoground(tmp_path / "lines", items)
    table = write_winoground_parquet(tmp_path / "data/test-00000-of-00001.parquet", items).parent
    common = ["--source", "winoground", "--limit", 5, "--prompts", "normal:1", "--prompts", "empty"]
    lines, _ = extracted(tmp_path / "one", *common, "--annotations", annotations, "--images", root)
    parquet, _ = extracted(tmp_path / "two", *common, "--annotations", table)
    # Lists of captions and segments come back as arrays, which have no single truth to compare.
    tables = [store.samples.drop(columns="store").map(repr) for store in (lines, parquet)]
    assert tables[0].equals(tables[1])
    assert lines.samples["image_id"].nunique() == 5
    assert lines.samples["item_id"].tolist() == [name.rpartition("-")[0] for name in lines.samples["image_id"]]
    assert [list(captions) for captions in lines.samples["references"]] == [
        [str(items[int(row.item_id)][f"caption_{row.image_id[-1]}"])] for row in lines.samples.itertuples()
    ]
    np.testing.assert_array_equal(lines.hidden_states, parquet.hidden_states)
    one, two = (store.record["source"] for store in (lines, parquet))
    assert one["images_sha256"] == two["images_sha256"]
    assert one["annotations_sha256"] != two["annotations_sha256"]


def test_parquet(extracted: Callable[..., tuple[Store, Result]], strata: Strata, tmp_path: Path) -> None:
    image: list[object] = [{"bytes": png(number), "path": f"/home/a/{number}.png"} for number in (0, 1, 1)]
    image[0] = {"bytes": b"damaged", "path": None}
    columns = {"image": image, "caption": ["a", "b", "c"], "cocoid": [7, 8, 8]}
    write_parquet(tmp_path / "data/val-00000-of-00001.parquet", columns, row_group_size=2)
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", {"a": [1]})
    options = ["--source", "parquet", "--annotations", tmp_path / "data", "--split", "val"]
    store, result = extracted(tmp_path / "store", *options, "--skip-bad-samples")
    assert "captions from 'caption', image ids from 'cocoid'; 3 rows are 2 images" in result.stderr
    row = store.samples.iloc[0]
    assert (row["image_id"], row["image_uri"]) == ("8", "val-00000-of-00001.parquet#1")
    assert list(row["references"]) == ["b", "c"]
    assert "7/normal-1: image val-00000-of-00001.parquet#0: no image format" in result.stderr
    written = json.dumps(store.record) + strata("inspect", tmp_path / "store", "--bad").stdout
    assert str(tmp_path / "data") not in written
    assert "/home/a" not in written + store.samples.to_string()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["coco"], 2, "the source 'coco' has its images in files of their own; name their folder with --images"),
        (["karpathy", "--images", "images"], 1, "looks like Parquet with images inside: use --source parquet"),
        (["parquet", "--split", "dev"], 2, "has no split 'dev'; it has val (1 files)"),
        (
            ["winoground"],
            1,
            "has no image column 'image_0'; its columns are image (struct<bytes: binary, path: string>)",
        ),
    ],
)
def test_wrong_sources(
    strata: Strata, checkpoint: Path, tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    path = write_parquet(
        tmp_path / "val-00000-of-00001.parquet",
        {"image": [{"bytes": png(0), "path": None}], "caption": pa.array(["x"])},
    )
    for command in (["estimate"], ["extract", "--out", tmp_path / "store"]):
        result = strata(*command, "--model", checkpoint, "--annotations", path, "--source", *options)
        assert result.exit_code == code
        assert words in result.stderr
    assert not (tmp_path / "store").exists()
