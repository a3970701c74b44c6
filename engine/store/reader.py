"""Opening stores: all parts of one or several, as labelled Dask arrays.

Opening reads ``store.json`` and the manifests; a part without a manifest is never looked at.
"""

import bisect
import difflib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import xarray as xr

from engine.cores import usable_cores
from engine.errors import StrataError, UsageError
from engine.garbage import uncollected
from engine.store.alike import check_alike
from engine.store.arrays import JoinedArrays
from engine.store.choices import kept_roles, layer_places, lens_layers, query_code, state_layers
from engine.store.each_part import read_each_part
from engine.store.joined import on_blocks, open_keys
from engine.store.layout import PARTS_FOLDER, PLAN_FILE, STORE_FILE
from engine.store.limits import RECORD_BYTES
from engine.store.location import Location
from engine.store.map_samples import SampleFunction, map_samples, sample_attributes
from engine.store.model_view import ModelTables
from engine.store.part import Part, parse_manifest
from engine.store.record import parse_record
from engine.store.schemas import PLAN_SCHEMA
from engine.store.tables import read_table
from engine.store.tokens import TokenBatch, iterate_tokens
from engine.vocabulary import ROLES

__all__ = ["Store", "open_store"]

_NAMES_COMPARED = 2000  # with one that is unknown, for a hint


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
    records = [parse_record(location.read(STORE_FILE, RECORD_BYTES), location.url) for location in locations]
    check_alike([location.url for location in locations], records)
    return Store(locations, records)


@uncollected()
def _parts(location: Location, plan_sha256: str) -> list[Part]:
    manifests = location.read_all(PARTS_FOLDER, ".json", RECORD_BYTES)
    return [
        Part(
            location,
            name.removesuffix(".json"),
            parse_manifest(content, f"{location.url}/{PARTS_FOLDER}/{name}", plan_sha256),
        )
        for name, content in manifests.items()
    ]


def _table_of(part: Part) -> pa.Table:
    table = part.sample_table()
    number, url = pa.repeat(part.number, len(table)), pa.repeat(part.url, len(table))
    return table.append_column("part", number).append_column("store", url)


