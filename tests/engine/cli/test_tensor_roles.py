"""Roles and blocks of single tensors: what is stored of each, what it costs, and what readers make of the rest."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import Result

from engine.cli.sizes import format_bytes, format_dims
from engine.errors import UsageError
from engine.plan import BLOCK_CAPTURES, CAPTURES
from engine.store import Store, open_store, summarise, verify
from engine.vocabulary import ROLE_CODES, ROLES
from tests.analyses.test_norm_attention import analyse
from tests.engine.cli.conftest import Dataset, write_images
from tests.engine.cli.test_estimate import parse_bytes, said
from tests.tiny_llava import save_checkpoint

Strata = Callable[..., Result]

BLOCKS = (1, 2, 3, 4)


class Choice(NamedTuple):
    """Tables, and what they keep: layers or blocks and roles of each tensor; of all tensors together."""

    options: tuple[str, ...]
    tables: str
    kept: dict[str, tuple[tuple[int, ...], tuple[str, ...]]]
    roles: tuple[str, ...]
    blocks: tuple[int, ...]


CHOICES = {
    "each its own": Choice(
        (),
        """
        [residual]
        layers = "0,2,4"
        roles = "image,instruction"
        [attention]
        blocks = "2:4"
        roles = "instruction"
        [attention-mass]
        blocks = 1
        roles = ["image"]
        [attention-output]
        roles = "template"
        [mlp-output]
        blocks = "3:"
        roles = "image,instruction"
        dtype = "float16"
        [lens]
        layers = "2,4"
        roles = "template"
        """,
        {
            "residual": ((0, 2, 4), ("image", "instruction")),
            "attention": ((2, 3), ("instruction",)),
            "attention-mass": ((1,), ("image",)),
            "attention-output": (BLOCKS, ("template",)),
            "mlp-output": ((3, 4), ("image", "instruction")),
            "lens": ((2, 4), ("template",)),
        },
        ("image", "instruction", "template"),
        BLOCKS,
    ),
    "one of all roles, blocks with gaps": Choice(
        ("--dtype", "bfloat16"),
        """
        [attention]
        blocks = 2
        roles = "preamble"
        [attention-mass]
        blocks = 4
        [attention-output]
        blocks = 4
        roles = "special,template"
        [mlp-output]
        blocks = [2, 4]
        [lens]
        layers = 3
        """,
        {
            "residual": ((0, 1, 2, 3, 4), ROLES),
            "attention": ((2,), ("preamble",)),
            "attention-mass": ((4,), ROLES),
            "attention-output": ((4,), ("special", "template")),
            "mlp-output": ((2, 4), ROLES),
            "lens": ((3,), ROLES),
        },
        ROLES,
        (2, 4),
    ),
    "a common choice and one of its own": Choice(
        ("--dtype", "float16", "--mantissa-bits", "6"),
        """
        roles = "instruction,template"
        [residual]
        roles = "image,instruction"
        """,
        {
            "residual": ((0, 1, 2, 3, 4), ("image", "instruction")),
            **dict.fromkeys(BLOCK_CAPTURES, (BLOCKS, ("instruction", "template"))),
            "lens": ((0, 1, 2, 3, 4), ("instruction", "template")),
        },
        ("image", "instruction", "template"),
        BLOCKS,
    ),
}
TENSORS = {
    "hidden_states": "residual",
    "value_norm": "attention",
    "attention_mass": "attention-mass",
    "attention_output": "attention-output",
    "mlp_output": "mlp-output",
    "lens_token_id": "lens",
    "lens_logit": "lens",
}
CAPTURE = ("--capture", ",".join(CAPTURES), "--queries", "last_text,instruction:0")
PROMPTS = ("--prompts", "normal:2", "--prompts", "empty", "--batch-size", "4", "--samples-per-part", "6")


class Stores(NamedTuple):
    """A store of everything, one of a choice, and the options that the latter came from."""

    whole: Store
    fine: Store
    choice: Choice
    options: list[str]
    data: Dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    return Dataset(save_checkpoint(folder / "tiny-llava"), write_images(folder / "images", 5), folder / "images")


@pytest.fixture(scope="module", params=CHOICES)
def stores(
    request: pytest.FixtureRequest, strata: Strata, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Stores:
    choice = CHOICES[request.param]
    folder = tmp_path_factory.mktemp("stores")
    (folder / "run.toml").write_text(choice.tables)
    common = data.arguments(*CAPTURE, *PROMPTS, *choice.options)
    options = [*common, "--config", str(folder / "run.toml")]
    for name, chosen in (("whole", common), ("fine", options)):
        result = strata("extract", *chosen, "--out", folder / name)
        assert result.exit_code == 0, result.output
    return Stores(open_store(folder / "whole"), open_store(folder / "fine"), choice, options, data)


def expected_of(whole: xr.DataArray, name: str, choice: Choice, tokens: np.ndarray) -> np.ndarray:
    """What an array of the token axis holds of a sample: the whole store's values where it keeps them, else NaN, -1."""
    numbers, roles = choice.kept[TENSORS[name]]
    lead = whole.dims[0]
    axis = choice.kept["residual"][0] if lead == "layer" else choice.blocks
    values = whole.sel({lead: list(axis)}).values.copy()
    if name == "mlp_output" and "float16" in choice.tables:
        values = values.astype(np.float16)
    kept_lead = np.isin(axis, numbers)
    kept_token = np.isin(whole["role"].values, [ROLE_CODES[role] for role in roles])
    token = whole.dims.index("token")
    nothing = -1 if values.dtype == np.int32 else np.nan
    values[~kept_lead] = nothing
    values[(slice(None),) * token + (~kept_token,)] = nothing
    return values.take(tokens, token)


