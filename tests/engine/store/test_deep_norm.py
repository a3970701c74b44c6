"""Bounds of directions: torch's float32 lies within them, and they are close."""

import numpy as np
import pytest
import torch

from engine.store import round_mantissa
from engine.store.deep_norm import FinalNorm, find_directions

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
