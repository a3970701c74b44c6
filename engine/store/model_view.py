"""The model's tables of an opened store."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import zarr

from engine.errors import StrataError
from engine.store.array_metadata import check_group_metadata
from engine.store.layout import MODEL_GROUP, VOCABULARY_FILE
from engine.store.lazy import StoredArray
from engine.store.limits import RECORD_BYTES, is_finite
from engine.store.location import Location
from engine.store.manifest import parse_json
from engine.store.schemas import VOCABULARY_SCHEMA
from engine.store.tables import read_table

__all__ = ["ModelTables"]

# What each attribute of the group must be, in words and as a test of its JSON value.
_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "norm_kind": ("'rms' or 'layer'", lambda value: value in ("rms", "layer")),
    "norm_eps": ("a finite number from 0 on", lambda value: is_finite(value) and value >= 0),
    "norm_weight_offset": ("a finite number", is_finite),
    "logit_softcap": ("a finite number or null", lambda value: value is None or is_finite(value)),
    "tied_embeddings": ("true or false", lambda value: isinstance(value, bool)),
}


class ModelTables:
    """Unembedding, final norm and vocabulary, each read when first asked for.

    What is asked for raises `StrataError` where it cannot be read, or is not what the format says of it.

    Parameters
    ----------
    location
        The store.
    record
        Its ``store.json``.
    """

    def __init__(self, location: Location, record: Mapping[str, Any]) -> None:
        self._location = location
        self._record = record

    def __repr__(self) -> str:
        return f"<ModelTables of {self._location.url}: {self.norm_kind} norm, {len(self.vocabulary)} pieces>"

    @cached_property
    def unembedding(self) -> da.Array | None:
        """(vocab, dim), float16 or float32, in blocks of rows; None when the store was made without it."""
        if not self._has("unembedding"):
            return None
        array = self._opened("unembedding", 2)
        return self._array("unembedding", array.shape, array.dtype).dask(array.chunks)

    @cached_property
    def final_norm_weight(self) -> np.ndarray:
        """(dim), as stored; ``norm_weight_offset`` is not yet added."""
        return np.asarray(self._opened("final_norm_weight", 1)[...])

    @cached_property
    def final_norm_bias(self) -> np.ndarray | None:
        """(dim), or None where the norm has no bias."""
        return np.asarray(self._opened("final_norm_bias", 1)[...]) if self._has("final_norm_bias") else None

    @property
    def norm_kind(self) -> str:
        """``rms`` or ``layer``."""
        return str(self._attributes["norm_kind"])

    @property
    def norm_eps(self) -> float:
        """Added under the square root."""
        return float(self._attributes["norm_eps"])

    @property
    def norm_weight_offset(self) -> float:
        """Added to the weight before use (1 in Gemma, else 0)."""
        return float(self._attributes["norm_weight_offset"])

    @property
    def logit_softcap(self) -> float | None:
        """Bound of ``cap * tanh(logit / cap)``, or None."""
        cap = self._attributes["logit_softcap"]
        return None if cap is None else float(cap)

    @property
    def tied_embeddings(self) -> bool:
        """Whether the unembedding is the input embedding."""
        return bool(self._attributes["tied_embeddings"])

    @cached_property
    def vocabulary(self) -> pd.DataFrame:
        """Columns of ``VOCABULARY_SCHEMA``."""
        return read_table(self._location, VOCABULARY_FILE, VOCABULARY_SCHEMA).to_pandas()

    def check_attributes(self) -> None:
        """Raise `StrataError` where an attribute of the group is missing, or is not what the format allows."""
        _ = self._attributes

    def _has(self, name: str) -> bool:
        return f"{MODEL_GROUP}/{name}/zarr.json" in self._record["files"]

    def _array(self, name: str, shape: tuple[int, ...] = (), dtype: np.dtype | None = None) -> StoredArray:
        version = self._record["sha256"]
        return StoredArray(self._location, MODEL_GROUP, name, shape, dtype or np.dtype("float32"), version)

    def _opened(self, name: str, dims: int) -> zarr.Array:
        array = self._array(name).opened()
        if len(array.shape) != dims:
            raise StrataError(
                f"{MODEL_GROUP}/{name} of {self._location.url} has the shape {array.shape}, which has {dims} "
                f"dimension{'s' if dims > 1 else ''} in every store: it was edited or damaged, restore it from a copy"
            )
        return array

    @cached_property
    def _attributes(self) -> Mapping[str, Any]:
        name = f"{MODEL_GROUP}/zarr.json"
        origin = f"{self._location.url}/{name}"
        attributes = check_group_metadata(parse_json(self._location.read(name, RECORD_BYTES), origin), origin)
        for name, (rule, holds) in _RULES.items():
            if name not in attributes or not holds(attributes[name]):
                said = f"{name} {attributes[name]!r:.40}" if name in attributes else f"no {name}"
                raise StrataError(
                    f"{origin} has {said}, which must be {rule}: it was edited or damaged, restore it from a copy"
                )
        return attributes
