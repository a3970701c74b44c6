"""The only place where analyses meet torch: products that NumPy has no fast kernel for.

Where torch is installed and the processor has dot-product instructions for int8 (AVX-512 VNNI), the screen of
:mod:`analyses.lens_screen` runs on them; everywhere else float32 in NumPy does the whole work. Results are the same
either way.
"""

import functools
import warnings
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAIRED_ROWS_AT_ONCE", "TORCH_BYTES", "Int8Products", "fast_int8_products", "int8_products"]

Float = TypeVar("Float", np.float32, np.float64)

PAIRED_ROWS_AT_ONCE = 512
"""Rows that are widened at once for products of pairs."""

TORCH_BYTES = 352 * 2**20
"""What importing torch and its first products add to a process: measured 316 MiB."""


class Int8Products:
    """Exact products of int8 codes, and float products of chosen pairs, by torch.

    Attributes
    ----------
    fast : bool
        Whether the processor has dot-product instructions for int8, which make it about four times float32's speed.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.fast = bool(torch.cpu._is_vnni_supported())

    def multiply(self, left: NDArray[np.int8], right: NDArray[np.int8], product: NDArray[np.int32]) -> None:
        """Write the products of all pairs of rows.

        Parameters
        ----------
        left, right : arrays (a, dim) and (b, dim), int8
            Contiguous, without −128.
        product : array (a, b), int32
            Overwritten: fresh memory for every block would cost as much as a fifth of the product.
        """
        torch = self._torch
        torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).T, out=torch.from_numpy(product))

    def largest(
        self, product: NDArray[np.int32], threshold: NDArray[np.float32], scale: NDArray[np.float32], k: int
    ) -> NDArray[np.int64]:
        """Rows (k, b) whose product exceeds its threshold most, in units of the row's scale.

        Parameters
        ----------
        product, threshold : arrays (a, b), int32 and float32
        scale : array (a,), float32
        k : int
            At most a.
        """
        torch = self._torch
        excess = torch.from_numpy(product) - torch.from_numpy(threshold)
        excess *= torch.from_numpy(scale)[:, None]
        rows: NDArray[np.int64] = torch.topk(excess.T.contiguous(), k, sorted=False).indices.numpy().T
        return rows

    def to_float32(self, product: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        """Round whole numbers (a, b) to float32, which NumPy does at a third of the speed."""
        self._torch.from_numpy(out).copy_(self._torch.from_numpy(product))

    def of_pairs(
        self,
        left: NDArray[np.floating],
        right: NDArray[Float],
        a: NDArray[np.int64],
        b: NDArray[np.int64],
    ) -> NDArray[Float]:
        """Dot products of ``left[a]`` and ``right[b]`` in the dtype of ``right``, without a copy of a row per pair.

        Parameters
        ----------
        left : array (rows, dim), float16 or float32
        right : array (columns, dim), float32 or float64
        a, b : arrays (pair,), int64
            Equal ``a`` stand together.
        """
        torch = self._torch
        products = np.empty(len(a), right.dtype)
        starts = np.append(np.flatnonzero(np.diff(a, prepend=-1)), len(a))
        weights, transposed = torch.from_numpy(left), torch.from_numpy(right).T
        # Fresh memory for every stretch of rows would cost as much as filling it.
        held = min(PAIRED_ROWS_AT_ONCE, len(starts) - 1)
        stored, wide = (torch.empty((held, left.shape[1]), dtype=dtype) for dtype in (weights.dtype, transposed.dtype))
        for first in range(0, len(starts) - 1, PAIRED_ROWS_AT_ONCE):
            bounds = starts[first : first + PAIRED_ROWS_AT_ONCE + 1]
            pairs, count = slice(bounds[0], bounds[-1]), len(bounds) - 1
            # Twice as fast as indexing, which does not know that it takes whole rows.
            torch.index_select(weights, 0, torch.from_numpy(a[bounds[:-1]]), out=stored[:count])
            wide[:count].copy_(stored[:count])
            pattern = torch.sparse_csr_tensor(
                torch.from_numpy(bounds - bounds[0]),
                torch.from_numpy(b[pairs]),
                torch.zeros(len(b[pairs]), dtype=wide.dtype),
                (count, len(right)),
                check_invariants=False,
            )
            sampled = torch.sparse.sampled_addmm(pattern, wide[:count], transposed, beta=0.0)
            products[pairs] = sampled.values().numpy()
        return products


@functools.cache
def int8_products() -> Int8Products | None:
    """Return the products where torch is installed and its int8 product is exact here, else None."""
    try:
        import torch  # noqa: PLC0415  (seconds of import that only this analysis pays)
    except ImportError:
        return None
    with warnings.catch_warnings():
        # Said once per process: compressed sparse rows are in beta. What is used of them is tried here.
        warnings.filterwarnings("ignore", message=r"Sparse CSR tensor support is in beta", category=UserWarning)
        try:
            products = Int8Products(torch)
            return products if _exact(products) else None
        except (AttributeError, RuntimeError):  # names that torch does not promise, kernels it has not everywhere
            return None


def fast_int8_products() -> Int8Products | None:
    """Return the products where this processor has instructions for them, else None.

    The processor is asked, not timed: what an analysis does and predicts must not depend on who else is at work.
    """
    products = int8_products()
    return products if products is not None and products.fast else None


def _exact(products: Int8Products) -> bool:
    """Kernels for processors without dot-product instructions add pairs of products in 16 bits, which can saturate."""
    left = np.full((33, 67), 127, np.int8)
    left[::2] *= -1
    right = np.full((5, 67), 127, np.int8)
    right[::2, ::3] = -127
    expected = left.astype(np.int64) @ right.astype(np.int64).T
    product = np.empty(expected.shape, np.int32)
    products.multiply(left, right, product)
    a, b = map(np.ravel, np.indices(expected.shape))
    pairs = products.of_pairs(left.astype(np.float32), right.astype(np.float32), a, b)
    return np.array_equal(product, expected) and np.array_equal(pairs, expected[a, b])
