"""Opening stores: all parts of one or several, as labelled Dask arrays.

Opening reads ``store.json`` and the manifests; a part without a manifest is never looked at.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store.choices import layer_indices, query_code, state_layers
from engine.store.differences import list_differences
from engine.store.joined import join_parts, open_keys
from engine.store.layout import PARTS_FOLDER, PLAN_FILE, STORE_FILE
from engine.store.location import Location
from engine.store.map_samples import SampleFunction, map_samples, sample_attributes
from engine.store.model_view import ModelTables
from engine.store.part import Part, parse_manifest
from engine.store.record import parse_record
from engine.store.tokens import TokenBatch, iterate_tokens

__all__ = ["Store", "open_store"]

# What a capture of an earlier format says by saying nothing.
_UNSAID: Mapping[str, Any] = {"residual_layers": None, "blocks": [], "queries": [], "dtypes": {}}


def open_store(url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> "Store":
    """Open one store, or several of the same model and captures as one.

    Parameters
    ----------
    url
        A local path, any URL that fsspec knows, or a list of those.

    Raises
    ------
    StrataError
        When there is no store, it is damaged, or it has a newer major format.
    UsageError
        When several stores differ in model or captures, or none is named.
    """
    urls = [url] if isinstance(url, str | os.PathLike) else list(url)
    if not urls:
        raise UsageError("no store is named: give at least one path or URL")
    locations = [Location.of(entry) for entry in urls]
    records = [parse_record(location.read(STORE_FILE), location.url) for location in locations]
    for location, record in zip(locations[1:], records[1:], strict=True):
        left, right = (_shared(entry) for entry in (records[0], record))
        if left != right:
            lines = "\n".join(f"  {line}" for line in list_differences(left, right))
            raise UsageError(
                f"{locations[0].url} (stored) and {location.url} (asked) differ in model or captures:\n{lines}\n"
                "open them one by one"
            )
    return Store(locations, records)


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings that stores opened as one must have in common."""
    return {"model": record.get("model"), "capture": {**_UNSAID, **record["capture"]}}


def _parts(location: Location, plan_sha256: str) -> list[Part]:
    manifests = location.read_all(PARTS_FOLDER, ".json")
    return [
        Part(
            location,
            name.removesuffix(".json"),
            parse_manifest(content, f"{location.url}/{PARTS_FOLDER}/{name}", plan_sha256),
        )
        for name, content in manifests.items()
    ]


