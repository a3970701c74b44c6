"""Peak memory of LogitLens, predicted from shapes before a state is read.

No array is tokens × vocab: blocks of tokens meet blocks of the vocabulary. The unembedding is held once. Of a part its
pieces are held, a few numbers per image token, and of the store a few numbers per sample and layer.
"""

import numpy as np

from analyses.lens_distributions import distribution_bytes
from analyses.lens_scores import VARIANTS
from analyses.lens_states import block_states_bytes
from analyses.lens_task import ARRAYS, LensTask
from analyses.lens_top import TOKENS_AT_ONCE, top_bytes
from analyses.lens_unembedding import unembedding_bytes
from analyses.resampling import block_bytes
from engine.store import Part, Store, stream_bytes

__all__ = ["model_bytes", "part_lens_bytes", "results_bytes"]

_PIECE_BYTES = 8
_PIECE_COPIES = 3  # found, written to disk, and read back to be tidied
_WORD_BYTES = 160  # a row of the table of words, in several columns and copies
_RESULT_COPIES = 4  # of parts, joined, and of all stores in the dataset
_VOCABULARY_BYTES = 400  # of a piece: its text, its words, and the tables that hold them while they are cleaned
_FLOAT64, _INT64, _FLOAT32 = 8, 8, 4


def model_bytes(store: Store) -> int:
    """Bytes of the unembedding, prepared, and of the vocabulary's words."""
    assert store.model.unembedding is not None
    vocab, dim = store.model.unembedding.shape
    return unembedding_bytes(vocab, dim, store.model.unembedding.dtype.itemsize) + vocab * _VOCABULARY_BYTES


def part_lens_bytes(store: Store, part: Part, task: LensTask) -> int:
    """Bytes that one worker needs for one part, beyond the process itself and the unembedding."""
    tokens, samples, layers = part.tokens, int(part.manifest["samples"]), len(task.layers)
    needed = _PIECE_COPIES * layers * tokens * task.topk * _PIECE_BYTES
    needed += 6 * tokens * _INT64 + 8 * layers * _longest(part) * _INT64
    needed += 2 * layers * samples * (3 * len(VARIANTS) + 1) * _FLOAT32
    if task.source == "lens":
        needed += max(stream_bytes(part, path) for path in ARRAYS["lens"])
    if task.needs_unembedding:
        assert store.model.unembedding is not None
        vocab, dim = store.model.unembedding.shape
        needed += block_states_bytes(part, tokens) + top_bytes(min(tokens, TOKENS_AT_ONCE), vocab, dim, task.topk)
        if task.trajectory:
            needed += distribution_bytes(dim) + tokens * (dim * _FLOAT32 + 4 * layers * _FLOAT64)
    return needed


def results_bytes(store: Store, task: LensTask, bootstraps: int) -> int:
    """Bytes of what is found of all samples, of bands over images, and of the words of one sample while written."""
    samples = sum(int(part.manifest["samples"]) for part in store.parts)
    layers = len(task.layers)
    counts = samples * layers * (len(VARIANTS) * 5 + 5) * _FLOAT64 * _RESULT_COPIES
    curves = 4 * (2 * len(VARIANTS) + 1) * layers * (samples + bootstraps) * _FLOAT64
    words = _WORD_BYTES * layers * max(_longest(part) for part in store.parts) * task.topk
    return counts + curves + block_bytes(samples, bootstraps) + words


def _longest(part: Part) -> int:
    """Return how many stored tokens the part's longest sample has."""
    lengths = [sum(pair["stop"] - pair["start"] for pair in own) for own in part.samples["segments"]]
    return int(np.max(lengths, initial=0))
