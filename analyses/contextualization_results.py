"""Contextualization as results: a tidy table and a labelled dataset, over any number of stores.

The dataset is complete: `from_dataset` gives back what `to_dataset` was given, so that an analysis that needs
contextualization reads it instead of computing it again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS, Contextualization
from analyses.curves import band, image_curves, ordered_kinds
from analyses.identity import StoreIdentity
from analyses.part_task import PairRow, pair_rows

__all__ = ["CONTEXTUALIZATION_SCHEMA", "StoreResult", "from_dataset", "to_dataset", "to_tables"]

STORE_COLUMNS = [(name, pa.string()) for name in ("store", "model", "source", "prompt_kind", "prompt_id")]

CONTEXTUALIZATION_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("layer", pa.int32()),
        ("depth", pa.float64()),
        ("normed", pa.bool_()),
        ("pair", pa.string()),
        ("text_roles", pa.string()),
        ("self_pairs", pa.bool_()),
        ("cosine", pa.float64()),
    ]
)

_SAMPLES_AT_ONCE = 256  # rows of a table in memory follow this, not the store


class StoreResult(NamedTuple):
    """Contextualization of one store, and which store that is."""

    identity: StoreIdentity
    result: Contextualization


def to_tables(results: Sequence[StoreResult]) -> Iterator[pa.Table]:
    """Yield the tidy table in pieces: per sample each row of pairs, layer after layer, the normed layer last."""
    for identity, result in results:
        for start in range(0, len(result.samples), _SAMPLES_AT_ONCE):
            yield _tidy(identity, result, slice(start, start + _SAMPLES_AT_ONCE))


def _tidy(identity: StoreIdentity, result: Contextualization, which: slice) -> pa.Table:
    layers = np.concatenate([result.layers, result.layers[-1:]] if result.normed is not None else [result.layers])
    values = result.cosine[which]
    if result.normed is not None:
        values = np.concatenate([values, result.normed[which, np.newaxis]], axis=1)
    samples, points, rows = values.shape
    size = samples * points * rows

    def of_sample(column: str) -> pa.Array:
        return pa.array(np.repeat(result.samples[column].to_numpy(dtype=object)[which], points * rows), pa.string())

    def of_point(array: NDArray[np.generic]) -> pa.Array:
        return pa.array(np.tile(array, samples * rows))

    def of_row(array: list[object]) -> pa.Array:
        return pa.array(np.tile(np.repeat(np.array(array), points), samples).tolist())

    columns = {
        **{name: pa.repeat(getattr(identity, name), size) for name in ("store", "model", "source")},
        **{name: of_sample(name) for name in SAMPLE_COLUMNS},
        "layer": of_point(layers),
        "depth": of_point(layers / result.block_count),
        "normed": of_point(np.arange(points) >= len(result.layers)),
        "pair": of_row([row.pair for row in result.rows]),
        "text_roles": pa.repeat(",".join(result.text_roles), size),
        "self_pairs": of_row([row.self_pairs for row in result.rows]),
        "cosine": pa.array(values.transpose(0, 2, 1).ravel()),
    }
    return pa.table(columns, schema=CONTEXTUALIZATION_SCHEMA)


def to_dataset(results: Sequence[StoreResult], settings: str) -> xr.Dataset:
    """Label the cosines of every sample, and the curves of every store and prompt kind.

    Parameters
    ----------
    results : sequence of StoreResult
        With the same rows.
    settings : str
        What the results depend on; kept in the attributes.
    """
    rows = results[0].result.rows
    layers = np.unique(np.concatenate([result.layers for _, result in results]))
    joined = xr.Dataset(
        {
            "cosine": (
                ("sample", "layer", "row"),
                np.concatenate([_spread(result.cosine, result.layers, layers) for _, result in results]),
            ),
            "cosine_normed": (("sample", "row"), np.concatenate([_normed(result) for _, result in results])),
            "tokens": (("sample", "set"), np.concatenate([result.counts for _, result in results])),
        },
        coords={
            "layer": ("layer", layers, {"long_name": "point of the residual stream, 0 enters block 1", "units": "1"}),
            "pair": ("row", _texts(row.pair for row in rows)),
            "self_pairs": ("row", np.array([row.self_pairs for row in rows])),
            "set": ("set", _texts(["image", "text"])),
            "store": (
                "sample",
                _texts(identity.store for identity, result in results for _ in range(len(result.samples))),
            ),
            **{
                column: ("sample", _texts(value for _, result in results for value in result.samples[column]))
                for column in SAMPLE_COLUMNS
            },
        },
    )
    joined["cosine"].attrs = {"long_name": "mean cosine similarity", "units": "1"}
    joined["cosine_normed"].attrs = {"long_name": "mean cosine similarity after the final norm", "units": "1"}
    joined["tokens"].attrs = {"long_name": "tokens of the sample in the set", "units": "1"}
    return joined.merge(_curves(results, layers)).assign_attrs(
        title="Contextualization",
        settings=settings,
        stores=json.dumps([_describe(item) for item in results]),
        text_roles=",".join(results[0].result.text_roles),
    )


def _texts(values: Iterable[str]) -> NDArray[np.object_]:
    # Not NumPy's fixed-length strings: Zarr v3 has no specification for them.
    return np.array(list(values), dtype=object)


def _describe(item: StoreResult) -> dict[str, object]:
    result = item.result
    return {
        **item.identity.asdict(),
        "layers": result.layers.tolist(),
        "blocks": result.block_count,
        "samples": len(result.samples),
        "samples_without_text": int((result.counts[:, 1] == 0).sum()),
        "read_from": result.source,
        "normed": result.normed is not None,
    }


def _spread(values: NDArray[np.float64], own: NDArray[np.int32], layers: NDArray[np.int32]) -> NDArray[np.float64]:
    """Values (sample, layer, row) on the layers of all stores, NaN where this store has none."""
    spread = np.full((len(values), len(layers), values.shape[2]), np.nan)
    spread[:, np.searchsorted(layers, own)] = values
    return spread


def _normed(result: Contextualization) -> NDArray[np.float64]:
    return np.full((len(result.samples), len(result.rows)), np.nan) if result.normed is None else result.normed


def _curves(results: Sequence[StoreResult], layers: NDArray[np.int32]) -> xr.Dataset:
    """Mean curve, spread and interval of every store, prompt kind and row of pairs, and how many images made it."""
    names: list[tuple[str, str]] = []
    bands: list[NDArray[np.float64]] = []
    images: list[list[int]] = []
    for identity, result in results:
        for kind in ordered_kinds(result.samples["prompt_kind"]):
            chosen = (result.samples["prompt_kind"] == kind).to_numpy()
            of_rows = [
                band(image_curves(result.samples["image_id"][chosen], result.cosine[chosen, :, row])[1])
                for row in range(len(result.rows))
            ]
            stacked = np.stack([np.stack(item[:4], axis=1) for item in of_rows], axis=2)  # (layer, statistic, row)
            spread = np.full((len(layers), *stacked.shape[1:]), np.nan)
            spread[np.searchsorted(layers, result.layers)] = stacked
            names.append((identity.store, kind))
            bands.append(spread)
            images.append([item.images for item in of_rows])
    values = np.stack(bands)
    texts = {
        "curve_mean": "mean over images of the mean cosine similarity",
        "curve_std": "standard deviation over images",
        "curve_low": "lower end of the 95 % bootstrap interval of the mean",
        "curve_high": "upper end of the 95 % bootstrap interval of the mean",
    }
    return xr.Dataset(
        {
            **{
                name: (("curve", "layer", "row"), values[:, :, k], {"long_name": text, "units": "1"})
                for k, (name, text) in enumerate(texts.items())
            },
            "curve_images": (("curve", "row"), np.array(images), {"long_name": "images in the curve", "units": "1"}),
        },
        coords={
            "layer": layers,
            "curve_store": ("curve", _texts(store for store, _ in names)),
            "curve_prompt_kind": ("curve", _texts(kind for _, kind in names)),
        },
    )


def from_dataset(dataset: xr.Dataset) -> list[StoreResult]:
    """Take `to_dataset` back.

    Raises
    ------
    ValueError
        Values are missing: a lost chunk reads as NaN, as 0, as the empty text. What else may be raised where files
        are damaged is for the caller to expect.
    """
    rows = tuple(
        PairRow(str(pair), bool(own)) for pair, own in zip(dataset.pair.values, dataset.self_pairs.values, strict=True)
    )
    if rows not in (pair_rows(False), pair_rows(True)):
        raise ValueError("the rows of pairs are not those of contextualization")
    results, start = [], 0
    for entry in json.loads(dataset.attrs["stores"]):
        own = dataset.isel(sample=slice(start, start + entry["samples"])).sel(layer=entry["layers"]).load()
        start += entry["samples"]
        identity = StoreIdentity.fromdict(entry)
        result = Contextualization(
            samples=pd.DataFrame({name: own[name].values.tolist() for name in SAMPLE_COLUMNS}),
            layers=np.asarray(entry["layers"], np.int32),
            block_count=entry["blocks"],
            rows=rows,
            cosine=own["cosine"].values,
            normed=own["cosine_normed"].values if entry["normed"] else None,
            counts=own["tokens"].values,
            text_roles=tuple(dataset.attrs["text_roles"].split(",")),
            source=entry["read_from"],
        )
        _refuse_holes(result)
        results.append(StoreResult(identity, result))
    return results


def _refuse_holes(result: Contextualization) -> None:
    """Refuse results whose cosines are not NaN exactly where the token counts leave no pair."""
    image, text = result.counts.T
    enough = {
        PairRow("image-text", False): (image > 0) & (text > 0),
        PairRow("image-image", False): image > 1,
        PairRow("text-text", False): text > 1,
        PairRow("image-image", True): image > 0,
        PairRow("text-text", True): text > 0,
    }
    expected = np.stack([enough[row] for row in result.rows], axis=1)
    values = result.cosine if result.normed is None else np.append(result.cosine, result.normed[:, np.newaxis], axis=1)
    if (np.isfinite(values) != expected[:, np.newaxis]).any():
        raise ValueError("cosines are missing")
    if result.samples.eq("").to_numpy().any():
        raise ValueError("names of samples are missing")
