"""The best pieces of a token are those of a brute-force search, to the last bit, whatever path finds them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.lens_codes import Codes, encode
from analyses.lens_products import Int8Products
from analyses.lens_top import LensTop, top_pieces
from analyses.lens_unembedding import Unembedding
from engine.errors import StrataError, UsageError
from tests.analyses.lens_oracle import DIM, KINDS, best_pieces, make, products_of, shrink_blocks
from tests.test_architecture import run_without

K = 7


@pytest.fixture(params=["numpy", "int8"])
def products(request: pytest.FixtureRequest) -> Int8Products | None:
    return products_of(request.param)


def everything(vocab: int) -> np.ndarray:
    return np.ones(vocab, np.bool_)


def check(found: LensTop, weights: np.ndarray, states: np.ndarray, allowed: np.ndarray, k: int) -> None:
    token_id, logit = best_pieces(weights, states, allowed, k)
    np.testing.assert_array_equal(found.token_id, token_id)
    np.testing.assert_array_equal(found.logit, logit)
    assert found.token_id.dtype == np.int32
    assert found.logit.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_those_of_a_search_of_all(kind: str, dtype: type, products: Int8Products | None) -> None:
    weights, states = make(kind, dtype=dtype)
    allowed = everything(len(weights))
    found = top_pieces(states, Unembedding.prepare(weights, allowed, products=products), K)
    check(found, weights, states, allowed, K)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_may_be_of_any_size(kind: str, products: Int8Products | None, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_blocks(monkeypatch)
    weights, states = make(kind, vocab=95)
    allowed = np.random.default_rng(1).random(95) < 0.7
    found = top_pieces(states, Unembedding.prepare(weights, allowed, products=products), 3)
    check(found, weights, states, allowed, 3)


@given(data=st.data())
def test_small_whole_numbers_tie_everywhere(data: st.DataObject) -> None:
    """Their sums are equal again and again, so the order rests on ids."""
    vocab, dim, tokens = (data.draw(st.integers(1, most)) for most in (40, 6, 5))
    values = st.integers(-2, 2)
    numbers = data.draw(st.lists(values, min_size=(vocab + tokens) * dim, max_size=(vocab + tokens) * dim))
    rows = np.array(numbers, np.float32).reshape(vocab + tokens, dim)
    weights, states = rows[:vocab].astype(np.float16), rows[vocab:]
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=vocab, max_size=vocab)))
    allowed[data.draw(st.integers(0, vocab - 1))] = True
    k = data.draw(st.integers(1, int(allowed.sum())))
    name = data.draw(st.sampled_from(["numpy", "int8"]))
    with pytest.MonkeyPatch.context() as patch:
        shrink_blocks(patch)
        check(top_pieces(states, Unembedding.prepare(weights, allowed, products=products_of(name)), k),
              weights, states, allowed, k)  # fmt: skip


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 3),
    shared=st.floats(0, 30),
    name=st.sampled_from(["numpy", "int8"]),
)
def test_random_directions_and_norms(seed: int, spread: float, shared: float, name: str) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((300, DIM)) * np.exp(spread * rng.standard_normal((300, 1)) - 4)
    states = (rng.standard_normal((4, DIM)) + shared * rng.standard_normal(DIM)).astype(np.float32)
    stored = weights.astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        shrink_blocks(patch)
        unembedding = Unembedding.prepare(stored, everything(300), products=products_of(name))
        check(top_pieces(states, unembedding, 4), stored, states, everything(300), 4)


def test_the_screen_decides_ordinary_tokens_and_leaves_the_crowded() -> None:
    for kind, share in {"gaussian": 1.0, "outlier dimensions": 1.0, "a shared direction": 1.0, "a crowd": 0.0}.items():
        weights, states = make(kind)
        unembedding = Unembedding.prepare(weights, everything(len(weights)), products=products_of("int8"))
        assert top_pieces(states, unembedding, K).certified.mean() == share, kind


def test_without_a_screen_nothing_is_certified_but_zeros() -> None:
    weights, states = make("zeros")
    found = top_pieces(states, Unembedding.prepare(weights, everything(len(weights)), products=None), K)
    np.testing.assert_array_equal(found.certified, ~states.any(axis=1))


def test_the_bound_is_what_keeps_the_screen_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes alone go wrong on data as ordinary as this, so tests of the screen are able to fail."""
    weights, states = make("gaussian", tokens=300)
    unembedding = Unembedding.prepare(weights, everything(len(weights)), products=products_of("int8"))
    right = top_pieces(states, unembedding, K)
    assert right.certified.all()
    plain = top_pieces(states, unembedding._replace(coded=None), K)
    np.testing.assert_array_equal(right.token_id, plain.token_id)
    np.testing.assert_array_equal(right.logit, plain.logit)

    def without_residual(rows: np.ndarray, chosen: np.ndarray) -> Codes:
        codes = encode(rows, chosen)
        return codes._replace(residual=0 * codes.residual)

    monkeypatch.setattr("analyses.lens_bounds.encode", without_residual)
    monkeypatch.setattr("analyses.lens_unembedding.encode", without_residual)
    blind = Unembedding.prepare(weights, everything(len(weights)), products=products_of("int8"))
    assert (top_pieces(states, blind, K).token_id != right.token_id).any()


