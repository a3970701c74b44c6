"""LogitLens by its definition: Hugging Face's own final norm and head in float64, all logits, top-k by torch."""

import re
from copy import deepcopy
from typing import Any

import numpy as np
import torch


def allowed_ids(tokenizer: Any, vocab: int) -> torch.Tensor:
    """(vocab,) bool: ids within the tokenizer's length that stand for text and not for one byte."""
    allowed = torch.zeros(vocab, dtype=torch.bool)
    for token_id in range(len(tokenizer)):
        piece = tokenizer.convert_ids_to_tokens(token_id)
        added = tokenizer.added_tokens_decoder.get(token_id)
        special = token_id in tokenizer.all_special_ids or (added is not None and added.special)
        allowed[token_id] = not special and not re.fullmatch("<0x[0-9A-F]{2}>", piece)
    return allowed


@torch.inference_mode()
def all_logits(model: Any, states: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (row, vocab) float64 of states (row, dim) before the norm; −∞ where an id is not allowed."""
    norm, head = (deepcopy(module).double() for module in (model.get_decoder().norm, model.get_output_embeddings()))
    logits = head(norm(states.double()))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return logits.masked_fill(~allowed, -torch.inf)


def check_pieces(token_id: np.ndarray, logit: np.ndarray, logits: torch.Tensor, *, near: float = 1e-5) -> None:
    """Check ids and logits (row, rank) against all logits (row, vocab) of the same states.

    Where the neighbours of a rank are farther than ``near`` of the largest logit, the id must be torch's.
    """
    ids = torch.from_numpy(np.asarray(token_id)).long()
    expected = logits.topk(ids.shape[1] + 1)
    bound = near * logits[logits.isfinite()].abs().max()
    assert torch.equal(ids.sort(dim=1).values.unique_consecutive(dim=1), ids.sort(dim=1).values)
    found = torch.from_numpy(np.asarray(logit)).double()
    for values in (logits.gather(1, ids), expected.values[:, :-1]):
        torch.testing.assert_close(found, values, rtol=0, atol=float(bound))
    gaps = -expected.values.diff(dim=1)
    clear = (gaps > 2 * bound) & torch.nn.functional.pad(gaps[:, :-1] > 2 * bound, (1, 0), value=True)
    assert clear.float().mean() > 0.9, "ties would make the comparison of ids empty"
    assert torch.equal(ids[clear], expected.indices[:, :-1][clear])
