"""A tokenizer's vocabulary as a table: pieces, kinds, word starts.

Pieces, not decoded text: decoding a single id merges ``▁dog`` and ``dog``.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.store import VOCABULARY_SCHEMA

__all__ = ["TokenizerVocabulary", "special_token_ids"]

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORD_MARKERS = ("▁", "Ġ")  # SentencePiece and byte-level BPE


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of every special token: those with a name (BOS, padding, …) and those added as special (``<image>``)."""
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids).union(added)


class TokenizerVocabulary:
    """The vocabulary of a fast tokenizer.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)

    def pieces(self) -> list[tuple[int, str, str]]:
        """(token id, piece, kind) of every entry of the tokenizer; kind is ``normal``, ``special`` or ``byte``."""
        pieces = self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))
        return [(token_id, piece or "", self._kind(token_id, piece)) for token_id, piece in enumerate(pieces)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a sequence of ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def table(self, rows: int) -> pa.Table:
        """``vocab.parquet`` for an unembedding of ``rows`` rows; ids beyond the tokenizer's length are ``padding``."""
        known = self.pieces()[:rows]
        entries = known + [(token_id, "", "padding") for token_id in range(len(known), rows)]
        ids, pieces, kinds = zip(*entries, strict=True)
        starts = [piece.startswith(_WORD_MARKERS) for piece in pieces]
        return pa.table([list(ids), list(pieces), list(kinds), starts], schema=VOCABULARY_SCHEMA)

    def candidates(self, rows: int) -> np.ndarray:
        """Ids (rows,) bool of an unembedding of ``rows`` rows that LogitLens may choose: those of normal pieces."""
        normal = np.zeros(rows, dtype=bool)
        normal[[token_id for token_id, _, kind in self.pieces() if kind == "normal" and token_id < rows]] = True
        return normal

    def _kind(self, token_id: int, piece: str | None) -> str:
        if piece is None:
            return "padding"
        if token_id in self._special:
            return "special"
        return "byte" if _BYTE_PIECE.fullmatch(piece) else "normal"
