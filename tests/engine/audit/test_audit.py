"""``strata audit``: sound stores pass, and each way to be wrong is caught and named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner

from engine.cli.main import main
from engine.plan import CAPTURES
from engine.vocabulary import ROLE_CODES
from tests.engine.audit.conftest import BLOCKS, Extracted, ExtractOnce
from tests.engine.store.forge import change_table

STATES = "token/hidden_states"
LOGITS = "logits from the store"
POOLED = ("sample/unit_mean", "sample/mean", "sample/normed_unit_mean")
ALL = ("--samples", 9)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_a_store_of_padded_batches_passes(extract: ExtractOnce, family: str, dtype: str) -> None:
    audit = extract(family=family, dtype=dtype).audit(*ALL)
    assert audit.exit_code == 0, audit.text
    for tensor in (STATES, *POOLED, LOGITS):
        assert " ok " in audit.line(tensor)
    assert "note:" not in audit.text
    assert "is what this model gives" in audit.text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_capture_behind_prefixes_that_ran_once_passes(extract: ExtractOnce, dtype: str) -> None:
    store = extract("--capture", ",".join(CAPTURES), "--queries", "last_text,last_image,preamble:0", dtype=dtype)
    assert {part.manifest["run"]["prefix_pass"] for part in store.store.parts} == {"once per image"}
    audit = store.audit("--samples", 4)
    assert audit.exit_code == 0, audit.text
    assert " WRONG " not in audit.text
    for tensor in (
        STATES,
        *POOLED,
        LOGITS,
        "key/attention",
        "key/attention_norm",
        "token/value_norm",
        "token/lens_logit",
    ):
        assert " ok " in audit.line(tensor)


def test_one_flipped_value_is_named_with_sample_layer_and_position(spoilt: Extracted) -> None:
    def flip(states: np.ndarray) -> np.ndarray:
        states[2, 20, 5] = -states[2, 20, 5] + 1
        return states

    spoilt.change(STATES, flip)
    part = spoilt.store.parts[0]
    owner = next(
        row
        for row in part.samples.to_dict("records")
        if any(segment["start"] <= 20 < segment["stop"] for segment in row["segments"][1:])
    )
    position = int(part.open("token")["position"][20])
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    line = audit.line(STATES)
    assert " WRONG " in line
    assert f"{owner['sample_id']}: layer 2, position {position} (" in line
    assert line.rstrip().endswith("dim 5")
    assert all(" ok " in audit.line(tensor) for tensor in (*POOLED, LOGITS))


@pytest.mark.parametrize("samples", [1, 9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swapped_tokens_are_caught(extract: ExtractOnce, tmp_path: Path, dtype: str, samples: int) -> None:
    store = extract(dtype=dtype).copy(tmp_path / "store")

    def swap(states: np.ndarray) -> np.ndarray:
        states[:, 2:18] = states[:, 2:18][:, ::-1].copy()
        return states

    for part in (0, 1):
        store.change(STATES, swap, part)
    audit = store.audit("--samples", samples)
    assert audit.exit_code == 1
    assert " WRONG " in audit.line(STATES)


def test_a_doubled_final_norm_is_caught_in_the_last_layer_and_in_the_logits(spoilt: Extracted) -> None:
    norm, eps = spoilt.store.model.final_norm_weight, spoilt.store.model.norm_eps

    def normed(states: np.ndarray) -> np.ndarray:
        last = states[BLOCKS]
        states[BLOCKS] = last / np.sqrt((last**2).mean(axis=-1, keepdims=True) + eps) * norm
        return states

    for part in (0, 1):
        spoilt.change(STATES, normed, part)
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    assert f"layer {BLOCKS}, " in audit.line(STATES)
    assert " WRONG " in audit.line(STATES)
    assert " WRONG " in audit.line(LOGITS)
    assert all(" ok " in audit.line(tensor) for tensor in POOLED)


def test_a_wrong_stored_norm_shows_in_the_logits_alone(spoilt: Extracted) -> None:
    group = zarr.open_group(spoilt.path / "model.zarr", mode="r+", use_consolidated=False)
    weight = group["final_norm_weight"]
    assert isinstance(weight, zarr.Array)
    weight[...] = np.ones(weight.shape, np.float32)
    audit = spoilt.audit()
    assert audit.exit_code == 1
    assert " WRONG " in audit.line(LOGITS)
    assert all(" ok " in audit.line(tensor) for tensor in (STATES, *POOLED))


def test_twice_a_state_points_the_same_way_and_is_caught(spoilt: Extracted) -> None:
    spoilt.change(STATES, lambda states: states * np.where(np.arange(BLOCKS + 1) == 1, 2, 1)[:, None, None])
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    assert " WRONG " in audit.line(STATES)
    assert ": layer 1, " in audit.line(STATES)


def test_layers_in_another_order_are_caught(spoilt: Extracted) -> None:
    order = [0, 2, 1, 3]
    for path in (STATES, "sample/mean"):
        spoilt.change(path, lambda values: values[order])
    audit = spoilt.audit()
    assert audit.exit_code == 1
    for path in (STATES, "sample/mean"):
        assert re.search(r"WRONG .*layer [12], ", audit.line(path))
    assert " ok " in audit.line("sample/unit_mean")


def test_states_of_another_prompt_are_caught(spoilt: Extracted) -> None:
    """Two samples trade their places: the states are sound, but they belong to the other prompt."""
    path = spoilt.path / "parts" / "00000000.parquet"
    table = pd.read_parquet(path)
    names = list(table["prompt_id"])
    one, other = names.index("normal-1"), names.index("normal-2")
    assert table["image_id"][one] == table["image_id"][other]
    segments = list(table["segments"])
    segments[one], segments[other] = segments[other], segments[one]
    change_table(
        spoilt.path,
        "parts/00000000.parquet",
        lambda rows: [row.update(segments=list(own)) for row, own in zip(rows, segments, strict=True)],
    )
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    assert re.search(rf"differs: {table['sample_id'][one]}: token/token_id", audit.text)
    assert "is not what this model gives: tokens or tables" in audit.text


def test_another_prompt_in_the_sample_table_is_named(spoilt: Extracted) -> None:
    path = spoilt.path / "parts" / "00000001.parquet"
    table = pd.read_parquet(path)
    change_table(spoilt.path, "parts/00000001.parquet", lambda rows: rows[0].update(prompt="What is not on it?"))
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    assert f"differs: {table['sample_id'][0]}: prompt: the sample table says 'What is not on it?'" in audit.text


def test_a_hole_is_not_a_value(spoilt: Extracted) -> None:
    def hole(means: np.ndarray) -> np.ndarray:
        means[3, 2, 0, 7] = np.nan
        return means

    spoilt.change("sample/mean", hole)
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    assert re.search(r"WRONG +inf .*layer 3, role image, dim 7", audit.line("sample/mean"))


def test_a_wrong_token_count_is_caught(spoilt: Extracted) -> None:
    spoilt.change("sample/token_count", lambda counts: counts + 1)
    audit = spoilt.audit()
    assert audit.exit_code == 1
    assert "sample/token_count at 0: stored [2], fresh [1]" in audit.text


@pytest.mark.parametrize("options", [("--roles", "image,instruction"), ("--layers", "0,2"), ("--no-unembedding",)])
def test_stores_of_some_roles_layers_or_without_unembedding_pass(
    extract: ExtractOnce, options: tuple[str, ...]
) -> None:
    audit = extract(*options).audit(*ALL)
    assert audit.exit_code == 0, audit.text
    assert " ok " in audit.line(STATES)
    wanting = {"--layers": f"layer {BLOCKS}", "--no-unembedding": "unembedding"}.get(options[0])
    if wanting:
        assert f"note: logits were not compared: the store has no {wanting}" in audit.text


def test_pooled_means_alone_are_audited(extract: ExtractOnce) -> None:
    audit = extract("--capture", "pooled").audit()
    assert audit.exit_code == 0, audit.text
    assert all(" ok " in audit.line(tensor) for tensor in POOLED)
    assert "no hidden states" in audit.text


@pytest.mark.parametrize(("family", "dtype"), [("llava", "float16"), ("instructblip", "float32")])
def test_tensors_of_blocks_are_audited_and_one_other_weight_is_named(
    extract: ExtractOnce, tmp_path: Path, family: str, dtype: str
) -> None:
    captures = ",".join(["residual", "attention", "attention-mass", "attention-output", "mlp-output"])
    stored = extract("--capture", captures, "--queries", "last_text,instruction:0", family=family, dtype=dtype)
    audit = stored.audit("--samples", 6)
    assert audit.exit_code == 0, audit.text
    rows, sums = ("key/attention ", "key/attention_norm"), ("token/attention_mass", "token/value_norm")
    assert all(" ok " in audit.line(path) for path in (*rows, *sums, "token/attention_output", "token/mlp_output"))
    spoilt = stored.copy(tmp_path / "store")

    def change(weights: np.ndarray) -> np.ndarray:
        weights[1, 0, 3, 2] += 1
        return weights

    spoilt.change("key/attention", change)
    first = spoilt.store.parts[0].samples.iloc[0]
    audit = spoilt.audit(*ALL)
    assert audit.exit_code == 1
    place = f"{first['sample_id']}: block 2, query last_text, head 3, key position 2"
    assert place in audit.line("key/attention ")
    assert " WRONG " in audit.line("key/attention ")
    assert " ok " in audit.line("key/attention_norm")


FEWER = """
[residual]
roles = "image,instruction"
[attention]
roles = "instruction"
[mlp-output]
blocks = "2:"
roles = "special,template"
"""


@pytest.fixture
def fewer(extract: ExtractOnce, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """A copy of a store whose tensors keep roles and blocks of their own, to be spoilt."""
    config = tmp_path_factory.getbasetemp() / "fewer.toml"
    config.write_text(FEWER)
    return extract("--capture", "residual,attention,mlp-output", "--config", str(config)).copy(tmp_path / "store")


@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_tensors_of_their_own_roles_and_blocks_pass(extract: ExtractOnce, tmp_path: Path, family: str) -> None:
    (tmp_path / "run.toml").write_text(FEWER)
    options = ("--capture", "residual,attention,mlp-output", "--config", str(tmp_path / "run.toml"))
    audit = extract(*options, family=family).audit(*ALL)
    assert audit.exit_code == 0, audit.text
    for tensor in (STATES, "token/value_norm", "token/mlp_output", LOGITS):
        assert " ok " in audit.line(tensor)


@pytest.mark.parametrize(
    ("path", "kept", "role", "block"),
    [
        (STATES, True, "instruction", 2),
        (STATES, False, "template", 2),
        ("token/mlp_output", False, "template", 0),
        ("token/mlp_output", True, "template", 1),
        ("token/value_norm", False, "image", 1),
        ("token/value_norm", True, "instruction", 1),
    ],
)
def test_a_missing_value_and_one_too_many_are_caught(
    fewer: Extracted, path: str, kept: bool, role: str, block: int
) -> None:
    roles = fewer.store.parts[0].open("token")["role"].values
    token = int(np.flatnonzero(roles == ROLE_CODES[role])[0])

    def spoil(values: np.ndarray) -> np.ndarray:
        vectors = values if path != "token/value_norm" else values.swapaxes(1, 2)
        assert np.isfinite(vectors[block, token]).all() == kept
        vectors[block, token, 1] = np.nan if kept else 0.5
        return values

    fewer.change(path, spoil)
    audit = fewer.audit(*ALL)
    assert audit.exit_code == 1
    assert re.search(rf"WRONG +inf .*position \d+ \({role}\)", audit.line(path))


def test_attributes_that_claim_more_than_was_chosen_are_named(fewer: Extracted) -> None:
    for path in (fewer.path / "parts").glob("*.json"):
        manifest = json.loads(path.read_text())
        del manifest["arrays"]["token/mlp_output"]["attributes"]["blocks"]
        path.write_bytes(_sealed(manifest))
    audit = fewer.audit(*ALL)
    assert audit.exit_code == 1
    assert "token/mlp_output: its attributes say that it keeps blocks all, store.json says [2, 3]" in audit.text


@pytest.mark.parametrize(("version", "sound"), [("0.3", True), ("0.4", False)])
def test_only_stores_of_earlier_formats_may_lack_the_roles_of_keys(
    extract: ExtractOnce, tmp_path: Path, version: str, sound: bool
) -> None:
    stored = extract("--capture", "residual,attention").copy(tmp_path / "store")
    for path in (stored.path / "parts").glob("*.json"):
        manifest = json.loads(path.read_text())
        for name in ("role", "grid", "patch_row", "patch_col"):
            del manifest["arrays"][f"key/{name}"]
        path.write_bytes(_sealed({**manifest, "format_version": version}))
    record = json.loads((stored.path / "store.json").read_text())
    for name in ("tensor_roles", "tensor_blocks", "thumbnails"):
        del record["capture"][name]
    (stored.path / "store.json").write_bytes(_sealed({**record, "format_version": version}))
    audit = stored.audit("--samples", 2)
    assert (audit.exit_code == 0) == sound, audit.text
    assert ("key/role is not stored" in audit.text) != sound


def test_rounding_is_allowed_as_far_as_it_went_and_no_further(extract: ExtractOnce, tmp_path: Path) -> None:
    rounded = extract("--mantissa-bits", "6")
    audit = rounded.audit(*ALL)
    assert audit.exit_code == 0, audit.text
    spoilt = rounded.copy(tmp_path / "store")
    spoilt.change(STATES, lambda states: states * np.float32(1 + 3 * 2**-7))
    assert " WRONG " in spoilt.audit("--samples", 1).line(STATES)
    unrecorded = rounded.copy(tmp_path / "unrecorded")
    for path in (unrecorded.path / "parts").glob("*.json"):
        manifest = json.loads(path.read_text())
        del manifest["arrays"][STATES]["attributes"]["rounding_max_relative_error"]
        path.write_bytes(_sealed(manifest))
    assert " WRONG " in unrecorded.audit("--samples", 1).line(STATES)


def _sealed(manifest: dict[str, object]) -> bytes:
    from engine.store.manifest import seal_json  # noqa: PLC0415

    return seal_json({name: value for name, value in manifest.items() if name != "sha256"})


def test_samples_are_drawn_alike_from_every_part(extract: ExtractOnce) -> None:
    store = extract()
    assert store.audit("--samples", 2).text == store.audit("--samples", 2).text
    assert "2 of 9 samples" in store.audit("--samples", 2).text


def test_another_model_is_refused(extract: ExtractOnce, checkpoint: Callable[..., Path]) -> None:
    other = extract()._replace(model=checkpoint(seed=1))
    audit = other.audit()
    assert audit.exit_code == 2
    assert "is not the model of this store: its revision is sha256:" in audit.text


def test_another_image_is_refused(spoilt: Extracted, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = sorted(spoilt.images.iterdir())
    for path, source in zip(paths, [paths[-1], *paths[:-1]], strict=True):
        (folder / path.name).write_bytes(source.read_bytes())
    audit = spoilt._replace(images=folder).audit()
    assert audit.exit_code == 1
    assert "is not the one that was extracted: its sha256 is" in audit.text
    missing = spoilt._replace(images=tmp_path / "nowhere").audit()
    assert missing.exit_code == 1
    assert "check --images" in missing.text


def test_images_are_asked_for(spoilt: Extracted) -> None:
    result = CliRunner().invoke(main, ["audit", str(spoilt.path), "--model", str(spoilt.model)])
    assert result.exit_code == 2
    assert "--images" in result.stderr


def test_annotations_lead_to_the_images_too(extract: ExtractOnce, pictures: Path) -> None:
    audit = extract().audit("--annotations", pictures / "captions.json", "--samples", 1)
    assert audit.exit_code == 0, audit.text


def test_other_libraries_are_noted(spoilt: Extracted) -> None:
    for path in (spoilt.path / "parts").glob("*.json"):
        manifest = json.loads(path.read_text())
        manifest["run"]["versions"]["torch"] = "1.0"
        path.write_bytes(_sealed(manifest))
    audit = spoilt.audit("--samples", 2)
    assert audit.exit_code == 0, audit.text
    assert audit.text.count("note: extracted with torch 1.0, audited with ") == 1
