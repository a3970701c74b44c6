"""``--capture lens`` from the command line to the reader: what is stored, of which layers and roles, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import Result

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import open_checkpoint
from engine.models.load import load_model
from engine.store import Store, open_store, verify
from engine.vocabulary import ROLE_CODES
from tests import tiny_gemma_llava, tiny_instructblip, tiny_llava
from tests.engine.capture.lens_oracle import all_logits, allowed_ids, check_pieces
from tests.engine.cli.conftest import Dataset, write_images

Strata = Callable[..., Result]

PROMPTS = ("--prompts", "normal:2", "--prompts", "empty", "--batch-size", "4", "--samples-per-part", "6")
FAMILIES = {
    "llava": tiny_llava.save_checkpoint,
    "instructblip": tiny_instructblip.save_checkpoint,
    "gemma": lambda folder: tiny_gemma_llava.save_checkpoint(folder, tiny_llava.TinyShape()),
}
IMAGE = ROLE_CODES["image"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_pieces_are_those_of_the_stored_states(
    strata: Strata, dataset: Dataset, tmp_path: Path, family: str, dtype: str
) -> None:
    data = dataset._replace(model=FAMILIES[family](tmp_path / f"tiny-{family}"))
    options = data.arguments("--capture", "residual,lens", "--lens-topk", 4, "--dtype", dtype, *PROMPTS)
    extracted = strata("extract", *options, "--out", tmp_path / "store")
    assert extracted.exit_code == 0, extracted.output
    assert verify(tmp_path / "store", deep=True).problems == ()
    store = open_store(tmp_path / "store")
    assert store.lens_token_id.dims == store.lens_logit.dims == ("layer", "token", "rank")
    assert (store.lens_token_id.dtype, store.lens_logit.dtype) == (np.int32, np.float32)
    assert store.lens_layers.tolist() == store.lens_logit["layer"].values.tolist() == store.state_layers.tolist()
    shared = sum(len({tuple(run.values()) for run in row}) for row in store.samples["segments"]) > len(store.samples)
    assert shared == (family != "instructblip")

    checkpoint = open_checkpoint(str(data.model))
    model = load_model(checkpoint, dtype=dtype, device="cpu").model
    allowed = allowed_ids(checkpoint.processor.tokenizer, len(model.get_output_embeddings().weight))
    for layer in store.lens_layers:
        states, ids, logits = (
            array.sel(layer=layer).values for array in (store.hidden_states, store.lens_token_id, store.lens_logit)
        )
        check_pieces(ids, logits, all_logits(model, torch.from_numpy(states), allowed))
    kinds = store.model.vocabulary["kind"].to_numpy()
    assert set(kinds[store.lens_token_id.values.ravel()]) == {"normal"}
    assert {"special", "byte", "padding"} <= set(kinds)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    model = tiny_llava.save_checkpoint(folder / "tiny-llava")
    return Dataset(model, write_images(folder / "images", 5), folder / "images")


@pytest.fixture(scope="module")
def whole(strata: Strata, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Hidden states and pieces of all layers and roles."""
    out = tmp_path_factory.mktemp("whole") / "store"
    result = strata("extract", *data.arguments("--capture", "residual,pooled,lens", *PROMPTS, "--out", out))
    assert result.exit_code == 0, result.output
    return open_store(out)


def extract(strata: Strata, data: Dataset, folder: Path, tables: str, *options: str) -> Store:
    (folder / "run.toml").write_text(tables)
    arguments = data.arguments(*options, *PROMPTS, "--config", folder / "run.toml", "--out", folder / "store")
    result = strata("extract", *arguments)
    assert result.exit_code == 0, result.output
    assert verify(folder / "store", deep=True).problems == ()
    return open_store(folder / "store")


def test_pieces_alone_make_a_small_store_that_still_has_them(
    strata: Strata, data: Dataset, whole: Store, tmp_path: Path
) -> None:
    alone = extract(strata, data, tmp_path, "", "--capture", "lens", "--no-unembedding", "--lens-topk", "3")
    np.testing.assert_array_equal(alone.lens_token_id, whole.lens_token_id[..., :3])
    np.testing.assert_array_equal(alone.lens_logit, whole.lens_logit[..., :3])
    assert whole.lens_token_id.sizes["rank"] == 10
    assert alone.model.unembedding is None
    assert {path.split("/")[0] for path in alone.parts[0].manifest["arrays"]} == {"token"}
    pieces = alone.model.vocabulary["piece"].to_numpy()[alone.lens_token_id.values]
    assert pieces.shape == alone.lens_token_id.shape
    with pytest.raises(StrataError, match="holds token/hidden_states: captured was"):
        alone.hidden_states  # noqa: B018
    inspected = strata("inspect", alone.url).stdout
    assert "3 pieces per state" in inspected
    assert "token/lens_token_id  layer 5 × token" in inspected
    again = strata("extract", *data.arguments("--capture", "lens", *PROMPTS, "--out", alone.url, "--no-unembedding"))
    assert again.exit_code == 2
    assert "capture.lens_topk: stored 3, asked 10" in again.stderr