class Store:
    """Committed parts of one or several stores; made by ``open_store``.

    Attributes
    ----------
    record
        ``store.json`` (of the first store).
    parts
        Committed parts, in order.
    model
        Unembedding, final norm and vocabulary.
    """

    def __init__(self, locations: list[Location], records: list[dict[str, Any]]) -> None:
        self._locations = locations
        self.record = records[0]
        self.parts: tuple[Part, ...] = tuple(
            part
            for location, record in zip(locations, records, strict=True)
            for part in _parts(location, record["plan_sha256"])
        )
        self.model = ModelTables(locations[0], self.record["sha256"])

    def __repr__(self) -> str:
        samples = sum(part.manifest["samples"] for part in self.parts)
        more = f" and {len(self._locations) - 1} more" if len(self._locations) > 1 else ""
        return (
            f"<Store {self.url}{more}: {self.record['model'].get('id', 'unnamed model')}, {samples} samples in "
            f"{len(self.parts)} parts, {len(self.layers)} layers>"
        )

    @property
    def url(self) -> str:
        """Address of the (first) store."""
        return self._locations[0].url

    @property
    def layers(self) -> np.ndarray:
        """Captured layer numbers, int32, ascending: those of pooled states."""
        return np.asarray(self.record["capture"]["layers"], np.int32)

    @property
    def state_layers(self) -> np.ndarray:
        """Layer numbers of hidden states, int32, ascending: `layers`, or fewer where a run chose so."""
        return np.asarray(state_layers(self.record["capture"]), np.int32)

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the queries whose attention is kept, in the order of their codes."""
        return tuple(self.record["capture"].get("queries", ()))

    def query_code(self, name: str) -> int:
        """Find the code of a query: ``store.attention.sel(query=store.query_code("last_text"))``.

        Raises
        ------
        UsageError
            When the store keeps no query of this name.
        """
        return query_code(self.queries, name)

    @property
    def block_count(self) -> int:
        """Number of blocks L of the language model; layers run 0..L."""
        return int(self.record["model"]["blocks"])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All committed samples in part order: the columns of ``Part.samples``, ``part``, and ``store`` (its URL)."""
        frames = [part.samples.assign(part=part.number, store=part.url) for part in self.parts]
        filled = [frame for frame in frames if len(frame)] or frames[:1]
        if not filled:
            raise self._no_part()
        return pd.concat(filled, ignore_index=True)

    @cached_property
    def plan(self) -> pd.DataFrame:
        """All planned samples: sample_id, image_id, prompt_id, part, and ``store`` (its URL)."""
        return pd.concat(
            [
                pd.read_parquet(BytesIO(location.read(PLAN_FILE))).assign(store=location.url)
                for location in self._locations
            ],
            ignore_index=True,
        )

    @property
    def complete(self) -> bool:
        """Whether every planned part is committed."""
        committed = {(part.url, part.number) for part in self.parts}
        return all(pair in committed for pair in zip(self.plan["store"], self.plan["part"], strict=True))

    @property
    def hidden_states(self) -> xr.DataArray:
        """(layer, token, dim), float16 or float32, over all parts; one Dask chunk per shard."""
        return self._joined("token", "hidden_states")

    @property
    def unit_mean(self) -> xr.DataArray:
        """(layer, role, sample, dim) float32: mean of unit vectors; NaN where ``token_count`` is 0."""
        return self._joined("sample", "unit_mean")

    @property
    def mean(self) -> xr.DataArray:
        """(layer, role, sample, dim) float32: mean of states; NaN where ``token_count`` is 0."""
        return self._joined("sample", "mean")

    @property
    def normed_unit_mean(self) -> xr.DataArray:
        """(role, sample, dim) float32: mean of unit vectors of the last layer after the final norm."""
        return self._joined("sample", "normed_unit_mean")

    @property
    def token_count(self) -> xr.DataArray:
        """(role, sample) int32."""
        return self._joined("sample", "token_count")

    @property
    def attention(self) -> xr.DataArray:
        """(block, query, head, key) float32: what each query's position gives to each key; its sum over keys is 1.

        Keys of all samples, one after the other; the coordinate ``sample`` is the row of `samples`, ``position`` counts
        within it, ``token`` is the place on the token axis (of `hidden_states`), -1 where that token is not stored. NaN
        where a sample does not have the query.
        """
        return self._joined("key", "attention")

    @property
    def attention_norm(self) -> xr.DataArray:
        """(block, query, key) float32: norm of what a key's value adds to the query's position, summed over heads."""
        return self._joined("key", "attention_norm")

    @property
    def value_norm(self) -> xr.DataArray:
        """(block, head, token) float32: norm of a token's value after the head's part of the output projection."""
        return self._joined("token", "value_norm")

    @property
    def attention_mass(self) -> xr.DataArray:
        """(block, head, token, source_role) float32: how much of a token's attention goes to each role."""
        return self._joined("token", "attention_mass")

    @property
    def attention_output(self) -> xr.DataArray:
        """(block, token, dim), float16 or float32: output of each block's attention."""
        return self._joined("token", "attention_output")

    @property
    def mlp_output(self) -> xr.DataArray:
        """(block, token, dim), float16 or float32: output of each block's MLP."""
        return self._joined("token", "mlp_output")

    def sample(self, sample_id: str) -> xr.Dataset:
        """One sample's sequence, assembled from its segments.

        Parameters
        ----------
        sample_id
            As in ``samples``.

        Returns
        -------
        xr.Dataset
            The arrays of the ``token`` group with the sample's own tokens, in order, Dask-backed, and, where attention
            is kept, its arrays: ``key`` are the positions 0..n-1 of the sample's sequence, stored tokens or not, and
            ``query_position`` says where each query stands (-1 where the sample has none). Attributes: sample_id,
            image_id, item_id, prompt_id, prompt_kind, prompt (text) and references (list of text).

        Raises
        ------
        UsageError
            When no sample, or more than one, has this id.
        """
        rows = np.flatnonzero(self.samples["sample_id"] == sample_id)
        if len(rows) != 1:
            raise UsageError(self._wrong_sample(sample_id, len(rows)))
        row = self.samples.iloc[rows[0]]
        part = next(part for part in self.parts if (part.url, part.number) == (row["store"], row["part"]))
        runs = [slice(segment["start"], segment["stop"]) for segment in row["segments"]] or [slice(0, 0)]
        pieces = [part.open("token", run) for run in runs]
        joined = xr.concat(pieces, "token", data_vars="minimal", coords="minimal", compat="override", join="override")
        if pd.notna(row["key_start"]):
            joined = joined.merge(open_keys(part, row), compat="override", join="override")
        return joined.assign_attrs(sample_attributes(row))

    def map_samples(
        self,
        function: SampleFunction,
        *,
        arrays: str | Sequence[str] = ("hidden_states",),
        layers: int | Sequence[int] | None = None,
        samples: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Call a function of your own on every sample, out-of-core, and collect what it returns in a table.

        One Dask task per part, on threads of this process, or on the scheduler or cluster that Dask is set to
        (``dask.config``, an open ``distributed.Client``; the function then has to be one that can be sent there).

        Parameters
        ----------
        function
            Gets a sample as `sample` gives it, but in memory and its own: ``hidden_states`` (layer, token, dim), the
            coordinates of tokens, the sample's ids, prompt and references as attributes. Returns a mapping, each entry
            a column; or anything else, the column ``value``. What has no dimension (of NumPy, xarray, torch) becomes a
            scalar; an array is kept as a NumPy array in its cell.
        arrays
            Data arrays of tokens or keys to read (``attention``); ``()`` for the coordinates of tokens alone.
        layers
            Layer numbers to read of hidden states; all when None.
        samples
            Rows of `samples`, such as ``store.samples.query("prompt_kind == 'normal'")``; all when None.

        Returns
        -------
        pd.DataFrame
            store, sample_id, image_id, prompt_id, prompt_kind and the function's columns; a row for each of
            ``samples``, in their order, with their index. NaN where a mapping lacks a column of the others.

        Raises
        ------
        UsageError
            There is no such array, layer or sample, or the function returns one of the columns that every row has.
        StrataError
            The function failed: the sample is named, the error is the cause. Or a part is damaged.

        Notes
        -----
        Each worker holds the tokens of one image with all its prompts (or of one chunk, up to 4 MiB per layer, where
        that is more), and one sample copied from it. Fewer ``layers`` or threads
        (``dask.config.set(num_workers=2)``) need less.
        """
        rows = self.samples if samples is None else samples
        return map_samples(
            self.parts,
            rows,
            function,
            arrays=(arrays,) if isinstance(arrays, str) else tuple(arrays),
            layers=layer_indices(self.state_layers.tolist(), layers),
        )

    def tokens(
        self,
        *,
        layer: int | Sequence[int],
        roles: str | Sequence[str] | None = None,
        batch: int = 4096,
        shuffle: int | None = None,
        memory: int = 2**30,
        drop_last: bool = False,
    ) -> Iterator[TokenBatch]:
        """Iterate once over the states of all stored tokens, in batches: for probes and sparse autoencoders.

        Each stored token comes once; a prefix that several samples share comes once. ``torch.from_numpy`` takes the
        states as they are.

        Parameters
        ----------
        layer
            A stored layer number: states are (token, dim). Several: (token, layer, dim), in their order.
        roles
            Only tokens of this role, or of these; all when None.
        batch
            Tokens in a batch; the last one may be shorter.
        shuffle
            None for stored order, or a seed. Batches are then drawn at random from a pool in which as many chunks (up
            to 4 MiB per layer) wait as memory allows, themselves in random order from up to 64 parts at a time. A pool
            that holds the whole store is shuffled perfectly; else a batch mixes about as many chunks as the pool holds.
            The same seed and memory give the same batches everywhere.
        memory
            Bytes that this may hold, the batch that you work with and the next one included.
        drop_last
            Whether a last, shorter batch is left out.

        Raises
        ------
        UsageError
            There are no hidden states, no such layer or role, or too little memory; the message says what there is, or
            what is needed.
        StrataError
            No part is committed, or one is damaged.
        """
        if not self.parts:
            raise self._no_part()
        return iterate_tokens(
            self.parts,
            self.record["capture"],
            layer=layer,
            roles=roles,
            batch=batch,
            shuffle=shuffle,
            memory=memory,
            drop_last=drop_last,
        )

    def _no_part(self) -> StrataError:
        return StrataError(f"no part of {self.url} is committed yet: run strata extract until it has written one")

    def _wrong_sample(self, sample_id: str, found: int) -> str:
        if found:
            return f"{found} of these stores hold sample {sample_id!r}: open one of them alone"
        known = list(self.samples["sample_id"])
        close = difflib.get_close_matches(sample_id, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see the column sample_id of Store.samples"
        return f"no committed sample of {self.url} is called {sample_id!r}: {hint}"

    def _joined(self, axis: str, name: str) -> xr.DataArray:
        """One array over all parts, with the axis's coordinates and the part number."""
        array = join_parts(self.parts, axis, name)
        if array is None:
            raise StrataError(
                f"no committed part of {self.url} holds {axis}/{name}: "
                f"captured was {self.record['capture'].get('tensors', 'something else')}"
            )
        return array
