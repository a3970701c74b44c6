"""The model's tables of an opened store."""

from functools import cached_property
from io import BytesIO
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import zarr

from engine.errors import StrataError
from engine.store.layout import MODEL_GROUP, VOCABULARY_FILE
from engine.store.lazy import StoredArray
from engine.store.location import Location

__all__ = ["ModelTables"]


class ModelTables:
    """Unembedding, final norm and vocabulary, each read when first asked for.

    Parameters
    ----------
    location
        The store.
    version
        The store record's sha256.
    """

    def __init__(self, location: Location, version: str) -> None:
        self._location = location
        self._version = version

    def __repr__(self) -> str:
        return f"<ModelTables of {self._location.url}: {self.norm_kind} norm, {len(self.vocabulary)} pieces>"

    @cached_property
    def _group(self) -> zarr.Group:
        return self._location.open_group(MODEL_GROUP)

    @cached_property
    def unembedding(self) -> da.Array | None:
        """(vocab, dim), float16 or float32, in blocks of rows; None when the store was made without it."""
        if "unembedding" not in self._group:
            return None
        array = self._array("unembedding")
        stored = StoredArray(self._location, MODEL_GROUP, "unembedding", array.shape, array.dtype, self._version)
        return stored.dask(array.chunks)

    @cached_property
    def final_norm_weight(self) -> np.ndarray:
        """(dim), as stored; ``norm_weight_offset`` is not yet added."""
        return np.asarray(self._array("final_norm_weight")[...])

    @cached_property
    def final_norm_bias(self) -> np.ndarray | None:
        """(dim), or None where the norm has no bias."""
        return np.asarray(self._array("final_norm_bias")[...]) if "final_norm_bias" in self._group else None

    @property
    def norm_kind(self) -> str:
        """``rms`` or ``layer``."""
        return str(self._attribute("norm_kind"))

    @property
    def norm_eps(self) -> float:
        """Added under the square root."""
        return float(self._attribute("norm_eps"))

    @property
    def norm_weight_offset(self) -> float:
        """Added to the weight before use (1 in Gemma, else 0)."""
        return float(self._attribute("norm_weight_offset"))

    @property
    def logit_softcap(self) -> float | None:
        """Bound of ``cap * tanh(logit / cap)``, or None."""
        cap = self._attribute("logit_softcap")
        return None if cap is None else float(cap)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the unembedding is the input embedding."""
        return bool(self._attribute("tied_embeddings"))

    @cached_property
    def vocabulary(self) -> pd.DataFrame:
        """Columns of ``VOCABULARY_SCHEMA``."""
        return pd.read_parquet(BytesIO(self._location.read(VOCABULARY_FILE)))

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise StrataError(f"{MODEL_GROUP}/{name} of {self._location.url} is no array: see strata verify")
        return array

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]
