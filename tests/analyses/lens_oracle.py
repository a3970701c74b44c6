"""The best pieces by brute force, and data of every kind that could lead a screen astray."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.lens_products import Int8Products, int8_products

Floats = NDArray[np.floating]
DIM = 48


def best_pieces(weights: Floats, states: Floats, allowed: NDArray[np.bool_], k: int) -> tuple[Floats, Floats]:
    """Sums rounded once, sorted in Python by logit and then by id."""
    wide, ids = weights.astype(np.float64), np.flatnonzero(allowed)
    best = []
    for state in states.astype(np.float64):
        logits = [np.float32(math.fsum(wide[i] * state)) for i in ids]
        best.append(sorted(zip(logits, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))[:k])
    return np.array([[i for _, i in row] for row in best]), np.array([[z for z, _ in row] for row in best], np.float32)


def products_of(name: str) -> Int8Products | None:
    """None for NumPy alone; the int8 products must exist wherever tests run, because torch is installed there."""
    products = int8_products()
    assert products is not None
    return products if name == "int8" else None


def shrink_blocks(patch: pytest.MonkeyPatch) -> None:
    """Make every block so small that a vocabulary of dozens has many of all kinds."""
    for name, value in {
        "lens_unembedding.ROWS_AT_ONCE": 7,
        "lens_float32.ROWS_AT_ONCE": 7,
        "lens_codes._ROWS_AT_ONCE": 3,
        "lens_screen._FIRST_ROWS": 4,
        "lens_screen.PAIRS_AT_ONCE": 64,
        "lens_screen._LOOKED_AT_ONCE": 6,
        "lens_screen._COMPARED_AT_ONCE": 20,
        "lens_bounds._PAIRS_AT_ONCE": 4,
        "lens_products.PAIRED_ROWS_AT_ONCE": 2,
        "lens_exact._ROWS_AT_ONCE": 2,
        "lens_top.TOKENS_AT_ONCE": 3,
        "lens_bounds.LARGE_DIMENSIONS": 2,
        "lens_distributions._TOKENS_AT_ONCE": 3,
        "lens_distributions.ROWS_AT_ONCE": 7,
    }.items():
        patch.setattr(f"analyses.{name}", value)


def gaussian(rng: np.random.Generator, rows: int) -> Floats:
    return rng.standard_normal((rows, DIM), dtype=np.float32)


def _outliers(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    states[:, [3, 17]] *= rng.uniform(50, 1000, 2).astype(np.float32)


def _norms(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    weights *= np.exp(rng.normal(0, 1, (len(weights), 1)))


def _repeated(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    weights[50:] = weights[rng.integers(0, 50, len(weights) - 50)]


def _pairs(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    """Every row has a twin that differs by less than a code's step in one dimension."""
    half = len(weights) // 2
    weights[half : 2 * half] = weights[:half]
    weights[half : 2 * half, 5] += rng.choice([-1, 0, 1], half) * 2.0**-10


def _crowd(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    """All rows are one row but for a hair."""
    weights[:] = weights[0]
    weights[:, 5] += rng.integers(0, 3, len(weights)) * 2.0**-9


def _one_crowded(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    """All ids tie for the first token alone."""
    half = DIM // 2
    weights[:, half:] = weights[0, half:]
    states[:, half:] = 0
    states[0, :half], states[0, half:] = 0, weights[0, half:]


def _constant(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    weights[:] = 0.5


def _zeros(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    states[::2] = 0
    weights[::3] = 0


def _scales(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    states *= (10.0 ** np.linspace(-40, 15, len(states)))[:, np.newaxis].astype(np.float32)


def _tiny_weights(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    weights *= 10.0 ** rng.uniform(-7, 0, (len(weights), 1))


def _cancelling(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    """Sums that vanish but for their last bits."""
    weights[:, 1::2] = -weights[:, ::2]
    states[:, 1::2] = states[:, ::2] * np.float32(1 + 2**-20)


def _shared(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    states += 20 * states[0]
    weights += 3 * weights[0]


def _nothing(rng: np.random.Generator, weights: Floats, states: Floats) -> None:
    pass


KINDS: dict[str, Callable[[np.random.Generator, Floats, Floats], None]] = {
    "gaussian": _nothing,
    "outlier dimensions": _outliers,
    "norms of all sizes": _norms,
    "repeated rows": _repeated,
    "near ties": _pairs,
    "a crowd": _crowd,
    "one crowded token": _one_crowded,
    "constant rows": _constant,
    "zeros": _zeros,
    "states of all scales": _scales,
    "rows of all scales": _tiny_weights,
    "cancelling sums": _cancelling,
    "a shared direction": _shared,
}


def make(kind: str, *, vocab: int = 1500, tokens: int = 11, dtype: type = np.float16) -> tuple[Floats, Floats]:
    """Weights (vocab, DIM) of a dtype and states (tokens, DIM) in float32."""
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    weights, states = gaussian(rng, vocab), gaussian(rng, tokens)
    KINDS[kind](rng, weights, states)
    return weights.astype(dtype), states
