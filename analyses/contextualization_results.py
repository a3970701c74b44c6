"""Contextualization as a labelled dataset, over any number of stores.

The dataset is complete: `from_dataset` gives back what `to_dataset` was given, so that an analysis that needs
contextualization reads it instead of computing it again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS, Baseline, Contextualization
from analyses.curves import Band, band, image_curves
from analyses.identity import StoreIdentity
from analyses.part_task import PAIRS, PairRow, pair_rows
from analyses.prompt_groups import PromptGroup, prompt_groups

__all__ = ["RESAMPLED", "StoreResult", "from_dataset", "to_dataset"]

RESAMPLED = (
    "items (column item_id: an image, or the images of one item of the source), drawn with replacement; the statistic "
    "is the mean over images of the items drawn"
)
"""What bootstrap intervals resample."""

_BASELINE = (
    "mean cosine similarity of tokens of different images, for text with text also of different prompts, over all "
    "samples of the store; subtracted from the cosines of the layer; intervals take it as fixed"
)


class StoreResult(NamedTuple):
    """Contextualization of one store, and which store that is."""

    identity: StoreIdentity
    result: Contextualization


def to_dataset(results: Sequence[StoreResult], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Label the cosines of every sample, and the curves of every store and prompt group.

    Parameters
    ----------
    results : sequence of StoreResult
        With the same rows and the same adjustment.
    attributes : mapping
        What the results depend on; joins the dataset's own attributes.
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
    adjusted = {"none": "", "anisotropy": ", less that of unrelated tokens", "mean-centred": ", of centred states"}
    name = f"mean cosine similarity{adjusted[results[0].result.adjustment]}"
    joined["cosine"].attrs = {"long_name": name, "units": "1"}
    joined["cosine_normed"].attrs = {"long_name": f"{name}, after the final norm", "units": "1"}
    joined["tokens"].attrs = {"long_name": "tokens of the sample in the set", "units": "1"}
    return xr.merge([joined, _curves(results, layers), *_baselines(results, layers)]).assign_attrs(
        title="Contextualization",
        stores=json.dumps([_describe(item) for item in results]),
        text_roles=",".join(results[0].result.text_roles),
        adjustment=results[0].result.adjustment,
        resampled=RESAMPLED,
        **attributes,
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
        "items": int(result.samples["item_id"].nunique()),
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
    """Mean curve, spread and interval of every store, prompt group and row of pairs, and how many images made it."""
    names: list[tuple[str, PromptGroup]] = []
    bands: list[list[Band]] = []
    values = []
    for identity, result in results:
        for group, chosen in prompt_groups(result.samples):
            samples = result.samples[chosen]
            of_images = (image_curves(samples, result.cosine[chosen, :, row]) for row in range(len(result.rows)))
            of_rows = [band(own.curves, own.items) for own in of_images]
            stacked = np.stack([np.stack(item[:4], axis=1) for item in of_rows], axis=2)  # (layer, statistic, row)
            values.append(_spread(stacked.transpose(1, 0, 2), result.layers, layers))
            names.append((identity.store, group))
            bands.append(of_rows)
    texts = {
        "curve_mean": "mean over images of the mean cosine similarity",
        "curve_std": "standard deviation over images",
        "curve_low": "lower end of the 95 % bootstrap interval of the mean",
        "curve_high": "upper end of the 95 % bootstrap interval of the mean",
    }
    statistics = np.stack(values)
    counts = {"curve_images": "images in the curve", "curve_items": "items that its interval resamples"}
    numbers = np.array([[item[4:] for item in of_rows] for of_rows in bands])
    return xr.Dataset(
        {
            **{
                name: (("curve", "layer", "row"), statistics[:, k], {"long_name": text, "units": "1"})
                for k, (name, text) in enumerate(texts.items())
            },
            **{
                name: (("curve", "row"), numbers[:, :, k], {"long_name": text, "units": "1"})
                for k, (name, text) in enumerate(counts.items())
            },
        },
        coords={
            "layer": layers,
            "curve_store": ("curve", _texts(store for store, _ in names)),
            "curve_prompt_kind": ("curve", _texts(group.kind for _, group in names)),
            "curve_prompt_id": ("curve", _texts(group.prompt_id for _, group in names)),
        },
    )


def _baselines(results: Sequence[StoreResult], layers: NDArray[np.int32]) -> list[xr.Dataset]:
    """Label the anisotropy baseline of every store and pair; nothing where none was subtracted."""
    found = [(identity.store, result.layers, result.baseline) for identity, result in results]
    there = [(store, own, baseline) for store, own, baseline in found if baseline is not None]
    if not there:
        return []
    values = np.concatenate([_spread(baseline.layers[np.newaxis], own, layers) for _, own, baseline in there])
    normed, pairs = (np.stack([baseline[k] for *_, baseline in there]) for k in (1, 2))
    dims = ("baseline_store", "baseline_pair")
    return [
        xr.Dataset(
            {
                "baseline": ((dims[0], "layer", dims[1]), values, {"long_name": _BASELINE, "units": "1"}),
                "baseline_normed": (dims, normed, {"long_name": f"after the final norm: {_BASELINE}", "units": "1"}),
                "baseline_samples": (dims, pairs, {"long_name": "ordered pairs of samples in it", "units": "1"}),
            },
            coords={"layer": layers, dims[0]: _texts(store for store, *_ in there), dims[1]: _texts(PAIRS)},
        )
    ]


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
    for number, entry in enumerate(json.loads(dataset.attrs["stores"])):
        own = dataset.sel(layer=entry["layers"]).isel(sample=slice(start, start + entry["samples"])).load()
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
            adjustment=dataset.attrs["adjustment"],
            baseline=_baseline(own.isel(baseline_store=number)) if "baseline" in own else None,
        )
        _refuse_holes(result)
        results.append(StoreResult(identity, result))
    return results


def _baseline(own: xr.Dataset) -> Baseline:
    return Baseline(own["baseline"].values, own["baseline_normed"].values, own["baseline_samples"].values)


def _refuse_holes(result: Contextualization) -> None:
    """Refuse results whose cosines are not NaN exactly where token counts and baselines leave none."""
    image, text = result.counts.T
    enough = {
        PairRow("image-text", False): (image > 0) & (text > 0),
        PairRow("image-image", False): image > 1,
        PairRow("text-text", False): text > 1,
        PairRow("image-image", True): image > 0,
        PairRow("text-text", True): text > 0,
    }
    if result.baseline is not None and np.isnan(result.baseline.layers[:, result.baseline.pairs > 0]).any():
        raise ValueError("the baseline is missing")
    known = [result.baseline is None or result.baseline.pairs[PAIRS.index(row.pair)] > 0 for row in result.rows]
    expected = np.stack([enough[row] for row in result.rows], axis=1) & np.array(known)
    values = result.cosine if result.normed is None else np.append(result.cosine, result.normed[:, np.newaxis], axis=1)
    if (np.isfinite(values) != expected[:, np.newaxis]).any():
        raise ValueError("cosines are missing")
    if result.samples.eq("").to_numpy().any():
        raise ValueError("names of samples are missing")
