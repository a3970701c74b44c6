from typing import Literal

import numpy as np
import pytest

from analyses.final_norm import FinalNorm
from engine.store import LARGEST_NORM

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equals_torch_with_random_weights(kind: Literal["rms", "layer"], dtype: type) -> None:
    rng = np.random.default_rng(1)
    states = (rng.standard_normal((7, 16)) * 3 + 1).astype(dtype)
    weight = rng.standard_normal(16).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32) if kind == "layer" else None
    tensor = torch.from_numpy(states.astype(np.float32))
    if bias is not None:
        expected = torch.nn.functional.layer_norm(tensor, (16,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-3)
    else:
        expected = torch.nn.functional.rms_norm(tensor, (16,), torch.from_numpy(weight), 1e-3)
    got = FinalNorm(kind, weight, bias, eps=1e-3, weight_offset=0.0)(states)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-6)


def test_the_weight_offset_is_added() -> None:
    states = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    weight = np.linspace(-1, 1, 8, dtype=np.float32)
    shifted = FinalNorm("rms", weight, None, 1e-6, 1.0)(states)
    np.testing.assert_allclose(shifted, FinalNorm("rms", weight + 1, None, 1e-6, 0.0)(states), rtol=1e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so_without_a_warning(
    kind: Literal["rms", "layer"], dtype: type, value: float
) -> None:
    states = np.random.default_rng(3).standard_normal((3, 8)).astype(dtype)
    states[1, 2] = value
    normed = FinalNorm(kind, np.ones(8, np.float32), None, 1e-6, 0.0)(states)
    assert np.isfinite(normed).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("size", [1, 8])
def test_what_is_too_large_is_no_state_of_zeros(kind: Literal["rms", "layer"], size: int) -> None:
    """``size`` equal values, with either sign, make up the norm; the engine's norm draws the line at the same place."""
    modules = pytest.importorskip("engine.models.final_norm")
    states = np.random.default_rng(4).standard_normal((3, 8)).astype(np.float32)
    values = np.resize([1, -1], size) / np.sqrt(size)
    states[0, :size], states[2, :size] = LARGEST_NORM * 1.001 * values, LARGEST_NORM * 0.999 * values
    weight = np.random.default_rng(5).uniform(0.5, 2, 8).astype(np.float32)
    normed = FinalNorm(kind, weight, None, 1e-6, 0.0)(states)
    module = torch.nn.RMSNorm(8, eps=1e-6) if kind == "rms" else torch.nn.LayerNorm(8, eps=1e-6)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight))
        plain = module(torch.from_numpy(states))
        found = modules.normed_states(module, torch.from_numpy(states)).numpy()
    assert not plain[0].isnan().any(), "torch gives zeros"
    for own in (normed, found):
        assert np.isnan(own).all(axis=1).tolist() == [True, False, False]
        np.testing.assert_allclose(own[1:], plain[1:].numpy(), atol=1e-6)
        assert np.abs(own[2]).max() > 0.1


def test_llamas_norm_is_this_norm() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = modeling.LlamaRMSNorm(12, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 12))
    states = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    got = FinalNorm("rms", norm.weight.detach().numpy(), None, 1e-5, 0.0)(states.numpy())
    np.testing.assert_allclose(got, norm(states).detach().numpy(), atol=1e-6)