def test_each_tensor_holds_what_it_was_chosen_for_and_nan_elsewhere(stores: Stores) -> None:
    whole, fine, choice, *_ = stores
    assert verify(Path(fine.url), deep=True).problems == ()
    for sample_id in whole.samples["sample_id"]:
        expected, found = whole.sample(sample_id).load(), fine.sample(sample_id).load()
        kept = np.isin(expected["role"].values, [ROLE_CODES[role] for role in choice.roles])
        np.testing.assert_array_equal(found["position"], np.flatnonzero(kept))
        assert found["block"].values.tolist() == list(choice.blocks)
        for name in TENSORS:
            values = expected_of(expected[name], name, choice, np.flatnonzero(kept))
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)
        blocks = list(choice.kept["attention"][0])
        for name in ("attention", "attention_norm"):
            np.testing.assert_array_equal(found[name].sel(block=blocks), expected[name].sel(block=blocks))
            assert found[name].drop_sel(block=blocks).isnull().all()
        for name in ("key_role", "key_grid", "key_patch_row", "key_patch_col"):
            np.testing.assert_array_equal(found[name], expected[name.removeprefix("key_")])
    np.testing.assert_array_equal(fine.unit_mean, whole.unit_mean.sel(layer=fine.layers))
    attention = fine.parts[0].open("key")["attention"]
    assert attention["block"].values.tolist() == list(choice.kept["attention"][0])


def test_arrays_and_the_record_say_what_is_kept(stores: Stores, strata: Strata) -> None:
    _, fine, choice, *_ = stores
    inspected = strata("inspect", fine.url).stdout
    for name, tensor in TENSORS.items():
        numbers, roles = choice.kept[tensor]
        assert fine.kept_roles(tensor) == roles
        attributes = getattr(fine, name).attrs
        assert attributes.get("roles") == (None if roles == choice.roles else list(roles))
        of_layers = tensor in ("residual", "lens")
        fewer_blocks = numbers != (choice.kept["residual"][0] if of_layers else choice.blocks)
        assert attributes.get("layers" if of_layers else "blocks") == (list(numbers) if fewer_blocks else None)
        assert ("blocks" if of_layers else "layers") not in attributes
        lines = [line for line in inspected.splitlines() if line.startswith(f"token/{name} keeps ")]
        assert len(lines) == int(roles != choice.roles or fewer_blocks)
        for line in lines:
            assert (f"tokens of {', '.join(roles)};" in line) == (roles != choice.roles)
            assert ("layers " in line or "blocks " in line) == fewer_blocks