class Store(JoinedArrays):
    """Committed parts of one or several stores; made by ``open_store``.

    Attributes
    ----------
    record
        ``store.json`` (of the first store).
    parts
        Committed parts, in order.
    url
        Address of the (first) store.
    model
        Unembedding, final norm and vocabulary.
    """

    def __init__(self, locations: list[Location], records: list[dict[str, Any]]) -> None:
        self._locations = locations
        self.url = locations[0].url
        self.record = records[0]
        self.parts = tuple(
            part
            for location, record in zip(locations, records, strict=True)
            for part in _parts(location, record["plan_sha256"])
        )
        self.model = ModelTables(locations[0], self.record)

    def __repr__(self) -> str:
        samples = sum(part.manifest["samples"] for part in self.parts)
        more = f" and {len(self._locations) - 1} more" if len(self._locations) > 1 else ""
        return (
            f"<Store {self.url}{more}: {self.record['model'].get('id', 'unnamed model')}, {samples} samples in "
            f"{len(self.parts)} parts, {len(self.layers)} layers>"
        )

    def _repr_html_(self) -> str:
        # Here, because a summary is one of an opened store.
        from engine.store.notebook import store_html  # noqa: PLC0415
        from engine.store.summary import summarise  # noqa: PLC0415

        return store_html(summarise(self))

    @property
    def layers(self) -> np.ndarray:
        """Captured layer numbers, int32, ascending: those of pooled states."""
        return np.asarray(self.record["capture"]["layers"], np.int32)

    @property
    def state_layers(self) -> np.ndarray:
        """Layer numbers of hidden states, int32, ascending: `layers`, or fewer where a run chose so."""
        return np.asarray(state_layers(self.record["capture"]), np.int32)

    @property
    def lens_layers(self) -> np.ndarray:
        """Layer numbers of vocabulary pieces, int32, ascending; none without lens."""
        return np.asarray(lens_layers(self.record["capture"]), np.int32)

    @property
    def queries(self) -> tuple[str, ...]:
        """Names of the queries whose attention is kept, in the order of their codes."""
        return tuple(self.record["capture"].get("queries", ()))

    def kept_roles(self, tensor: str) -> tuple[str, ...]:
        """Roles of whose tokens a tensor is kept, by its name in ``--capture``: ``store.kept_roles("residual")``."""
        roles = kept_roles(self.record["capture"], tensor)
        return ROLES if roles is None else roles

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
    @uncollected()
    def samples(self) -> pd.DataFrame:
        """All committed samples in part order: the columns of ``Part.samples``, ``part``, and ``store`` (its URL)."""
        if not self.parts:
            raise self._no_part()
        tables = read_each_part(_table_of, self.parts, here=usable_cores())
        return pa.concat_tables(tables, promote_options="default").to_pandas()

    @cached_property
    def plan(self) -> pd.DataFrame:
        """All planned samples: sample_id, image_id, prompt_id, part, and ``store`` (its URL)."""
        return pd.concat(
            [
                read_table(location, PLAN_FILE, PLAN_SCHEMA).to_pandas().assign(store=location.url)
                for location in self._locations
            ],
            ignore_index=True,
        )

    @property
    def complete(self) -> bool:
        """Whether every planned part is committed."""
        planned = self.plan[["store", "part"]].drop_duplicates()
        return set(planned.itertuples(index=False, name=None)) <= self._numbered.keys()

    @cached_property
    def _numbered(self) -> dict[tuple[str, int], Part]:
        """Committed parts by store and number."""
        return {(part.url, part.number): part for part in self.parts}

    @cached_property
    def _planned(self) -> dict[str, pd.Index]:
        """Where each sample and each image stands in the plan: finds its part without reading any table of samples."""
        return {column: pd.Index(self.plan[column]) for column in ("sample_id", "image_id")}

    def _parts_with(self, column: str, value: str) -> list[Part]:
        """Return the committed parts that a sample or an image is planned for."""
        rows = self._planned[column].get_indexer_for([value])
        pairs = self.plan.iloc[rows[rows >= 0]][["store", "part"]].drop_duplicates().itertuples(index=False, name=None)
        return [self._numbered[pair] for pair in pairs if pair in self._numbered]

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
            is kept, its arrays: ``key`` are the positions 0..n-1 of the sample's sequence, stored tokens or not,
            ``key_role``, ``key_grid``, ``key_patch_row`` and ``key_patch_col`` (from format 0.4 on) say what they are,
            and ``query_position`` where each query stands (-1 where the sample has none). An array that was chosen for
            fewer roles, layers or blocks than others is NaN (integers: -1) elsewhere, and its attributes ``roles``,
            ``layers`` and ``blocks`` say what it keeps. Attributes of the sample: sample_id, image_id, item_id,
            prompt_id, prompt_kind, prompt (text) and references (list of text).

        Raises
        ------
        UsageError
            When no sample, or more than one, has this id.
        """
        found = [
            (part, row)
            for part in self._parts_with("sample_id", sample_id)
            for _, row in part.samples[part.samples["sample_id"] == sample_id].iterrows()
        ]
        if len(found) != 1:
            raise UsageError(self._wrong_sample(sample_id, len(found)))
        [(part, row)] = found
        runs = [slice(segment["start"], segment["stop"]) for segment in row["segments"]] or [slice(0, 0)]
        pieces = [part.open("token", run) for run in runs]
        joined = xr.concat(pieces, "token", data_vars="minimal", coords="minimal", compat="override", join="override")
        if pd.notna(row["key_start"]):
            joined = joined.merge(on_blocks(open_keys(part, row), joined["block"]), compat="override", join="exact")
        return joined.assign_attrs(sample_attributes(row))

    def thumbnail(self, image_id: str) -> bytes | None:
        """Read a small JPEG of an image, upright and in RGB; None where the store was extracted without thumbnails.

        Raises
        ------
        UsageError
            When no committed sample is of this image.
        """
        parts = [
            part for part in self._parts_with("image_id", image_id) if (part.samples["image_id"] == image_id).any()
        ]
        if not parts:
            raise UsageError(
                f"no committed sample of {self.url} is of image {image_id!r}: {self._hint(image_id, 'image_id')}"
            )
        return next(filter(None, (part.thumbnail(image_id) for part in parts)), None)

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
            coordinates of tokens, the sample's ids, prompt and references as attributes. Of tokens, layers and blocks
            it gets those that any of ``arrays`` keeps: one array alone holds no NaN for what was not chosen; of
            several, each says in its attributes ``roles``, ``layers`` and ``blocks`` what it keeps. Returns a mapping,
            each entry a column; or anything else, the column ``value``. What has no dimension (of NumPy, xarray, torch)
            becomes a scalar; an array is kept as a NumPy array in its cell.
        arrays
            Data arrays of tokens or keys to read (``attention``); ``()`` for the coordinates of tokens alone.
        layers
            Layer numbers to read of hidden states, or of the lens; all when None.
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
        names = (arrays,) if isinstance(arrays, str) else tuple(arrays)
        places = layer_places(self.record["capture"], names, layers)
        return map_samples(self.parts, rows, function, arrays=names, layers=places)

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
        """Iterate once over all stored states of tokens, in batches: for probes and sparse autoencoders.

        Each stored token comes once; a prefix that several samples share comes once. ``torch.from_numpy`` takes the
        states as they are.

        Parameters
        ----------
        layer
            A stored layer number: states are (token, dim). Several: (token, layer, dim), in their order.
        roles
            Only tokens of this role, or of these; all whose states are stored when None.
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
        return f"no committed sample of {self.url} is called {sample_id!r}: {self._hint(sample_id, 'sample_id')}"

    def _hint(self, asked: str, column: str) -> str:
        known = sorted(set(self.samples[column]))
        # Looking at each of very many names takes long; those that begin alike are neighbours.
        place = bisect.bisect(known, asked)
        near = known[max(place - _NAMES_COMPARED // 2, 0) : place + _NAMES_COMPARED // 2]
        close = difflib.get_close_matches(asked, near, n=3, cutoff=0.4)
        return f"did you mean {', '.join(close)}?" if close else f"see the column {column} of Store.samples"
