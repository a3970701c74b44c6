"""LogitLens as a labelled dataset, over any number of stores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.curves import Band, band, image_curves
from analyses.identity import StoreIdentity
from analyses.lens_scores import SHORTEST_PREFIX, VARIANTS
from analyses.lens_trajectory import MEASURES, WHATS
from analyses.logit_lens import SCORES, LogitLens
from analyses.part_lens import COUNTS, UNKNOWN
from analyses.prompt_groups import prompt_groups
from analyses.stop_words import STOP_WORDS_NAME

__all__ = ["CURVES", "GroupCurves", "StoreLens", "group_curves", "to_dataset"]

CURVES = (*((score, variant) for score in SCORES for variant in VARIANTS), ("agreement", ""))
"""Score and variant of each curve; agreement with the last layer has none."""

_STATISTICS = {
    "mean": "mean over images",
    "std": "standard deviation over images",
    "low": "lower end of the 95 % bootstrap interval of the mean",
    "high": "upper end of the 95 % bootstrap interval of the mean",
}
_RESAMPLED = "items (column item_id), drawn with replacement; the statistic is the mean over images of the items drawn"
_VARIANT_TEXTS = {
    "unique": "distinct words; correct = decoded words among the captions' words",
    "token": "words with repetition, one per token; recall is that of unique",
    "prefix": f"distinct words of pieces that start a word, correct where one begins a word of the captions "
    f"(at least {SHORTEST_PREFIX} characters, or all of it)",
}
_COUNT_TEXTS = {
    "decoded": "decoded words",
    "correct": "decoded words that match",
    "recalled": "distinct words of the captions that are matched",
}


class StoreLens(NamedTuple):
    """LogitLens of one store, and which store that is."""

    identity: StoreIdentity
    result: LogitLens


class GroupCurves(NamedTuple):
    """Curves over layers of one prompt group.

    Attributes
    ----------
    statistics : array (statistic, curve, layer), float64
        Statistics are mean, std, low and high; curves are `CURVES`. NaN without any image.
    images : array (curve), int64
        Images with captions; for agreement, those with image tokens and the last layer.
    nothing_decoded : array (variant, layer), int64
        Samples whose precision is 0 because no word was decoded.
    nothing_referred, without_captions : int
        Samples whose captions hold stop words only, and those without captions, which are in no mean.
    trajectory : array (statistic, measure, what, layer), float64, or None
        Measures and whats are those of `lens_trajectory`.
    """

    statistics: NDArray[np.float64]
    images: NDArray[np.int64]
    nothing_decoded: NDArray[np.int64]
    nothing_referred: int
    without_captions: int
    trajectory: NDArray[np.float64] | None


def group_curves(result: LogitLens, chosen: NDArray[np.bool_], bootstraps: int, seed: int) -> GroupCurves:
    """Average the samples of a prompt group, image by image."""
    scores = {name: result.score(name) for name in SCORES}
    values = [scores[name][VARIANTS.index(variant)] for name, variant in CURVES[:-1]]

    def of_images(array: NDArray[np.floating]) -> Band:
        own = image_curves(result.samples[chosen], array[chosen])
        return band(own.curves, own.items, bootstraps=bootstraps, seed=seed)

    bands = [of_images(array) for array in [*values, result.agreement]]
    trajectory: NDArray[np.float64] | None = None
    if result.trajectory is not None:
        of_each = [[np.stack(of_images(array)[:4]) for array in of_measure] for of_measure in result.trajectory]
        trajectory = np.moveaxis(np.array(of_each), 2, 0)
    return GroupCurves(
        np.stack([found[:4] for found in bands], axis=1),
        np.array([found.images for found in bands]),
        result.nothing_decoded[:, chosen].sum(axis=1),
        int(result.nothing_referred[chosen].sum()),
        int((result.references[chosen] == UNKNOWN).sum()),
        trajectory,
    )


def to_dataset(
    results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]], attributes: Mapping[str, Any]
) -> xr.Dataset:
    """Label the values of every sample, and the curves of every store and prompt group.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
    attributes : mapping
        What the results depend on; joins the dataset's own attributes.
    """
    layers = np.unique(np.concatenate([own.layers for _, own in results]))
    return xr.merge([_of_samples(results, layers), _of_groups(results, curves, layers)]).assign_attrs(
        title="LogitLens of image tokens",
        stores=json.dumps([_describe(item) for item in results]),
        stop_words=STOP_WORDS_NAME,
        variants=json.dumps(_VARIANT_TEXTS),
        certified_share=json.dumps({identity.store: _certified(result) for identity, result in results}),
        resampled=_RESAMPLED,
        **attributes,
    )


def _describe(item: StoreLens) -> dict[str, object]:
    identity, result = item
    return {
        **identity.asdict(),
        "blocks": result.block_count,
        "samples": len(result.samples),
        "items": int(result.samples["item_id"].nunique()),
        "pieces_from": result.source,
        "topk": result.topk,
        "certified": _certified(result),
    }


def _certified(result: LogitLens) -> float | None:
    return None if np.isnan(result.certified) else result.certified


def _spread(values: NDArray[Any], own: LogitLens, layers: NDArray[np.int32]) -> NDArray[Any]:
    """Lay one store's values, whose last axis is the layer, on the layers of all stores; NaN or -1 between."""
    missing = np.nan if np.issubdtype(values.dtype, np.floating) else UNKNOWN
    wide = np.full((*values.shape[:-1], len(layers)), missing, values.dtype)
    wide[..., np.searchsorted(layers, own.layers)] = values
    return wide