def test_raw_bytes_are_those_of_kept_values_in_estimate_and_inspect(stores: Stores, strata: Strata) -> None:
    _, fine, _, options, _ = stores
    estimate = strata("estimate", *options).stdout
    estimated = {line.split()[0]: line for line in estimate.splitlines() if line}
    lines = strata("inspect", fine.url).stdout.splitlines()
    inspected = {line.split()[0]: line for line in lines if " × " in line}
    summaries = {array.path: array for array in summarise(fine).arrays}
    total = 0
    for path, entry in fine.parts[0].manifest["arrays"].items():
        itemsize = np.dtype(entry["dtype"]).itemsize
        counted = 0
        for part in fine.parts:
            values = part.stored(path)[...]
            # Rows of a query that a sample lacks, and means of a role without tokens, are NaN but kept.
            always = not path.startswith("token/") or values.ndim == 1
            kept = (
                values.size
                if always
                else int((values != -1 if values.dtype == np.int32 else np.isfinite(values)).sum())
            )
            own = part.manifest["arrays"][path]
            assert kept == math.prod(own.get("kept", own["shape"]))
            counted += kept
        total += counted * itemsize
        if len(entry["shape"]) > 1:
            entries = [part.manifest["arrays"][path] for part in fine.parts]
            own, full = ([one.get(name, one["shape"]) for one in entries] for name in ("kept", "shape"))
            axis = next(place for place, dim in enumerate(entry["dims"]) if dim in ("token", "key", "sample"))
            lengths = [[*one[0][:axis], sum(each[axis] for each in one), *one[0][axis + 1 :]] for one in (full, own)]
            assert f"  {format_dims(entry['dims'], *lengths)}  " in estimated[path]
            assert (summaries[path].shape, summaries[path].kept) == tuple(map(tuple, lengths))
            assert (" of " in inspected[path]) == (own != full)
            assert f"  {format_bytes(counted * itemsize)}  " in estimated[path]
            captured = {"float32": 4, None: itemsize}.get(entry["attributes"].get("captured_dtype"), 2)
            assert f"  {format_bytes(counted * captured)}  " in inspected[path]
    tables = [fine.model.final_norm_weight, fine.model.unembedding]
    total += sum(table.nbytes for table in tables if table is not None)
    assert parse_bytes(" ".join(estimated["all"].split()[1:3])) == pytest.approx(total, rel=0.02)
    assert said(estimate, "stored tokens") == sum(part.tokens for part in fine.parts)
    assert said(estimate, "files") == sum(path.is_file() for path in Path(fine.url).rglob("*"))


def test_dimensions_say_how_much_of_them_is_kept() -> None:
    words = format_dims(("block", "head", "token"), (4, 2, 1234), (2, 2, 1000))
    assert words == "block 2 of 4 × head 2 × token 1,000 of 1,234"


def test_tokens_are_those_whose_states_are_kept(stores: Stores) -> None:
    whole, fine, choice, *_ = stores
    roles = choice.kept["residual"][1]
    codes = [ROLE_CODES[role] for role in roles]
    for shuffle in (None, 3):
        batches = list(fine.tokens(layer=[2, 4], batch=7, shuffle=shuffle))
        states = np.concatenate([batch.states for batch in batches])
        assert np.isfinite(states).all()
        expected = whole.hidden_states.sel(layer=[2, 4]).isel(token=np.isin(whole.hidden_states["role"], codes))
        assert len(states) == expected.sizes["token"]
        order = np.lexsort(states[:, 0].T), np.lexsort(expected.values[0].T)
        np.testing.assert_array_equal(states[order[0]], expected.values.swapaxes(0, 1)[order[1]])
    if "template" not in roles:
        with pytest.raises(UsageError, match=f"'template' are not stored: stored are {', '.join(roles)}"):
            fine.tokens(layer=4, roles=["image", "template"])
    found = np.concatenate([batch.role for batch in fine.tokens(layer=4, roles="image")])
    assert set(found.tolist()) == {ROLE_CODES["image"]}


