"""Entropy and divergence against a softmax of all logits at once."""

import numpy as np
import pytest
from scipy.special import log_softmax

from analyses.lens_distributions import distribution_bytes, distributions
from analyses.lens_unembedding import Unembedding
from engine.errors import StrataError, UsageError
from tests.analyses.lens_oracle import make, shrink_blocks
from tests.analyses.test_memory import traced


def oracle(weights: np.ndarray, states: np.ndarray, softcap: float | None) -> np.ndarray:
    """Logarithms of probabilities (token, vocab)."""
    logits = states.astype(np.float64) @ weights.astype(np.float64).T
    return log_softmax(logits if softcap is None else softcap * np.tanh(logits / softcap), axis=1)


@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("kind", ["gaussian", "outlier dimensions", "constant rows", "zeros", "norms of all sizes"])
def test_entropy_and_divergence_are_those_of_the_whole_vocabulary(
    kind: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_blocks(monkeypatch)
    weights, states = make(kind, vocab=95)
    final_states = states[::-1] + np.float32(0.5)
    allowed = np.random.default_rng(1).random(95) < 0.5  # the model's own distribution leaves none out
    found = distributions(states, final_states, Unembedding.prepare(weights, allowed, softcap=softcap))
    own, final = (oracle(weights, of, softcap) for of in (states, final_states))
    np.testing.assert_allclose(found.entropy, -(np.exp(own) * own).sum(axis=1), rtol=1e-5, atol=1e-5)
    divergence = (np.exp(final) * (final - own)).sum(axis=1)
    np.testing.assert_allclose(found.kl_from_final, divergence, rtol=1e-5, atol=2e-5)


def test_equal_rows_are_equally_likely() -> None:
    weights, states = make("constant rows", vocab=640)
    found = distributions(states, states, Unembedding.prepare(weights, np.ones(640, np.bool_)))
    np.testing.assert_allclose(found.entropy, np.log(640), rtol=1e-6)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    weights, states = make("gaussian")
    found = distributions(states, states.copy(), Unembedding.prepare(weights, np.ones(len(weights), np.bool_)))
    np.testing.assert_array_equal(found.kl_from_final, 0)
    assert (found.entropy > 0).all()


def test_divergence_has_a_direction() -> None:
    weights, states = make("gaussian")
    unembedding = Unembedding.prepare(weights, np.ones(len(weights), np.bool_))
    there, back = (distributions(*pair, unembedding) for pair in ((states, states[::-1]), (states[::-1], states)))
    assert (np.abs(there.kl_from_final - back.kl_from_final[::-1]) < 1e-9).all()
    assert (np.abs(there.kl_from_final - back.kl_from_final) > 1e-3).any()


def test_a_state_that_is_not_finite_is_named() -> None:
    weights, states = make("gaussian")
    broken = states.copy()
    broken[6, 2] = np.nan
    unembedding = Unembedding.prepare(weights, np.ones(len(weights), np.bool_))
    for pair in ((broken, states), (states, broken)):
        with pytest.raises(StrataError, match="state 6 has logits that are not finite"):
            distributions(*pair, unembedding)


def test_shapes_that_do_not_fit_are_wrong_usage() -> None:
    weights, states = make("gaussian")
    unembedding = Unembedding.prepare(weights, np.ones(len(weights), np.bool_))
    with pytest.raises(UsageError, match=r"states of shape \(11, 48\), .* \(10, 48\) .* \(1500, 48\) do not fit"):
        distributions(states, states[1:], unembedding)


def test_memory_stays_within_the_prediction_however_many_tokens_and_ids() -> None:
    used = {}
    for vocab, tokens in ((6000, 600), (12_000, 1200)):
        weights, states = make("gaussian", vocab=vocab, tokens=tokens)
        unembedding = Unembedding.prepare(weights, np.ones(vocab, np.bool_), products=None)
        used[vocab] = traced(lambda states=states, unembedding=unembedding: distributions(states, states, unembedding))
    assert used[12_000] <= 1.05 * used[6000]
    assert used[12_000] <= distribution_bytes(weights.shape[1]) <= 2.5 * used[12_000]