def _texts(values: Iterable[str]) -> NDArray[np.object_]:
    # Not NumPy's fixed-length strings: Zarr v3 has no specification for them.
    return np.array(list(values), dtype=object)


def _of_samples(results: Sequence[StoreLens], layers: NDArray[np.int32]) -> xr.Dataset:
    def join(values: Iterable[NDArray[Any]], axis: int) -> NDArray[Any]:
        spread = [_spread(array, own, layers) for array, (_, own) in zip(values, results, strict=True)]
        return np.concatenate(spread, axis=axis)

    each = [own for _, own in results]
    dims = ("variant", "sample", "layer")
    no_captions = "-1 where the image has no captions"
    variables: dict[str, Any] = {
        **{
            name: (dims, join((own.score(name) for own in each), 1), {"long_name": f"{of[0]} / {of[1]}", "units": "1"})
            for name, of in SCORES.items()
        },
        **{
            name: (
                dims,
                join((own.counts[name] for own in each), 1),
                {"long_name": f"{_COUNT_TEXTS[name]}; {no_captions}", "units": "1"},
            )
            for name in COUNTS
        },
        "references": (
            "sample",
            np.concatenate([own.references for own in each]),
            {"long_name": f"distinct words of the captions; {no_captions}", "units": "1"},
        ),
        "image_tokens": (
            "sample",
            np.concatenate([own.image_tokens for own in each]),
            {"long_name": "stored image tokens of the sample", "units": "1"},
        ),
        "agreement": (
            ("sample", "layer"),
            join((own.agreement for own in each), 0),
            {"long_name": "share of image tokens whose best piece is that of the last layer", "units": "1"},
        ),
    }
    if all(own.trajectory is not None for own in each):
        long_names = ("entropy of the lens' distribution", "divergence of the last layer's distribution from it")
        for number, (name, text) in enumerate(zip(MEASURES, long_names, strict=True)):
            values = join((own.trajectory[number] for own in each if own.trajectory is not None), 1)
            variables[name] = (("what", "sample", "layer"), values, {"long_name": text, "units": "nat"})
    coordinates = {
        "variant": ("variant", _texts(VARIANTS)),
        "layer": ("layer", layers, {"long_name": "layer of the language model, 0..L", "units": "1"}),
        "store": ("sample", _texts(identity.store for identity, own in results for _ in range(len(own.samples)))),
        **{
            column: ("sample", _texts(value for own in each for value in own.samples[column]))
            for column in SAMPLE_COLUMNS
        },
    }
    return xr.Dataset(variables, coordinates | ({"what": ("what", _texts(WHATS))} if "entropy" in variables else {}))


def _of_groups(
    results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]], layers: NDArray[np.int32]
) -> xr.Dataset:
    """Curves of every store and prompt group, and how many images and samples made them."""
    names = [(identity.store, group) for identity, own in results for group, _ in prompt_groups(own.samples)]
    found = [one for own in curves for one in own]
    owners = [own for (_, own), of_store in zip(results, curves, strict=True) for _ in of_store]
    statistics = np.stack([_spread(one.statistics, own, layers) for one, own in zip(found, owners, strict=True)])
    of_scores = statistics[:, :, :-1].reshape(len(found), len(_STATISTICS), len(SCORES), len(VARIANTS), len(layers))
    dims = ("curve", "variant", "layer")
    variables: dict[str, Any] = {}
    for number, (statistic, text) in enumerate(_STATISTICS.items()):
        for place, score in enumerate(SCORES):
            variables[f"{score}_{statistic}"] = (dims, of_scores[:, number, place], {"long_name": text, "units": "1"})
        agreement = statistics[:, number, -1]
        variables[f"agreement_{statistic}"] = (("curve", "layer"), agreement, {"long_name": text, "units": "1"})
        if all(one.trajectory is not None for one in found):
            for place, measure in enumerate(MEASURES):
                each = [one.trajectory[number, place] for one in found if one.trajectory is not None]
                spread = [_spread(array, own, layers) for array, own in zip(each, owners, strict=True)]
                of_what = ("curve", "what", "layer")
                variables[f"{measure}_{statistic}"] = (of_what, np.stack(spread), {"long_name": text, "units": "nat"})
    decoded = [_spread(one.nothing_decoded, own, layers) for one, own in zip(found, owners, strict=True)]
    variables |= {
        "nothing_decoded": (dims, np.stack(decoded), {"long_name": "samples without any decoded word; precision 0"}),
        "nothing_referred": (
            "curve",
            [one.nothing_referred for one in found],
            {"long_name": "samples whose captions hold stop words only; recall 0"},
        ),
        "without_captions": (
            "curve",
            [one.without_captions for one in found],
            {"long_name": "samples without captions, which are in no mean"},
        ),
    }
    for measure in dict.fromkeys(measure for measure, _ in CURVES):
        images = [int(one.images[[name for name, _ in CURVES].index(measure)]) for one in found]
        variables[f"{measure}_images"] = ("curve", images, {"long_name": f"images in the curve of {measure}"})
    return xr.Dataset(
        variables,
        {
            "curve_store": ("curve", _texts(store for store, _ in names)),
            "curve_prompt_kind": ("curve", _texts(group.kind for _, group in names)),
            "curve_prompt_id": ("curve", _texts(group.prompt_id for _, group in names)),
        },
    )