@pytest.mark.parametrize("name", TENSORS)
def test_a_function_of_one_array_gets_its_tokens_and_blocks_alone(stores: Stores, name: str) -> None:
    whole, fine, choice, *_ = stores
    numbers, roles = choice.kept[TENSORS[name]]
    codes = [ROLE_CODES[role] for role in roles]

    def collect(sample: xr.Dataset) -> dict[str, object]:
        return {"values": sample[name].values, "position": sample["position"].values}

    found = fine.map_samples(collect, arrays=name).set_index("sample_id")
    for sample_id, row in found.iterrows():
        expected = whole.sample(str(sample_id))
        expected = expected.isel(token=np.isin(expected["role"], codes)).load()
        np.testing.assert_array_equal(row["position"], expected["position"])
        values = expected[name].sel({expected[name].dims[0]: list(numbers)}).values
        np.testing.assert_array_equal(row["values"], values.astype(row["values"].dtype))
        assert np.isfinite(row["values"]).all()


def test_a_function_of_several_arrays_gets_what_any_of_them_keeps(stores: Stores) -> None:
    _, fine, choice, *_ = stores
    names = ("value_norm", "attention_mass", "attention")
    kept = [choice.kept[tensor] for tensor in ("attention", "attention-mass")]
    blocks = sorted({block for numbers, _ in kept for block in numbers})
    codes = [code for code, role in enumerate(ROLES) if any(role in roles for _, roles in kept)]

    def check(sample: xr.Dataset) -> int:
        own = fine.sample(sample.attrs["sample_id"])
        own = own.isel(token=np.isin(own["role"], codes)).sel(block=blocks).load()
        assert sample["block"].values.tolist() == blocks
        for array in names:
            np.testing.assert_array_equal(sample[array], own[array])
            assert sample[array].attrs.get("roles") == own[array].attrs.get("roles")
        np.testing.assert_array_equal(sample["key_role"], own["key_role"])
        assert sample["attention"].attrs.get("blocks", blocks) == list(choice.kept["attention"][0])
        return sample.sizes["token"]

    assert (fine.map_samples(check, arrays=names)["value"] >= 0).all()


def test_the_audit_passes_and_estimates_go_on_where_a_run_stopped(stores: Stores, strata: Strata) -> None:
    _, fine, _, options, data = stores
    audited = strata("audit", fine.url, "--model", data.model, "--images", data.images, "--samples", 4)
    assert audited.exit_code == 0, audited.output
    assert "differs" not in audited.output
    again = strata("extract", *options, "--out", fine.url)
    assert (again.exit_code, "nothing to do" in again.output) == (0, True)


def test_norm_attention_of_a_choice_is_that_of_the_whole_store(stores: Stores, tmp_path: Path) -> None:
    whole, fine, choice, *_ = stores
    tables = []
    for store in (whole, fine):
        table, _ = analyse([Path(store.url)], tmp_path / str(len(tables)))
        of_blocks = table["block"].isin(choice.kept["attention"][0])
        tables.append(table[of_blocks].drop(columns="store").reset_index(drop=True))
    assert len(tables[0])
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("adjustment", ["none", "anisotropy", "mean-centred"])
def test_contextualization_reads_states_of_kept_roles_and_refuses_others(
    stores: Stores, strata: Strata, tmp_path: Path, adjustment: str
) -> None:
    whole, fine, choice, *_ = stores
    source = ("--source", "hidden_states", "--adjustment", adjustment)
    if len(fine.state_layers) < len(fine.layers):
        source = ()  # hidden states of fewer layers are refused for that; means are of all tokens
    tables = []
    for store in (whole, fine):
        options = (*source, "--text-roles", "instruction", "--out", tmp_path / f"results-{len(tables)}")
        analyzed = strata("analyze", "contextualization", store.url, *options)
        assert analyzed.exit_code == 0, analyzed.output
        tables.append(pd.read_parquet(options[-1] / "contextualization.parquet").drop(columns="store"))
    pd.testing.assert_frame_equal(*tables)
    if source and "template" not in choice.kept["residual"][1]:
        refused = strata("analyze", "contextualization", fine.url, *source, "--out", tmp_path / "refused")
        assert refused.exit_code == 2
        assert "keeps hidden states of image, instruction tokens alone, not of template" in refused.stderr
