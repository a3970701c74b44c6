"""Child process of the LogitLens benchmark: ``python -m tests.bench.memory_of_lens TOKENS DIM VOCAB SAMPLES``.

Finds the best pieces of SAMPLES samples of TOKENS tokens, one after the other. Prints bytes as JSON: ``peak``, the
high-water mark of resident memory of the whole process; ``rise``, what that is above the process before the weights
were there; ``predicted``, what the kernel predicts for the weights, their preparation and one sample. Linux only.
"""

import json
import sys

import numpy as np

from analyses.lens_top import top_bytes, top_pieces
from analyses.lens_unembedding import Unembedding, unembedding_bytes
from tests.bench.lens_data import realistic_states, unembedding_weights
from tests.bench.resident import reset_peak, resident

K = 10


def main(tokens: int, dim: int, vocab: int, samples: int) -> None:
    """Measure."""
    reset_peak()
    before = resident("VmRSS")
    weights = unembedding_weights(vocab, dim)
    unembedding = Unembedding.prepare(weights, np.ones(vocab, np.bool_))
    for sample in range(samples):
        top_pieces(realistic_states(tokens, dim, seed=sample), unembedding, K)
    peak = resident("VmHWM")
    states = 2 * 4 * tokens * dim  # of a sample, made in two copies
    predicted = unembedding_bytes(vocab, dim, weights.itemsize) + top_bytes(tokens, vocab, dim, K) + states
    print(json.dumps({"peak": peak, "rise": peak - before, "predicted": predicted}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
