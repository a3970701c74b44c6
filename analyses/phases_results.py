"""Phases as results: two tidy tables and a labelled dataset."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from analyses.contextualization_results import STORE_COLUMNS
from analyses.phase_detection import Phase
from analyses.phases import CurvePhases

__all__ = ["PHASES_IMAGES_SCHEMA", "PHASES_SCHEMA", "to_dataset", "to_image_tables", "to_table"]

_LAYERS = ("start", "start_low", "start_high", "end", "end_low", "end_high")
_CHANGES = ("change", "change_low", "change_high")

_INTERVAL = "95 % percentile interval over bootstrap samples of images, each cut and read on the images drawn"
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
    ]
)
"""One row per phase of a mean curve; prompt_id is empty."""

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


def to_table(found: Sequence[CurvePhases], pattern: str) -> pa.Table:
    """Make the table of mean curves."""
    rows = [
        {**_store_columns(curve), "prompt_id": "", "pair": curve.pair, "pattern": pattern, **phase._asdict()}
        for curve in found
        for phase in curve.detection.phases
    ]
    return pa.Table.from_pylist(rows, schema=PHASES_SCHEMA)


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
        "prompt_kind": curve.prompt_kind,
    }


def to_dataset(found: Sequence[CurvePhases], settings: str) -> xr.Dataset:
    """Label the phases (curve, phase); a curve with fewer phases than others is filled with layer -1 and NaN.

    Whatever the pattern, the number of segments that held-out images prefer is beside them (curve), with the scores
    that decided it (curve, segments).
    """
    most = max((len(curve.detection.phases) for curve in found), default=0)
    table = [[_padded(curve, p) for p in range(most)] for curve in found]
    units = {**dict.fromkeys(_LAYERS, "layer"), **dict.fromkeys(_CHANGES, "1")}
    columns: dict[str, Any] = {
        name: (("curve", "phase"), np.array([[getattr(phase, name) for phase in row] for row in table], dtype), attrs)
        for name, dtype, attrs in (
            *((name, np.int32, {"units": units[name]}) for name in _LAYERS),
            *((name, np.float64, {"units": units[name]}) for name in _CHANGES),
            ("supported", np.bool_, {"long_name": _SUPPORTED}),
            ("name", object, {"long_name": "name of the phase"}),
        )
    }
    return xr.Dataset(
        {
            **columns,
            **_scores(found),
            "images": ("curve", np.array([curve.band.images for curve in found], np.int64)),
        },
        coords={
            "phase": np.arange(1, most + 1),
            **{
                name: ("curve", np.array([value(curve) for curve in found], dtype=object))
                for name, value in (
                    ("store", lambda curve: curve.identity.store),
                    ("prompt_kind", lambda curve: curve.prompt_kind),
                    ("pair", lambda curve: curve.pair),
                )
            },
        },
        attrs={
            "title": "Phases",
            "settings": settings,
            "stores": json.dumps(list({curve.identity.store: curve.identity.asdict() for curve in found}.values())),
            "interval": _INTERVAL,
            "supported": f"{_SUPPORTED}; the interval of the change may exclude 0 where the phase is not supported",
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


def _padded(curve: CurvePhases, p: int) -> Phase:
    phases = curve.detection.phases
    return phases[p] if p < len(phases) else Phase(p + 1, "", -1, -1, -1, -1, -1, -1, np.nan, np.nan, np.nan, False)
