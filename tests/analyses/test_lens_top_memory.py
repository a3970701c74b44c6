"""The best pieces are found in bounded memory: within the prediction, and no more for more tokens."""

import numpy as np
import pytest

from analyses.lens_top import TOKENS_AT_ONCE, top_bytes, top_pieces
from analyses.lens_unembedding import Unembedding
from tests.analyses.lens_oracle import make, products_of
from tests.analyses.test_memory import traced

VOCAB = 9000


@pytest.mark.parametrize("kind", ["gaussian", "zeros", "a crowd", "one crowded token", "constant rows"])
@pytest.mark.parametrize("name", ["numpy", "int8"])
def test_memory_stays_within_the_prediction(name: str, kind: str) -> None:
    """Of what NumPy allocates; the benchmark measures torch's share too, in a process of its own."""
    many = kind in ("gaussian", "one crowded token")
    weights, states = make(kind, vocab=VOCAB, tokens=TOKENS_AT_ONCE if many else 24)
    unembedding = Unembedding.prepare(weights, np.ones(VOCAB, np.bool_), products=products_of(name))
    top_pieces(states[:2], unembedding, 5)  # imports are not the kernel's
    used = traced(lambda: top_pieces(states, unembedding, 5))
    assert used <= top_bytes(len(states), *weights.shape, 5)
    if many and name == "numpy":
        assert used < 4 * len(states) * VOCAB


@pytest.mark.parametrize("name", ["numpy", "int8"])
def test_more_tokens_need_no_more_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.lens_top.TOKENS_AT_ONCE", 256)
    monkeypatch.setattr("analyses.lens_screen.PAIRS_AT_ONCE", 2**16)
    weights, one_block = make("gaussian", vocab=VOCAB, tokens=256)
    states = np.tile(one_block, (8, 1))
    unembedding = Unembedding.prepare(weights, np.ones(VOCAB, np.bool_), products=products_of(name))
    few, many = (traced(lambda count=count: top_pieces(states[:count], unembedding, 5)) for count in (256, 8 * 256))
    assert many <= 1.1 * few
    assert few < 256 * VOCAB * 4  # one float32 logit of every id for the tokens of a block
    assert top_bytes(8 * 256, *weights.shape, 5) == top_bytes(256, *weights.shape, 5)
