"""What the golden stores hold, by formula: a test of any later version knows what it must read.

Two prompts of image "a" share its first four tokens; image "b" is unreadable and has a part of its own. States and
weights are multiples of powers of two, hence exact in every dtype. Before 1.0 some arrays were made up to be told apart
(:mod:`tests.golden.before_1`); from 1.0 on all of them are what FORMAT.md says that they are of each other.
"""

from collections.abc import Iterator

import numpy as np

from engine.vocabulary import ROLE_CODES, ROLES
from tests.engine.store.builders import KINDS, PIECES

LAYERS = (0, 2, 3)
DIM = 4
TOKEN_ROLES = ("special", "preamble", "image", "image", "instruction", "template", "instruction", "template")
BLOCKS = (1, 3)
HEADS = 2
LENGTH = 6
QUERIES = ("last_text", "last_image", "target:0")
QUERY_POSITIONS = (5, 3, -1)
SEGMENTS = {"a/normal-1": ((0, 4), (4, 6)), "a/question-1": ((0, 4), (6, 8))}
FEWER = "token/attention_mass"
KEPT_BLOCKS = (3,)
KEPT_ROLES = ("image", "instruction")
LENS_LAYERS = (2, 3)
LENS_ROLES = ("image",)
TOPK = 2
NORM_WEIGHT = np.arange(1, DIM + 1, dtype=np.float32)
NORM_BIAS = np.array([0.5, -0.25, 0.0, 1.0], np.float32)
NORM_EPS, WEIGHT_OFFSET, SOFTCAP = 1e-5, 0.5, 30.0


def state(layer: int, token: int, component: int) -> float:
    """The stored state."""
    return (layer + 1) * (token + 1) / 8 - component


def states() -> np.ndarray:
    """All states of part 0: (layer, token, dim) float32, the layers being those stored."""
    layer, token, component = np.meshgrid(LAYERS, np.arange(len(TOKEN_ROLES)), np.arange(DIM), indexing="ij")
    return np.asarray((layer + 1) * (token + 1) / 8 - component, np.float32)


def row(block: int, head: int, sample: int, query: int, position: int) -> float:
    """Weight of a position in the row of another: halves of halves up to itself, in an order that says whose it is."""
    count = query + 1
    place = (position + block + head + sample) % count
    return 0.0 if position >= count else 0.5 ** min(place + 1, count - 1)


def attention(block: int, query: int, head: int, sample: int, position: int) -> float:
    """The stored weight: that of a query's row."""
    at = QUERY_POSITIONS[query]
    return float("nan") if at < 0 else row(block, head, sample, at, position)


def attention_norm(block: int, query: int, sample: int, position: int) -> float:
    """The stored norm of what a key gives."""
    at = QUERY_POSITIONS[query]
    return float("nan") if at < 0 else 0.0 if position > at else block + sample + position / 8


def places(sample: int) -> list[int]:
    """Token of each position of a sample."""
    return [token for start, stop in list(SEGMENTS.values())[sample] for token in range(start, stop)]


def attention_mass() -> np.ndarray:
    """Sums of every token's row over the positions of each role: (block, head, token, source_role) float32."""
    mass = np.zeros((len(BLOCKS), HEADS, len(TOKEN_ROLES), len(ROLES)), np.float32)
    for (b, block), head, (token, sample, query) in _rows():
        for position, place in enumerate(places(sample)):
            mass[b, head, token, ROLE_CODES[TOKEN_ROLES[place]]] += row(block, head, sample, query, position)
    return mass


def _rows() -> Iterator[tuple[tuple[int, int], int, tuple[int, int, int]]]:
    """Every row of every token, which is that of the first sample it belongs to."""
    own = {token: (token, sample, at) for sample in (1, 0) for at, token in enumerate(places(sample))}
    for block in enumerate(BLOCKS):
        for head in range(HEADS):
            for entry in own.values():
                yield block, head, entry


