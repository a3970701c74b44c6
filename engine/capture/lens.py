"""LogitLens on the accelerator: the best vocabulary pieces of every kept state, found while the model is there.

lens(h) = W_U · norm(h) (nostalgebraist 2020), with the model's own final norm applied once, in float32. A product takes
2 · vocab · dim operations per state. Models of 16 bits take two, where torch multiplies 16-bit matrices into float32
(on CUDA): of the normed state's leading half and of what that leaves, x = x₁ + x₂ + e. Each weight is then multiplied
with x up to |e| ≤ u² |x|, u = 2⁻⁸ in bfloat16 and 2⁻¹¹ in float16, so that logits are off by at most 2⁻¹⁶ Σ|w x| or
2⁻²² Σ|w x| (and in float16 by 2⁻²⁵ Σ|w| where it underflows), at a fraction of what a float32 product costs there, and
for any number of pieces. Elsewhere the product is in float32.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.rows import OnDevices
from engine.models.checkpoint import Checkpoint
from engine.models.final_norm import normed_states
from engine.models.load import LanguageModel, LoadedModel
from engine.models.vocabulary import TokenizerVocabulary

__all__ = ["Lens", "Pieces"]

_LOGIT_BYTES = 2**27  # of the float32 logits held at once; the second product takes as much again
_SORTED_SHARE = 4  # sorting all logits of a row takes this many times their bytes
_WIDENED_BYTES = 2**26  # of the weights that are held in float32 at once


class Pieces(NamedTuple):
    """The best pieces of some states, logit descending, of equal logits the smaller id first.

    Attributes
    ----------
    token_id
        (row, rank) int32.
    logit
        (row, rank) float32, after the model's softcap.
    """

    token_id: torch.Tensor
    logit: torch.Tensor


class Lens:
    """Decodes states with a model's final norm and unembedding.

    Parameters
    ----------
    language
        The language model.
    candidates
        (vocab,) bool: ids that may be chosen.
    topk
        Pieces per state; all candidates where there are fewer.
    softcap
        Logits z are shown as c · tanh(z / c), as Gemma 2 does; None shows them as they are.
    """

    def __init__(self, language: LanguageModel, candidates: np.ndarray, *, topk: int, softcap: float | None) -> None:
        self.topk = min(topk, int(candidates.sum()))
        self._language = language
        self._excluded = OnDevices(torch.from_numpy(np.flatnonzero(~candidates)))
        self._softcap = softcap

    @classmethod
    def of(cls, checkpoint: Checkpoint, loaded: LoadedModel, topk: int) -> "Lens":
        """Make the lens of a loaded checkpoint: only normal pieces are candidates."""
        vocabulary = TokenizerVocabulary(checkpoint.processor.tokenizer)
        candidates = vocabulary.candidates(len(loaded.language.unembedding))
        return cls(loaded.language, candidates, topk=topk, softcap=checkpoint.logit_softcap)

    def top(self, states: torch.Tensor) -> Pieces:
        """Find the best pieces of states (row, dim) of any layer, before the final norm; on the unembedding's device.

        Rows whose logits are not finite get such a logit, and any ids.
        """
        normed = normed_states(self._language.final_norm, states).to(self._language.unembedding.device)
        found = self._best(normed)
        # The selection is free to take any of equal logits: where they cross its end, all of the row are sorted. The
        # question stops the host, hence one for all rows.
        rows = (found.logit[:, self.topk - 1 : self.topk] == found.logit[:, self.topk :]).any(dim=1).nonzero()[:, 0]
        if len(rows):
            tied = self._sorted(normed[rows])
            found.logit.index_copy_(0, rows, tied.logit)
            found.token_id.index_copy_(0, rows, tied.token_id)
        logit = found.logit[:, : self.topk].contiguous()
        if self._softcap is not None:
            logit = torch.tanh(logit / self._softcap) * self._softcap
        return Pieces(found.token_id[:, : self.topk].int(), logit)

    def _best(self, normed: torch.Tensor) -> Pieces:
        """Select the best of each row, one more than are wanted where there are more, ids in int64."""
        vocab = len(self._language.unembedding)
        found = []
        for rows in normed.split(max(1, _LOGIT_BYTES // (4 * vocab))):
            logit, token_id = self._logits(rows).topk(min(self.topk + 1, vocab))
            token_id, order = token_id.sort()
            logit, order = logit.gather(1, order).sort(descending=True, stable=True)
            found.append((token_id.gather(1, order), logit))
        return Pieces(*(torch.cat(pieces) for pieces in zip(*found, strict=True)))

    def _sorted(self, normed: torch.Tensor) -> Pieces:
        """Do the same by sorting all of a row, which leaves equal logits in the order of ids."""
        vocab = len(self._language.unembedding)
        found = []
        for rows in normed.split(max(1, _LOGIT_BYTES // (4 * vocab * _SORTED_SHARE))):
            logit, token_id = self._logits(rows).sort(descending=True, stable=True)
            found.append((token_id[:, : self.topk + 1].clone(), logit[:, : self.topk + 1].clone()))
        return Pieces(*(torch.cat(pieces) for pieces in zip(*found, strict=True)))

    def _logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Logits (row, vocab) float32 of normed states, −∞ where an id is no candidate."""
        logits = _product(normed, self._language.unembedding)
        return logits.index_fill_(1, self._excluded.at(logits.device), -math.inf)


def _product(normed: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply states (row, dim) float32 with weights (vocab, dim) of any dtype, (row, vocab) float32."""
    if weights.dtype == torch.float32:
        return normed @ weights.T
    if _multiplies_into_float32(weights):
        leading = normed.to(weights.dtype)
        rest = (normed - leading.float()).to(weights.dtype)
        return _product_into_float32(leading, weights).add_(_product_into_float32(rest, weights))
    logits = normed.new_empty(len(normed), len(weights))
    step = max(1, _WIDENED_BYTES // (4 * weights.shape[1]))
    for start in range(0, len(weights), step):
        logits[:, start : start + step] = normed @ weights[start : start + step].float().T
    return logits


def _multiplies_into_float32(weights: torch.Tensor) -> bool:
    return weights.is_cuda and "dtype" in torch.ops.aten.mm.overloads()


def _product_into_float32(left: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply (row, dim) with weights (vocab, dim), both of 16 bits, summed and returned in float32."""
    product: torch.Tensor = torch.ops.aten.mm.dtype(left, weights.T, torch.float32)
    return product
