"""Phases of a store: the detector run on the curves that contextualization gives.

For every store, prompt group and pair the mean curve over images is cut, with intervals over items, and so is every
image's own curve, because the interval of a mean over hundreds of images often has no width; the inter-modal curve
(`image-text`) is the headline, and for it every sample's own curve is cut too. Layer 0, which no block has touched, and
the row after the final norm stay out of the fit; layer 0 joins on request.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.contextualization_results import StoreResult
from analyses.curves import Band, band, image_curves
from analyses.identity import StoreIdentity
from analyses.phase_detection import Detection, check_layers, cut_each, detect
from analyses.prompt_groups import PromptGroup, prompt_groups
from analyses.resampling import check_bootstraps
from engine.errors import UsageError

__all__ = ["HEADLINE", "QUANTILES", "CurvePhases", "SamplePhases", "check_request", "find_phases", "name_missing"]

HEADLINE = "image-text"

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the boundaries of images' own curves."""


class SamplePhases(NamedTuple):
    """Each sample's own boundaries: samples (prompt_id, sample_id, image_id), start and end (sample, phase)."""

    samples: pd.DataFrame
    start: NDArray[np.int64]
    end: NDArray[np.int64]


class CurvePhases(NamedTuple):
    """Phases of one mean curve.

    Attributes
    ----------
    identity : StoreIdentity
    block_count : int
        L, so that depth = layer / L.
    group : PromptGroup
    pair : str
    detection : Detection
    layers : array (layer), int32
        All layers of the curve; the fit may have left layer 0 out.
    band : Band
        Mean and spread on ``layers``.
    ends : array (phase, quantile), int64
        Layers at `QUANTILES` of the ends of the phases of each image's own curve.
    samples : SamplePhases or None
        For the headline pair.
    """

    identity: StoreIdentity
    block_count: int
    group: PromptGroup
    pair: str
    detection: Detection
    layers: NDArray[np.int32]
    band: Band
    ends: NDArray[np.int64]
    samples: SamplePhases | None


def check_request(
    layers: Mapping[str, NDArray[np.integer]], *, pattern: str, bootstraps: int, include_layer_0: bool
) -> None:
    """Refuse before anything is computed what no curve could be cut by.

    Parameters
    ----------
    layers : mapping
        From a store's name to its layers, array (layer) of int.
    pattern, bootstraps, include_layer_0
        As in `find_phases`.

    Raises
    ------
    UnfitStoreError
        A store has too few layers for the pattern.
    UsageError
        There is no such pattern, or fewer than one bootstrap.
    """
    check_bootstraps(bootstraps)
    for store, own in layers.items():
        try:
            check_layers(int(_fitted(own, include_layer_0).sum()), pattern)
        except UsageError as error:
            raise type(error)(f"{store}: {error}") from None


def find_phases(
    results: Sequence[StoreResult],
    *,
    pattern: str = "four",
    bootstraps: int = 1000,
    seed: int = 0,
    include_layer_0: bool = False,
) -> list[CurvePhases]:
    """Find the phases of every store, prompt group and pair.

    Parameters
    ----------
    results : sequence of StoreResult
    pattern : ``"four"``, ``"three"`` or ``"auto"``
    bootstraps, seed : int
    include_layer_0 : bool
        Fit layer 0 too.

    Returns
    -------
    list of CurvePhases
        A curve without any image (every text set is empty, say) is left out; `name_missing` names it.

    Raises
    ------
    UsageError
        Too few layers for the pattern, or fewer than one bootstrap.
    """
    layers_of = {item.identity.store: item.result.layers for item in results}
    check_request(layers_of, pattern=pattern, bootstraps=bootstraps, include_layer_0=include_layer_0)
    found = []
    for item, group, chosen, row, pair in _curves(results):
        result = item.result
        samples, values = result.samples[chosen], result.cosine[chosen, :, row]
        own = image_curves(samples, values)
        if not len(own.curves):
            continue
        fitted = _fitted(result.layers, include_layer_0)
        layers, curves = result.layers[fitted], own.curves[:, fitted]
        detection = detect(curves, layers, pattern, items=own.items, bootstraps=bootstraps, seed=seed)
        ends = cut_each(curves, layers, detection.shape)[1]
        found.append(
            CurvePhases(
                identity=item.identity,
                block_count=result.block_count,
                group=group,
                pair=pair,
                detection=detection,
                layers=result.layers,
                band=band(own.curves, own.items),
                ends=np.quantile(ends, QUANTILES, axis=0, method="inverted_cdf").T.astype(np.int64),
                samples=_of_samples(samples, values[:, fitted], layers, detection) if pair == HEADLINE else None,
            )
        )
    return found


def name_missing(results: Sequence[StoreResult], found: Sequence[CurvePhases]) -> list[str]:
    """Say of which curves there are no phases, because no image has one: a sentence per store and prompt group."""
    there = {(curve.identity.store, curve.group, curve.pair) for curve in found}
    missing: dict[str, list[str]] = {}
    for item, group, _, _, pair in _curves(results):
        if (item.identity.store, group, pair) not in there:
            missing.setdefault(f"{item.identity.store}, {group.title}", []).append(pair)
    return [
        f"{name}: no image has a curve {' or '.join(pairs)}, so it is left out of phases"
        for name, pairs in missing.items()
    ]


def _fitted(layers: NDArray[np.integer], include_layer_0: bool) -> NDArray[np.bool_]:
    return (layers > 0) | include_layer_0


def _curves(
    results: Sequence[StoreResult],
) -> Iterator[tuple[StoreResult, PromptGroup, NDArray[np.bool_], int, str]]:
    """All curves there could be: store, prompt group with its samples, row of pairs and its name."""
    for item in results:
        for group, chosen in prompt_groups(item.result.samples):
            for row, (pair, self_pairs) in enumerate(item.result.rows):
                if not self_pairs:
                    yield item, group, chosen, row, pair


def _of_samples(
    samples: pd.DataFrame, values: NDArray[np.float64], layers: NDArray[np.int32], detection: Detection
) -> SamplePhases:
    whole = np.isfinite(values).all(axis=1)
    start, end = cut_each(values[whole], layers, detection.shape)
    return SamplePhases(samples[["prompt_id", "sample_id", "image_id"]][whole], start, end)
