"""Phases as results: tidy tables of curves, samples and scores, and a labelled dataset."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization_results import RESAMPLED
from analyses.contextualization_table import STORE_COLUMNS
from analyses.phase_detection import Phase
from analyses.phases import QUANTILES, CurvePhases

__all__ = [
    "PHASES_IMAGES_SCHEMA",
    "PHASES_SCHEMA",
    "PHASES_SCORES_SCHEMA",
    "to_dataset",
    "to_image_tables",
    "to_score_table",
    "to_table",
]

_INTERVAL_ENDS = {"": "", "_low": ", lower end of its 95 % interval", "_high": ", upper end of its 95 % interval"}
_LAYERS = {
    f"{end}{side}": f"{text} layer of the phase{interval}"
    for end, text in (("start", "first"), ("end", "last"))
    for side, interval in _INTERVAL_ENDS.items()
}
_CHANGES = {
    f"change{side}": f"change of the mean curve within the phase{interval}" for side, interval in _INTERVAL_ENDS.items()
}
_OF_IMAGES = {"end_images_q25": 0.25, "end_images_median": 0.5, "end_images_q75": 0.75}

_ENDS = {"long_name": "quantiles over images of the end of the phase on an image's own curve", "units": "layer"}
_INTERVAL = "95 % percentile interval over bootstrap samples of items, each cut and read on the images drawn"
_SUPPORTED = "on images left out of each bootstrap sample the interval of the change excludes 0 with the phase's sign"

PHASES_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("pair", pa.string()),
        ("pattern", pa.string()),
        ("phase", pa.int32()),
        ("name", pa.string()),
        *((name, pa.int32()) for name in _LAYERS),
        *((name, pa.float64()) for name in _CHANGES),
        ("supported", pa.bool_()),
        *((name, pa.int32()) for name in _OF_IMAGES),
        ("images", pa.int32()),
        ("items", pa.int32()),
        ("adjustment", pa.string()),
    ]
)
"""One row per phase of a mean curve; prompt_id is empty but for prompts of the user's own."""

PHASES_IMAGES_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("phase", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
    ]
)
"""One row per phase of a sample's own inter-modal curve."""


PHASES_SCORES_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("pair", pa.string()),
        ("segments", pa.int32()),
        ("score", pa.float64()),
        ("score_error", pa.float64()),
        ("preferred", pa.bool_()),
    ]
)
"""One row per mean curve and number of alternating segments: how well it predicts images that were held out."""


