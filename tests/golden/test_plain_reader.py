"""FORMAT.md is enough: a reader written from it alone finds all that the golden store of this version holds."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.store
from engine.store.layout import FORMAT_VERSION
from tests.engine.store.builders import tiny_store
from tests.engine.store.forge import change_record
from tests.engine.store.test_verify import flip
from tests.golden import plain_reader
from tests.golden.make import DIMS, stored_values
from tests.golden.plain_reader import PlainStore, plan_sha256
from tests.golden.values import (
    BLOCKS,
    KEPT_BLOCKS,
    KEPT_ROLES,
    LAYERS,
    LENGTH,
    NORM_BIAS,
    NORM_WEIGHT,
    QUERIES,
    QUERY_POSITIONS,
    SEGMENTS,
    TOKEN_ROLES,
    attention,
    places,
    states,
    unembedding,
)

GOLDEN = Path(__file__).parent / FORMAT_VERSION
PART, EMPTY = "00000000", "00000001"


@pytest.fixture(scope="module")
def store() -> PlainStore:
    return PlainStore(GOLDEN)


def names(coordinate: plain_reader.PlainArray) -> list[str]:
    """What codes mean, by the attributes that say so."""
    meanings = dict(
        zip(coordinate.attributes["flag_values"], coordinate.attributes["flag_meanings"].split(" "), strict=True)
    )
    return [meanings[code] for code in coordinate.values.tolist()]


def test_it_knows_nothing_of_this_package() -> None:
    text = Path(str(plain_reader.__file__)).read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported.isdisjoint({"engine", "analyses", "tests", "zarr", "xarray", "dask"})


def test_the_page_names_everything_that_the_store_holds(store: PlainStore) -> None:
    page = (Path(str(engine.store.__file__)).parent / "FORMAT.md").read_text()
    assert page.splitlines()[0].endswith(f"version {FORMAT_VERSION}")
    record, manifest = store.record, store.manifests[PART]
    entries = manifest["arrays"].values()
    held = [record, manifest, manifest["run"], *(record[name] for name in ("model", "capture", "source")), *entries]
    held += [entry["attributes"] for entry in entries] + [store.model()[0], *record["prompts"]]
    held += [store.table(name)[0] for name in ("plan.parquet", "vocab.parquet", f"parts/{PART}.parquet")]
    names = {name for each in held for name in each} | {part for path in manifest["arrays"] for part in path.split("/")}
    assert {name for name in names if not re.search(rf"[`\"/.]{name}[`\"]", page)} == set()


def test_records(store: PlainStore) -> None:
    assert store.record["format_version"] == FORMAT_VERSION
    assert plan_sha256(store.record) == store.record["plan_sha256"]
    assert [(m["samples"], m["tokens"], m["keys"]) for m in store.manifests.values()] == [(2, 8, 12), (0, 0, 0)]
    stored = [row["sample_id"] for name in store.manifests for row in store.samples(name)]
    bad = [sample["sample_id"] for manifest in store.manifests.values() for sample in manifest["bad_samples"]]
    assert stored == list(SEGMENTS)
    assert [row["sample_id"] for row in store.table("plan.parquet")] == stored + bad
    pieces = store.table("vocab.parquet")
    assert [row["token_id"] for row in pieces] == list(range(8))
    assert pieces[4] == {"token_id": 4, "piece": "▁red", "kind": "normal", "word_start": True}


@pytest.mark.parametrize("path", DIMS)
def test_every_array(store: PlainStore, path: str) -> None:
    expected = stored_values()[path]
    array = store.array(PART, path)
    assert array.dims == DIMS[path]
    assert array.values.dtype == ("float16" if path == "token/mlp_output" else expected.dtype)
    np.testing.assert_allclose(array.values, expected, rtol=1e-6)
    none = store.array(EMPTY, path)
    assert (none.dims, none.values.size) == (array.dims, 0)


def test_no_array_is_missing_here(store: PlainStore) -> None:
    data = {path for path, entry in store.manifests[PART]["arrays"].items() if not entry["coordinate"]}
    assert data == DIMS.keys() == stored_values().keys()


def test_coordinates(store: PlainStore) -> None:
    token, key, sample = (store.coordinates(PART, group) for group in ("token", "key", "sample"))
    assert names(token["role"]) == list(TOKEN_ROLES)
    assert (token["layer"].values.tolist(), token["block"].values.tolist()) == (list(LAYERS), list(BLOCKS))
    assert sample["layer"].values.tolist() == list(LAYERS)
    assert names(sample["role"]) == names(token["source_role"])
    assert names(key["query"]) == list(QUERIES)
    assert [TOKEN_ROLES[place] for place in key["token"].values] == names(key["role"])
    said = store.array(PART, "token/attention_mass").attributes
    assert (said["roles"], said["blocks"]) == (list(KEPT_ROLES), list(KEPT_BLOCKS))


@pytest.mark.parametrize("number", [0, 1])
def test_one_sample(store: PlainStore, number: int) -> None:
    row = store.samples(PART)[number]
    tokens = [token for run in row["segments"] for token in range(run["start"], run["stop"])]
    assert tokens == places(number)
    hidden = store.array(PART, "token/hidden_states")
    np.testing.assert_array_equal(hidden.values[:, tokens], states()[:, tokens])
    rows = store.array(PART, "key/attention").values[..., row["key_start"] : row["key_stop"]]
    expected = [
        [[[attention(b, q, h, number, p) for p in range(LENGTH)] for h in (0, 1)] for q in range(3)] for b in BLOCKS
    ]
    np.testing.assert_array_equal(rows, expected)
    assert row["query_positions"] == list(QUERY_POSITIONS)
    assert (row["thumbnail"] is None) == (number == 1)


def test_the_model_gives_the_stored_means_and_pieces(store: PlainStore) -> None:
    attributes, arrays = store.model()
    np.testing.assert_array_equal(arrays["unembedding"].values, unembedding())
    np.testing.assert_array_equal(arrays["final_norm_weight"].values, NORM_WEIGHT)
    np.testing.assert_array_equal(arrays["final_norm_bias"].values, NORM_BIAS)
    x = store.array(PART, "token/hidden_states").values[-1].astype(np.float64)
    assert attributes["norm_kind"] == "layer"
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + attributes["norm_eps"])
    normed = normed * (NORM_WEIGHT + attributes["norm_weight_offset"]) + NORM_BIAS
    image = store.coordinates(PART, "token")["role"].values == 2
    units = normed[image] / np.linalg.norm(normed[image], axis=1, keepdims=True)
    mean = store.array(PART, "sample/normed_unit_mean").values[2]
    np.testing.assert_allclose(mean, np.stack([units.mean(0)] * 2), rtol=1e-6)
    cap = attributes["logit_softcap"]
    logits = cap * np.tanh(normed[image] @ unembedding().T / cap)
    normal = np.array([row["kind"] == "normal" for row in store.table("vocab.parquet")])
    best = np.where(normal, logits, -np.inf).argmax(-1)
    assert store.array(PART, "token/lens_token_id").values[-1, image, 0].tolist() == best.tolist()


def test_shards_of_several_chunks_that_are_longer_than_the_array(tmp_path: Path) -> None:
    tiny = tiny_store(
        tmp_path / "store", layers=2, dim=300_000, images=1, parts=1, prompts=2, pooled=False, unembedding=False
    )
    array = PlainStore(tiny.path).array(PART, "token/hidden_states")
    first, second = tiny.samples.values()
    np.testing.assert_array_equal(array.values, np.concatenate([first.states, second.states[:, 6:]], axis=1))


def spoil_record(store: Path) -> None:
    content = (store / "store.json").read_bytes()
    (store / "store.json").write_bytes(content.replace(b'"seed": 0', b'"seed": 1'))


def later_version(store: Path) -> None:
    change_record(store / "store.json", lambda record: record.update(format_version="2.0"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_record, "another checksum"),
        (later_version, "later format"),
        (lambda store: flip(store / "parts/00000000.parquet"), "not as it was written"),
    ],
)
def test_it_refuses_what_the_page_tells_it_to(tmp_path: Path, spoil: Any, message: str) -> None:
    copy = Path(shutil.copytree(GOLDEN, tmp_path / "store"))
    spoil(copy)
    with pytest.raises(ValueError, match=message):
        PlainStore(copy)