def block_values() -> dict[str, np.ndarray]:
    """All arrays of blocks of part 0, as if they kept all of their axes: float32."""
    blocks, heads, tokens = np.array(BLOCKS), np.arange(HEADS), np.arange(len(TOKEN_ROLES))
    keys = [(sample, position) for sample in (0, 1) for position in range(LENGTH)]
    queries = range(len(QUERIES))
    outputs = [[[state(b, t, c) + 0.5 for c in range(DIM)] for t in tokens] for b in BLOCKS]
    arrays = {
        "key/attention": [
            [[[attention(b, q, h, *key) for key in keys] for h in heads] for q in queries] for b in BLOCKS
        ],
        "key/attention_norm": [[[attention_norm(b, q, *key) for key in keys] for q in queries] for b in BLOCKS],
        "token/value_norm": blocks[:, None, None] + heads[:, None] / 2 + tokens / 8,
        "token/attention_mass": attention_mass(),
        "token/attention_output": outputs,
        "token/mlp_output": np.negative(outputs),
    }
    return {path: np.asarray(values, np.float32) for path, values in arrays.items()}


def only_kept(values: np.ndarray) -> np.ndarray:
    """The values of ``FEWER`` (block, head, token, source_role): NaN but in the blocks and roles that are kept."""
    blocks = np.isin(BLOCKS, KEPT_BLOCKS)[:, None, None, None]
    tokens = np.isin(TOKEN_ROLES, KEPT_ROLES)[:, None]
    return np.where(blocks & tokens, values, np.float32(np.nan))


def unembedding() -> np.ndarray:
    """(vocab, dim) float32: row number plus column eighths."""
    return np.asarray(np.arange(len(PIECES))[:, None] + np.arange(DIM) / 8, np.float32)


def normed(values: np.ndarray) -> np.ndarray:
    """States (..., dim) after the final norm, float64: a layer norm whose weights are stored minus their offset."""
    wide = values.astype(np.float64)
    scale = np.sqrt(wide.var(-1, keepdims=True) + NORM_EPS)
    return (wide - wide.mean(-1, keepdims=True)) / scale * (NORM_WEIGHT + WEIGHT_OFFSET) + NORM_BIAS


def lens_kept() -> np.ndarray:
    """(layer, token) bool: where pieces of the lens are kept."""
    return np.isin(LAYERS, LENS_LAYERS)[:, None] & np.isin(TOKEN_ROLES, LENS_ROLES)


def lens_values() -> dict[str, np.ndarray]:
    """Ids and logits of the lens (layer, token, rank): −1 and NaN but at the layers and roles that are kept."""
    logits = SOFTCAP * np.tanh(normed(states()) @ unembedding().T.astype(np.float64) / SOFTCAP)
    logits[..., np.array(KINDS) != "normal"] = -np.inf
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :TOPK]
    kept = lens_kept()[..., None]
    return {
        "token/lens_token_id": np.where(kept, best, -1).astype(np.int32),
        "token/lens_logit": np.where(kept, np.take_along_axis(logits, best, -1), np.nan).astype(np.float32),
    }


def pooled_values() -> dict[str, np.ndarray]:
    """Means of part 0, NaN where a sample has no token of a role: float32, and counts (role, sample) int32."""
    samples = range(len(SEGMENTS))
    values = states().astype(np.float64)
    terms = {"unit_mean": _units(values), "mean": values, "normed_unit_mean": _units(normed(values[-1]))}
    found = {
        f"sample/{name}": np.full((*of.shape[:-2], len(ROLES), len(samples), DIM), np.nan, np.float32)
        for name, of in terms.items()
    }
    counts = np.zeros((len(ROLES), len(samples)), np.int32)
    for sample in samples:
        for code, role in enumerate(ROLES):
            own = [place for place in places(sample) if TOKEN_ROLES[place] == role]
            counts[code, sample] = len(own)
            for name, of in terms.items():
                if own:
                    found[f"sample/{name}"][..., code, sample, :] = of[..., own, :].mean(-2)
    return {**found, "sample/token_count": counts}


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
