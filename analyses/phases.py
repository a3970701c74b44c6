"""Phases of a store: the detector run on the curves that contextualization gives.

For every store, prompt kind and pair the mean curve over images is cut, with intervals over images; the inter-modal
curve (`image-text`) is the headline, and for it every sample's own curve is cut too. Layer 0, which no block has
touched, and the row after the final norm stay out of the fit; layer 0 joins on request.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.contextualization_results import StoreResult
from analyses.curves import Band, band, image_curves, ordered_kinds
from analyses.identity import StoreIdentity
from analyses.phase_detection import Detection, cut_each, detect
from engine.errors import UsageError

__all__ = ["HEADLINE", "CurvePhases", "SamplePhases", "find_phases"]

HEADLINE = "image-text"


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
    prompt_kind, pair : str
    detection : Detection
    layers : array (layer), int32
        All layers of the curve; the fit may have left layer 0 out.
    band : Band
        Mean and spread on ``layers``.
    samples : SamplePhases or None
        For the headline pair.
    """

    identity: StoreIdentity
    prompt_kind: str
    pair: str
    detection: Detection
    layers: NDArray[np.int32]
    band: Band
    samples: SamplePhases | None


def find_phases(
    results: Sequence[StoreResult],
    *,
    pattern: str = "four",
    bootstraps: int = 1000,
    seed: int = 0,
    include_layer_0: bool = False,
) -> list[CurvePhases]:
    """Find the phases of every store, prompt kind and pair.

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
        A curve without any image (every text set is empty) is left out.

    Raises
    ------
    UsageError
        Too few layers for the pattern, or fewer than one bootstrap.
    """
    if bootstraps < 1:
        raise UsageError(f"--bootstraps {bootstraps}: at least 1 is needed for an interval")
    found = []
    for item in results:
        result = item.result
        fitted = (result.layers > 0) | include_layer_0
        for kind in ordered_kinds(result.samples["prompt_kind"]):
            chosen = (result.samples["prompt_kind"] == kind).to_numpy()
            samples = result.samples[chosen]
            for row, (pair, self_pairs) in enumerate(result.rows):
                values = result.cosine[chosen, :, row]
                curves = image_curves(samples["image_id"], values)[1]
                if self_pairs or not len(curves):
                    continue
                layers = result.layers[fitted]
                try:
                    detection = detect(curves[:, fitted], layers, pattern, bootstraps=bootstraps, seed=seed)
                except UsageError as error:
                    raise UsageError(f"{item.identity.store}: {error}") from None
                own = _of_samples(samples, values[:, fitted], layers, detection) if pair == HEADLINE else None
                found.append(CurvePhases(item.identity, kind, pair, detection, result.layers, band(curves), own))
    return found


def _of_samples(
    samples: pd.DataFrame, values: NDArray[np.float64], layers: NDArray[np.int32], detection: Detection
) -> SamplePhases:
    whole = np.isfinite(values).all(axis=1)
    start, end = cut_each(values[whole], layers, detection.shape)
    return SamplePhases(samples[["prompt_id", "sample_id", "image_id"]][whole], start, end)
