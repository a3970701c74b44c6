"""Bounds of directions: torch's float32 lies within them, and they are close. Norms that a model cannot have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from engine.errors import StrataError
from engine.store import open_store, round_mantissa, verify
from engine.store.codecs import create_array
from engine.store.deep_norm import FinalNorm, find_directions
from engine.store.layout import ChunkPlan
from tests.engine.store.forge import change_record, reseal

DIM = 48


def awkward_states(seed: int) -> np.ndarray:
    """States (token, dim) in float32: small and large ones, a component that outweighs the others, a common offset."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((40, DIM)) * 10.0 ** rng.uniform(-3, 3, (40, 1))
    states[10:20, 7] *= 300
    states[20:30] += 50 * np.abs(states[20:30]).mean(axis=1, keepdims=True)
    return states.astype(np.float32)


def units(vectors: torch.Tensor) -> np.ndarray:
    return (vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)).numpy().astype(np.float64)


@pytest.mark.parametrize("kind", ["none", "rms", "layer"])
@pytest.mark.parametrize("bits", [None, 7, 3])
def test_float32_and_rounded_states_lie_within(kind: str, bits: int | None) -> None:
    captured = awkward_states(3)
    rng = np.random.default_rng(1)
    weight, bias = (rng.uniform(-2, 2, DIM).astype(np.float32) for _ in range(2))
    rounded = captured if bits is None else round_mantissa(captured, bits).values
    stored, states = rounded.astype(np.float64), torch.from_numpy(captured)
    relative = 0.0 if bits is None else float(np.abs(captured / stored - 1).max())
    if kind == "none":
        found, expected = find_directions(stored, relative, 0.0), units(states)
    else:
        norm = FinalNorm(2, kind, weight.astype(np.float64), bias.astype(np.float64), 1e-5)
        found = norm.directions(stored, relative, 0.0)
        weights = torch.from_numpy(weight), torch.from_numpy(bias)
        layer = torch.nn.functional.layer_norm(states, (DIM,), *weights, 1e-5)
        rms = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-5) * weights[0]
        expected = units(layer if kind == "layer" else rms)
    off = np.abs(found.values - expected)
    assert (off <= found.error).all()
    # Of ordinary states worst cases of roundings, none of which is a mere guess, stay near what is there.
    ordinary = slice(0, 10)
    assert np.median(found.error[ordinary]) < (2e-5 if bits is None else 100 * np.median(off[ordinary]))


def test_nothing_is_said_of_what_rounding_may_have_turned_around() -> None:
    flat = np.full((1, 8), 4.0) + np.arange(8) / 1000
    norm = FinalNorm(2, "layer", np.ones(8), np.zeros(8), 1e-5)
    assert np.isfinite(norm.directions(flat, 1e-6, 0.0).error).all()
    assert np.isinf(norm.directions(flat, 1e-2, 0.0).error).all()


def test_a_component_below_the_normal_numbers_of_float16_lies_within() -> None:
    captured = np.full((1, 256), 2e-3, np.float32)
    captured[0, 0] = 1.4e-8  # less than half of the smallest float16
    stored = captured.astype(np.float16).astype(np.float64)
    relative, tiny = 2.0**-11 / (1 - 2.0**-11), float(np.finfo(np.float16).tiny)
    off = np.abs(find_directions(stored, relative, tiny).values - units(torch.from_numpy(captured)))
    assert stored[0, 0] == 0
    assert (off <= find_directions(stored, relative, tiny).error).all()
    assert off[0, 0] > find_directions(stored, relative, 0.0).error[0, 0]


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parents[2] / "golden/1.0", tmp_path / "golden"))


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [
        ("norm_kind", "batch", "'rms' or 'layer'"),
        ("norm_kind", ["rms"], "'rms' or 'layer'"),
        ("norm_eps", "x", "a finite number from 0 on"),
        ("norm_eps", None, "a finite number from 0 on"),
        ("norm_eps", -5, "a finite number from 0 on"),
        ("norm_eps", 10**400, "a finite number from 0 on"),
        ("norm_weight_offset", "x", "a finite number"),
        ("norm_weight_offset", [1, 2, 3], "a finite number"),
        ("norm_weight_offset", float("nan"), "a finite number"),
        ("logit_softcap", "x", "a finite number or null"),
        ("tied_embeddings", 1, "true or false"),
    ],
    ids=lambda value: f"{value!r:.16}",
)
def test_what_the_models_group_cannot_say(golden: Path, attribute: str, value: object, rule: str) -> None:
    node = golden / "model.zarr/zarr.json"
    content = json.loads(node.read_bytes())
    content["attributes"][attribute] = value
    node.write_text(json.dumps(content))
    reseal(golden)
    (problem,) = verify(golden, deep=True).problems
    assert problem.file == "model.zarr/zarr.json"
    assert f"has {attribute} {value!r:.40}, which must be {rule}: " in problem.message
    with pytest.raises(StrataError, match="restore it from a copy"):
        getattr(open_store(golden).model, attribute)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1, 4), ()])
def test_a_norm_of_another_shape(golden: Path, shape: tuple[int, ...], told: bool) -> None:
    if not told:  # formats before 1.0 do not say the model's width
        change_record(golden / "store.json", lambda record: record["model"].pop("dim"))
    for name in ("final_norm_weight", "final_norm_bias"):
        replace_vector(golden / "model.zarr", name, np.ones(shape, np.float32))
    reseal(golden)
    files = {problem.file for problem in verify(golden, deep=True).problems}
    # What has other dimensions cannot be read at all; a length is compared with that of what else there is.
    weights = {f"model.zarr/final_norm_{name}/zarr.json" for name in ("weight", "bias")}
    others = weights if told else {"model.zarr/unembedding/zarr.json", "parts/00000000.json"}
    assert files >= (others if shape == (3,) else {"model.zarr/zarr.json"})


def replace_vector(folder: Path, name: str, values: np.ndarray) -> None:
    """Put another array of the same codecs in a stored one's place."""
    shutil.rmtree(folder / name)
    dims = tuple(f"dim{number}" for number in range(values.ndim))
    plan = ChunkPlan(values.shape, values.shape, None)
    create_array(zarr.open_group(folder), name, plan=plan, dtype="float32", dims=dims, attributes={})[...] = values
