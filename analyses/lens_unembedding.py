"""The unembedding of a store, prepared once for all tokens and layers."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_codes import LARGEST_CODE, Codes, encode
from analyses.lens_products import TORCH_BYTES, Int8Products, fast_int8_products
from analyses.lens_rounding import norm_bounds
from engine.errors import StrataError

__all__ = ["ROWS_AT_ONCE", "CodedRows", "Unembedding", "unembedding_bytes"]

ROWS_AT_ONCE = 2048
"""Rows of the vocabulary that are worked on at once."""

_ROW_BYTES = 48  # of a row's norms, scale, id and order


def unembedding_bytes(vocab: int, dim: int, itemsize: int) -> int:
    """Bytes of a prepared unembedding, its weights included, and of preparing it.

    Parameters
    ----------
    vocab, dim : int
    itemsize : int
        Bytes of a stored weight: 2 or 4.
    """
    needed = vocab * dim * itemsize + vocab * _ROW_BYTES + 3 * 4 * ROWS_AT_ONCE * dim
    if fast_int8_products() is not None:
        needed += vocab * dim + TORCH_BYTES
    return needed


class CodedRows(NamedTuple):
    """The rows that may be chosen, longest first, coded for the screen.

    Attributes
    ----------
    products : Int8Products
    token_id : array (row,), int64
        Their ids.
    codes : Codes
    """

    products: Int8Products
    token_id: NDArray[np.int64]
    codes: Codes


class Unembedding(NamedTuple):
    """W_U with what bounds and screens need.

    Attributes
    ----------
    weights : array (vocab, dim), float16 or float32
    allowed : array (vocab,), bool
        Ids that may be chosen.
    softcap : float or None
        Logits z are shown as c·tanh(z/c), as Gemma 2 does.
    norm : array (vocab,), float64
        Upper bounds of the norms of rows.
    coded : CodedRows or None
        None where float32 does the whole work.
    """

    weights: NDArray[np.floating]
    allowed: NDArray[np.bool_]
    softcap: float | None
    norm: NDArray[np.float64]
    coded: CodedRows | None

    def rows(self, rows: slice) -> NDArray[np.float32]:
        """Weights (row, dim) of some rows in float32."""
        return self.weights[rows].astype(np.float32, copy=False)

    def cap(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the softcap, where the model has one; in place."""
        if self.softcap is not None:
            logits /= np.float32(self.softcap)
            np.tanh(logits, out=logits)
            logits *= np.float32(self.softcap)
        return logits

    @classmethod
    def prepare(
        cls,
        weights: NDArray[np.floating],
        allowed: NDArray[np.bool_],
        *,
        softcap: float | None = None,
        products: Int8Products | str | None = "auto",
    ) -> "Unembedding":
        """Measure and code the rows.

        Parameters
        ----------
        weights : array (vocab, dim), float16 or float32
            As stored; kept, not copied. Float32 spares a conversion per block of tokens and costs twice the memory.
        allowed : array (vocab,), bool
            False for ids beyond the tokenizer's, special and byte pieces.
        softcap : float, optional
        products : Int8Products, None or ``"auto"``
            None never codes; by default rows are coded where this processor is faster at int8.

        Raises
        ------
        StrataError
            A weight is not finite.
        """
        if isinstance(products, str):
            products = fast_int8_products()
        weights = np.ascontiguousarray(weights)
        vocab, dim = weights.shape
        norm = np.empty(vocab)
        for start in range(0, vocab, ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            norm[block] = norm_bounds(weights[block].astype(np.float32))
        if not np.isfinite(norm).all():
            row = int(np.flatnonzero(~np.isfinite(norm))[0])
            raise StrataError(
                f"row {row} of the unembedding holds a value that is not finite or whose square exceeds float32, "
                "so no logit of it exists: check the store with `strata verify`, or extract it again"
            )
        fits = dim * LARGEST_CODE**2 < 2**31  # sums of products of codes are int32
        coded = _code_rows(weights, allowed, norm, products) if products is not None and fits else None
        return cls(weights, allowed, softcap, norm, coded)


def _code_rows(
    weights: NDArray[np.floating], allowed: NDArray[np.bool_], norm: NDArray[np.float64], products: Int8Products
) -> CodedRows:
    longest_first = np.argsort(np.where(allowed, -norm, np.inf), kind="stable")[: int(allowed.sum())]
    return CodedRows(products, longest_first, encode(weights, longest_first))