@pytest.mark.parametrize("beside", ["", "pooled,", "attention,"])
def test_without_hidden_states_the_layers_are_its_own(
    strata: Strata, data: Dataset, whole: Store, tmp_path: Path, beside: str
) -> None:
    tables = "[lens]\nlayers = [1, 4]\nroles = 'image,template'\n"
    store = extract(strata, data, tmp_path, tables, "--capture", f"{beside}lens")
    assert store.lens_layers.tolist() == store.lens_token_id["layer"].values.tolist() == [1, 4]
    assert store.layers.tolist() == ([0, 1, 2, 3, 4] if beside == "pooled," else [1, 4])
    kept = np.isin(whole.lens_token_id["role"], [IMAGE, ROLE_CODES["template"]])
    expected = whole.lens_token_id.sel(layer=[1, 4]).values[:, kept]
    if beside == "attention,":
        assert store.lens_token_id.attrs["roles"] == ["image", "template"]
        assert (store.lens_token_id.values[:, ~kept] == -1).all()
        assert np.isnan(store.lens_logit.values[:, ~kept]).all()
        np.testing.assert_array_equal(store.lens_token_id.values[:, kept], expected)
    else:
        assert "roles" not in store.lens_token_id.attrs
        np.testing.assert_array_equal(store.lens_token_id, expected)
    found = store.map_samples(lambda sample: {"layers": sample["layer"].values}, arrays="lens_token_id", layers=4)
    assert [list(layers) for layers in found["layers"]] == [[4]] * len(store.samples)


def test_fewer_layers_and_roles_than_hidden_states_leave_the_rest_empty(
    strata: Strata, data: Dataset, whole: Store, tmp_path: Path
) -> None:
    tables = "[residual]\nlayers = '1:'\n[lens]\nlayers = '2,4'\nroles = 'image'\n"
    store = extract(strata, data, tmp_path, tables, "--capture", "residual,pooled,lens")
    assert (store.state_layers.tolist(), store.lens_layers.tolist()) == ([1, 2, 3, 4], [2, 4])
    np.testing.assert_array_equal(store.hidden_states, whole.hidden_states[1:])
    image = (whole.lens_token_id["role"] == IMAGE).values
    for name, nothing in (("lens_token_id", -1), ("lens_logit", np.nan)):
        array = getattr(store, name)
        assert (array.attrs["layers"], array.attrs["roles"]) == ([2, 4], ["image"])
        expected = getattr(whole, name).sel(layer=store.state_layers).values.copy()
        expected[[0, 2]] = nothing
        expected[:, ~image] = nothing
        np.testing.assert_array_equal(array, expected)
    assert store.kept_roles("lens") == ("image",)
    inspected = strata("inspect", store.url).stdout
    assert "token/lens_token_id keeps layers 2, 4 and tokens of image; the rest is -1" in inspected
    assert "token/lens_logit keeps layers 2, 4 and tokens of image; the rest is NaN" in inspected
    assert "layer 2 of 4 × token" in inspected

    def of_sample(sample: xr.Dataset) -> dict[str, object]:
        return {"ids": sample["lens_token_id"].values, "layers": sample["layer"].values.tolist()}

    found = store.map_samples(of_sample, arrays=("lens_token_id", "lens_logit"))
    for sample_id, ids, layers in zip(found["sample_id"], found["ids"], found["layers"], strict=True):
        own = whole.sample(sample_id)
        expected = own["lens_token_id"].sel(layer=[2, 4])[:, (own["role"] == IMAGE).values]
        assert layers == [2, 4]
        np.testing.assert_array_equal(ids, expected)
    with pytest.raises(UsageError, match="layer 1 is not stored: stored are 2, 4"):
        store.map_samples(of_sample, arrays="lens_token_id", layers=1)
    both = store.map_samples(
        lambda sample: {"layers": sample["layer"].values.tolist()}, arrays=("lens_logit", "hidden_states")
    )
    assert both["layers"][0] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "tables", "message"),
    [
        (("--capture", "residual", "--lens-topk", "4"), "", "--lens-topk 4 is a choice of lens, but --capture leaves"),
        (("--capture", "lens", "--lens-topk", "0"), "", "0 is not in the range x>=1"),
        (
            ("--capture", "lens", "--lens-topk", "100000"),
            "",
            "normal pieces (special, byte and padding pieces are never",
        ),
        (
            ("--capture", "residual,lens"),
            "[residual]\nlayers = 2\n[lens]\nlayers = '1:3'",
            "[lens] layers '1:3': layer 1 is not",
        ),
        (("--capture", "pooled,lens"), "layers = '2:'\n[lens]\nlayers = 1", "layer 1 is not among layers '2:'"),
        (("--capture", "lens"), "[lens]\nroles = 'target'", "[lens] roles 'target': no prompt of this run has a token"),
        (("--capture", "lens"), "[lens]\ndtype = 'float16'", "sets 'dtype' in [lens], which takes layers, roles"),
    ],
)
def test_what_cannot_be_is_refused(
    strata: Strata, data: Dataset, tmp_path: Path, options: tuple[str, ...], tables: str, message: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(tables)
    for command in (("estimate",), ("extract", "--out", tmp_path / "store")):
        result = strata(*command, *data.arguments(*options, "--config", config))
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "store").exists()


def test_as_many_pieces_as_there_are_candidates(strata: Strata, data: Dataset, whole: Store, tmp_path: Path) -> None:
    normal = int((whole.model.vocabulary["kind"] == "normal").sum())
    store = extract(strata, data, tmp_path, "", "--capture", "lens", "--lens-topk", str(normal), "--limit", "1")
    ids = np.sort(store.lens_token_id.values, axis=-1)
    assert (ids == np.flatnonzero(whole.model.vocabulary["kind"] == "normal")).all()
    over = strata("estimate", *data.arguments("--capture", "lens", "--lens-topk", normal + 1))
    assert (over.exit_code, f"give a number up to {normal}" in over.stderr) == (2, True)


def test_layers_of_the_command_line_are_for_the_lens_too(strata: Strata, data: Dataset, tmp_path: Path) -> None:
    store = extract(strata, data, tmp_path, "[lens]\nlayers = 4\n", "--capture", "lens", "--layers", "1:3")
    assert store.lens_layers.tolist() == [1, 2]
    assert json.loads((tmp_path / "store" / "store.json").read_text())["capture"]["lens_layers"] is None