def test_all_pieces_may_be_asked_for(products: Int8Products | None) -> None:
    weights, states = make("repeated rows", vocab=300)
    allowed = everything(300)
    allowed[::4] = False
    found = top_pieces(states, Unembedding.prepare(weights, allowed, products=products), 225)
    check(found, weights, states, allowed, 225)


@pytest.mark.parametrize("k", [0, 226])
def test_more_pieces_than_there_are_is_wrong_usage(k: int) -> None:
    weights, states = make("gaussian", vocab=300)
    allowed = everything(300)
    allowed[::4] = False
    with pytest.raises(UsageError, match=rf"best {k} of 225 pieces .* \(225 of 300 ids may be chosen\).* 1 to 225"):
        top_pieces(states, Unembedding.prepare(weights, allowed), k)


def test_no_tokens_have_no_pieces(products: Int8Products | None) -> None:
    weights, states = make("gaussian")
    found = top_pieces(states[:0], Unembedding.prepare(weights, everything(len(weights)), products=products), K)
    assert [part.shape for part in found] == [(0, K), (0, K), (0,)]


def test_capped_logits_keep_the_order_of_the_others(products: Int8Products | None) -> None:
    weights, states = make("norms of all sizes")
    allowed = everything(len(weights))
    found = top_pieces(states, Unembedding.prepare(weights, allowed, softcap=5.0, products=products), K)
    token_id, logit = best_pieces(weights, states, allowed, K)
    np.testing.assert_array_equal(found.token_id, token_id)
    np.testing.assert_allclose(found.logit, [[5 * math.tanh(z / 5) for z in row] for row in logit], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_named(value: float, products: Int8Products | None) -> None:
    weights, states = make("gaussian")
    states[4, 7] = value
    with pytest.raises(StrataError, match=r"state 4 holds a value that is not finite, .* `strata verify`"):
        top_pieces(states, Unembedding.prepare(weights, everything(len(weights)), products=products), K)


def test_a_state_beyond_float32_is_named() -> None:
    weights, states = make("gaussian")
    states[2] *= 1e37
    with pytest.raises(StrataError, match="state 2 is so large that its logits could exceed float32"):
        top_pieces(states, Unembedding.prepare(weights, everything(len(weights))), K)


def test_a_weight_that_is_not_finite_is_named() -> None:
    weights, _ = make("gaussian")
    weights[9, 3] = np.nan
    with pytest.raises(StrataError, match="row 9 of the unembedding holds a value that is not finite"):
        Unembedding.prepare(weights, everything(len(weights)))


def test_states_of_another_width_are_wrong_usage() -> None:
    weights, states = make("gaussian")
    with pytest.raises(UsageError, match=r"shape \(11, 47\) do not fit an unembedding of shape \(1500, 48\)"):
        top_pieces(states[:, 1:], Unembedding.prepare(weights, everything(len(weights))), K)


def test_without_torch_the_same_pieces_are_found() -> None:
    script = """
import numpy as np
from analyses.lens_top import top_pieces
from analyses.lens_unembedding import Unembedding
rng = np.random.default_rng(3)
weights = rng.standard_normal((700, 32)).astype(np.float16)
states = rng.standard_normal((5, 32), dtype=np.float32)
unembedding = Unembedding.prepare(weights, np.ones(700, np.bool_))
assert unembedding.coded is None
assert "torch" not in sys.modules
print(top_pieces(states, unembedding, 4).token_id.tolist())
"""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((700, 32)).astype(np.float16)
    states = rng.standard_normal((5, 32), dtype=np.float32)
    expected = best_pieces(weights, states, everything(700), 4)[0]
    assert run_without(script).strip() == str(expected.tolist())
