"""Norm-attention as a labelled dataset, over any number of stores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.curves import Band, band, image_curves
from analyses.identity import StoreIdentity
from analyses.key_places import SEGMENTS
from analyses.norm_attention import MEASURES, NormAttention
from analyses.part_attention import MAP_MEASURES
from analyses.prompt_groups import PromptGroup, prompt_groups
from engine.vocabulary import ROLES

__all__ = ["GroupCurves", "StoreAttention", "group_curves", "to_dataset"]

_RESAMPLED = "items (column item_id), drawn with replacement; the statistic is the mean over images of the items drawn"
_NORM_UNITS = "norm of states"
_UNITS = f"1; for attention_norm {_NORM_UNITS}"
_CURVES = {
    "mean": "mean over images",
    "std": "standard deviation over images",
    "low": "lower end of the 95 % bootstrap interval of the mean",
    "high": "upper end of the 95 % bootstrap interval of the mean",
}


class StoreAttention(NamedTuple):
    """Norm-attention of one store, and which store that is."""

    identity: StoreIdentity
    result: NormAttention


class GroupCurves(NamedTuple):
    """Curves over blocks of one prompt group and query.

    Attributes
    ----------
    statistics : array (statistic, measure, block, role), float64
        Statistics are mean, std, low and high; measures are `norm_attention.MEASURES`. NaN without any image.
    images : int
    """

    statistics: NDArray[np.float64]
    images: int


def group_curves(result: NormAttention, chosen: NDArray[np.bool_], query: int) -> GroupCurves:
    """Average the samples of a prompt group, image by image; those without the query are left out."""
    values = np.stack([result.values[name][chosen, query] for name in MEASURES], axis=1)
    samples = result.samples[chosen]
    own = image_curves(samples, values.reshape(len(values), -1))
    found: Band = band(own.curves, own.items)
    return GroupCurves(np.stack(found[:4]).reshape(4, *values.shape[1:]), found.images)


def to_dataset(results: Sequence[StoreAttention], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Label the values of every sample, and curves and maps of every store and prompt group.

    Parameters
    ----------
    results : sequence of StoreAttention
    attributes : mapping
        What the results depend on; joins the dataset's own attributes.
    """
    axes = _Axes.of([result for _, result in results])
    return xr.merge([_of_samples(results, axes), _of_groups(results, axes)]).assign_attrs(
        title="Norm-based attention",
        stores=json.dumps([_describe(item) for item in results]),
        without_sinks=int(results[0].result.without_sinks),
        sinks="position 0, and the first special token of the sequence (BOS)",
        resampled=_RESAMPLED,
        **attributes,
    )


class _Axes(NamedTuple):
    """What the axes of all stores together are."""

    queries: list[str]
    blocks: NDArray[np.int32]
    roles: list[str]
    places: list[tuple[int, int]]
    grid: tuple[int, int]

    @classmethod
    def of(cls, results: Sequence[NormAttention]) -> "_Axes":
        places = {place for own in results for place in _places(own)}
        grids = [own.maps.grid.mean.shape[-2:] for own in results if own.maps.grid is not None]
        return cls(
            queries=list(dict.fromkeys(query for own in results for query in own.queries)),
            blocks=np.unique(np.concatenate([own.blocks for own in results])),
            roles=[role for role in ROLES if any(role in own.roles for own in results)],
            places=sorted(places),
            grid=(max((rows for rows, _ in grids), default=0), max((cols for _, cols in grids), default=0)),
        )

    def spread(self, values: NDArray[Any], own: NormAttention, axes: Sequence[str]) -> NDArray[Any]:
        """Lay one store's values, whose last axes are named, on the axes of all stores, NaN where it has none."""
        for axis, name in zip(range(-len(axes), 0), axes, strict=True):
            known: list[Any] = list(getattr(self, name))
            mine: list[Any] = _places(own) if name == "places" else list(getattr(own, name))
            if mine != known:
                shape = list(values.shape)
                shape[axis] = len(known)
                wide = np.full(shape, np.nan, values.dtype)
                np.moveaxis(wide, axis, 0)[[known.index(entry) for entry in mine]] = np.moveaxis(values, axis, 0)
                values = wide
        return values


def _places(own: NormAttention) -> list[tuple[int, int]]:
    return list(zip(own.maps.places.segment.tolist(), own.maps.places.offset.tolist(), strict=True))


def _texts(values: Iterable[str]) -> NDArray[np.object_]:
    # Not NumPy's fixed-length strings: Zarr v3 has no specification for them.
    return np.array(list(values), dtype=object)


def _describe(item: StoreAttention) -> dict[str, object]:
    identity, result = item
    grid = result.maps.grid
    return {
        **identity.asdict(),
        "blocks": result.block_count,
        "samples": len(result.samples),
        "items": int(result.samples["item_id"].nunique()),
        "queries": list(result.queries),
        "grid": None if grid is None else list(grid.mean.shape[-2:]),
    }


