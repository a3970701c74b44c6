"""What stores before 1.0 hold instead: some made-up values, to be told apart, and bytes for a JPEG."""

import numpy as np

from engine.vocabulary import ROLES
from tests.golden.values import (
    BLOCKS,
    HEADS,
    LAYERS,
    LENGTH,
    QUERY_POSITIONS,
    TOKEN_ROLES,
    TOPK,
    block_values,
    lens_kept,
)

THUMBNAIL = b"\xff\xd8 bytes of a JPEG \xff\xd9"


def block_values_before() -> dict[str, np.ndarray]:
    """Arrays of blocks: masses that count up, and norms of keys behind their query too."""
    blocks, heads, tokens = np.array(BLOCKS), np.arange(HEADS), np.arange(len(TOKEN_ROLES))
    per_token = blocks[:, None, None] + heads[:, None] / 2 + tokens / 8
    norms = [
        [[b + s + p / 8 if at >= 0 else np.nan for s in (0, 1) for p in range(LENGTH)] for at in QUERY_POSITIONS]
        for b in BLOCKS
    ]
    made_up = {
        "key/attention_norm": np.asarray(norms, np.float32),
        "token/attention_mass": np.asarray(per_token[..., None] + np.arange(len(ROLES)) / 16, np.float32),
    }
    return block_values() | made_up


def lens_values_before() -> dict[str, np.ndarray]:
    """Pieces that no matrix gives."""
    layer, token, rank = np.meshgrid(LAYERS, np.arange(len(TOKEN_ROLES)), np.arange(TOPK), indexing="ij")
    kept = lens_kept()[..., None]
    return {
        "token/lens_token_id": np.where(kept, 3 + (layer + token + rank) % 4, -1).astype(np.int32),
        "token/lens_logit": np.where(kept, layer + token / 8 - rank, np.nan).astype(np.float32),
    }