def to_table(found: Sequence[CurvePhases], pattern: str, adjustment: str) -> pa.Table:
    """Make the table of mean curves."""
    columns = [QUANTILES.index(quantile) for quantile in _OF_IMAGES.values()]
    rows = [
        {
            **_curve_columns(curve),
            "pattern": pattern,
            **phase._asdict(),
            **dict(zip(_OF_IMAGES, ends[columns].tolist(), strict=True)),
            "images": curve.band.images,
            "items": curve.band.items,
            "adjustment": adjustment,
        }
        for curve in found
        for phase, ends in zip(curve.detection.phases, curve.ends, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PHASES_SCHEMA)


def to_score_table(found: Sequence[CurvePhases]) -> pa.Table:
    """Make the table of the scores that decide how many segments held-out images prefer."""
    rows = [
        {
            **_curve_columns(curve),
            "segments": segments,
            "score": score,
            "score_error": error,
            "preferred": segments == curve.detection.preferred.segments,
        }
        for curve in found
        for segments, (score, error) in enumerate(
            zip(curve.detection.preferred.scores, curve.detection.preferred.errors, strict=True), start=1
        )
    ]
    return pa.Table.from_pylist(rows, schema=PHASES_SCORES_SCHEMA)


def to_image_tables(found: Sequence[CurvePhases]) -> Iterator[pa.Table]:
    """Yield the table of samples, curve by curve."""
    for curve in found:
        if curve.samples is None:
            continue
        samples, start, end = curve.samples
        phases = start.shape[1]
        columns: dict[str, NDArray[Any]] = {
            name: np.repeat(samples[name].to_numpy(dtype=object), phases) for name in samples
        }
        columns |= {
            "phase": np.tile(np.arange(1, phases + 1), len(samples)),
            "start": start.ravel(),
            "end": end.ravel(),
        }
        columns |= {name: np.repeat(value, start.size).astype(object) for name, value in _store_columns(curve).items()}
        arrays = [pa.array(columns[field.name], field.type) for field in PHASES_IMAGES_SCHEMA]
        yield pa.Table.from_arrays(arrays, schema=PHASES_IMAGES_SCHEMA)


def _store_columns(curve: CurvePhases) -> dict[str, str]:
    identity = curve.identity
    return {
        "store": identity.store,
        "model": identity.model,
        "source": identity.source,
        "prompt_kind": curve.group.kind,
    }


def _curve_columns(curve: CurvePhases) -> dict[str, str]:
    return {**_store_columns(curve), "prompt_id": curve.group.prompt_id, "pair": curve.pair}


def to_dataset(found: Sequence[CurvePhases], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Label the phases (curve, phase); a curve with fewer phases than others is filled with layer -1 and NaN.

    Whatever the pattern, the number of segments that held-out images prefer is beside them (curve), with the scores
    that decided it (curve, segments). ``attributes`` say what the results depend on and join the dataset's own.
    """
    most = max((len(curve.detection.phases) for curve in found), default=0)
    table = [[_padded(curve, p) for p in range(most)] for curve in found]
    columns: dict[str, Any] = {
        name: (("curve", "phase"), np.array([[getattr(phase, name) for phase in row] for row in table], dtype), attrs)
        for name, dtype, attrs in (
            *((name, np.int32, {"long_name": text, "units": "layer"}) for name, text in _LAYERS.items()),
            *((name, np.float64, {"long_name": text, "units": "1"}) for name, text in _CHANGES.items()),
            ("supported", np.bool_, {"long_name": _SUPPORTED}),
            ("name", object, {"long_name": "name of the phase"}),
        )
    }
    return xr.Dataset(
        {
            **columns,
            **_scores(found),
            "end_images": (("curve", "phase", "quantile"), _ends_of_images(found, most), _ENDS),
            **{
                name: ("curve", np.array([getattr(curve.band, name) for curve in found], np.int64), {"long_name": text})
                for name, text in (("images", "images in the curve"), ("items", "items that its intervals resample"))
            },
        },
        coords={
            "phase": np.arange(1, most + 1),
            "quantile": np.array(QUANTILES),
            **{
                name: ("curve", np.array([value(curve) for curve in found], dtype=object))
                for name, value in (
                    ("store", lambda curve: curve.identity.store),
                    ("prompt_kind", lambda curve: curve.group.kind),
                    ("prompt_id", lambda curve: curve.group.prompt_id),
                    ("pair", lambda curve: curve.pair),
                )
            },
        },
        attrs={
            "title": "Phases",
            "resampled": RESAMPLED,
            "interval": _INTERVAL,
            "supported": f"{_SUPPORTED}; the interval of the change may exclude 0 where the phase is not supported",
            **attributes,
        },
    )


def _scores(found: Sequence[CurvePhases]) -> dict[str, Any]:
    """Preferred shapes and held-out scores (curve, segments), NaN beyond what a short curve allows."""
    preferred = [curve.detection.preferred for curve in found]
    most = max((len(shape.scores) for shape in preferred), default=0)
    scores = np.full((2, len(found), most), np.nan)
    for c, shape in enumerate(preferred):
        scores[:, c, : len(shape.scores)] = shape.scores, shape.errors
    return {
        "preferred_segments": (
            "curve",
            np.array([shape.segments for shape in preferred], np.int32),
            {"long_name": "number of alternating segments that held-out images prefer", "units": "1"},
        ),
        "preferred_first_rises": (
            "curve",
            np.array([shape.first_rises for shape in preferred], np.bool_),
            {"long_name": "whether the first of the preferred segments rises"},
        ),
        "segments": ("segments", np.arange(1, most + 1), {"long_name": "number of alternating segments"}),
        "score": (("curve", "segments"), scores[0], {"long_name": "held-out mean squared error", "units": "1"}),
        "score_error": (
            ("curve", "segments"),
            scores[1],
            {"long_name": "standard error of the score's distance to the best", "units": "1"},
        ),
    }


def _ends_of_images(found: Sequence[CurvePhases], most: int) -> NDArray[np.int32]:
    ends = np.full((len(found), most, len(QUANTILES)), -1, np.int32)
    for c, curve in enumerate(found):
        ends[c, : len(curve.ends)] = curve.ends
    return ends


def _padded(curve: CurvePhases, p: int) -> Phase:
    phases = curve.detection.phases
    return phases[p] if p < len(phases) else Phase(p + 1, "", -1, -1, -1, -1, -1, -1, np.nan, np.nan, np.nan, False)