def _of_samples(results: Sequence[StoreAttention], axes: _Axes) -> xr.Dataset:
    dims = ("sample", "query", "block", "role")
    values = {
        name: (
            dims,
            np.concatenate([axes.spread(own.values[name], own, ("queries", "blocks", "roles")) for _, own in results]),
            {"long_name": text, "units": _NORM_UNITS if name == "attention_norm" else "1"},
        )
        for name, text in MEASURES.items()
    }
    counts = np.concatenate([axes.spread(own.keys.astype(np.float64), own, ("roles",)) for _, own in results])
    keys = np.nan_to_num(counts).astype(np.int32)
    return xr.Dataset(
        {**values, "keys": (("sample", "role"), keys, {"long_name": "keys of the sample in the role", "units": "1"})},
        coords={
            "query": ("query", _texts(axes.queries)),
            "block": ("block", axes.blocks, {"long_name": "block of the language model, 1..L", "units": "1"}),
            "role": ("role", _texts(axes.roles)),
            "store": ("sample", _texts(identity.store for identity, own in results for _ in range(len(own.samples)))),
            **{
                column: ("sample", _texts(value for _, own in results for value in own.samples[column]))
                for column in SAMPLE_COLUMNS
            },
        },
    )


def _of_groups(results: Sequence[StoreAttention], axes: _Axes) -> xr.Dataset:
    """Curves and maps of every store and prompt group, and how many images and samples made them."""
    names: list[tuple[str, PromptGroup]] = []
    curves, images, places, place_samples, grids, grid_samples = [], [], [], [], [], []
    for identity, own in results:
        for number, (group, chosen) in enumerate(prompt_groups(own.samples)):
            names.append((identity.store, group))
            found = [group_curves(own, chosen, query) for query in range(len(own.queries))]
            # (query, statistic, measure, block, role) to (statistic, measure, query, block, role)
            stacked = np.stack([item.statistics for item in found]).transpose(1, 2, 0, 3, 4)
            curves.append(axes.spread(stacked, own, ("queries", "blocks", "roles")))
            images.append(axes.spread(np.array([item.images for item in found], float), own, ("queries",)))
            own_places = own.maps.places
            places.append(axes.spread(own_places.mean[:, number], own, ("queries", "blocks", "places")))
            place_samples.append(axes.spread(own_places.samples[number].astype(float), own, ("queries", "places")))
            grids.append(_pad_grid(own, number, axes))
            counted = (
                np.zeros(len(own.queries)) if own.maps.grid is None else own.maps.grid.samples[number].astype(float)
            )
            grid_samples.append(axes.spread(counted, own, ("queries",)))
    dims = ("curve", "measure", "query", "block")
    of_curves = {
        f"curve_{name}": ((*dims, "role"), np.stack(curves)[:, number], {"long_name": text, "units": _UNITS})
        for number, (name, text) in enumerate(_CURVES.items())
    }
    map_dims = ("curve", "map_measure", "query", "block")
    counts = {
        "curve_images": (("curve", "query"), images, "images in the curve"),
        "position_samples": (("curve", "query", "place"), place_samples, "samples that have the place"),
        "patch_samples": (("curve", "query"), grid_samples, "samples whose grid is the commonest of the store"),
    }
    return xr.Dataset(
        {
            **of_curves,
            "position_map": (
                (*map_dims, "place"),
                np.stack(places),
                {"long_name": "mean over samples that have the place", "units": _UNITS},
            ),
            "patch_map": (
                (*map_dims, "patch_row", "patch_col"),
                np.stack(grids),
                {"long_name": "mean over samples that have the patch, on the grid of the whole image", "units": _UNITS},
            ),
            **{
                name: (of, np.nan_to_num(np.stack(array)).astype(np.int32), {"long_name": text, "units": "1"})
                for name, (of, array, text) in counts.items()
            },
        },
        coords={
            "measure": ("measure", _texts(MEASURES)),
            "map_measure": ("map_measure", _texts(MAP_MEASURES)),
            "place_segment": ("place", _texts(SEGMENTS[segment] for segment, _ in axes.places)),
            "place_offset": (
                "place",
                np.array([offset for _, offset in axes.places], np.int32),
                {"long_name": "position from the segment's start; in the segment end from the sequence's end"},
            ),
            "curve_store": ("curve", _texts(store for store, _ in names)),
            "curve_prompt_kind": ("curve", _texts(group.kind for _, group in names)),
            "curve_prompt_id": ("curve", _texts(group.prompt_id for _, group in names)),
        },
    )


def _pad_grid(own: NormAttention, group: int, axes: _Axes) -> NDArray[np.float64]:
    grid = own.maps.grid
    shape = (len(MAP_MEASURES), len(own.queries), len(own.blocks), *axes.grid)
    wide = np.full(shape, np.nan)
    if grid is not None:
        rows, cols = grid.mean.shape[-2:]
        wide[..., :rows, :cols] = grid.mean[:, group]
    flat = wide.reshape(*shape[:3], -1)
    return np.moveaxis(axes.spread(np.moveaxis(flat, -1, 0), own, ("queries", "blocks")), 0, -1).reshape(
        len(MAP_MEASURES), len(axes.queries), len(axes.blocks), *axes.grid
    )
