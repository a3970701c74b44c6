"""The phase diagram as rows: mean curves with their bands, and phases with their intervals."""

from typing import Any

import numpy as np
import xarray as xr

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.curves import image_curves
from analyses.figure_style import PAIR_NAMES, LayerAxis
from analyses.phase_detection import Phase
from analyses.phases import HEADLINE
from analyses.phases_style import full_name, numeral, tint
from analyses.prompt_groups import prompt_groups
from analyses.report.packing import number
from analyses.report.results import Results, groups_of, stores_of

__all__ = ["curve_rows", "layer_rows", "normed_rows", "phase_rows"]

_STATISTICS = ("mean", "std", "low", "high")


def curve_rows(results: Results, axis: LayerAxis) -> list[dict[str, Any]]:
    """Row per store, prompt group, pair and layer.

    Returns
    -------
    list of dict
        Places ``s`` of the store and ``g`` of the group, their names, ``layer``, ``x`` on the shared axis, ``mean``
        over images, ``std`` over images, ``low`` and ``high`` of the 95 % interval of the mean, ``images``. Layers
        that a store does not have, and curves of no image, have no row; rows with self-pairs are left out.
    """
    dataset = results.datasets["contextualization"]
    values = {name: dataset[f"curve_{name}"].values for name in _STATISTICS}
    images = dataset["curve_images"].values
    layers = dataset["layer"].values
    rows = []
    for place, (store, group) in enumerate(zip(stores_of(dataset), groups_of(dataset), strict=True)):
        s, g = results.place(store), results.groups.index(group)
        for row, (pair, own) in enumerate(zip(dataset["pair"].values, dataset["self_pairs"].values, strict=True)):
            if own:
                continue
            for at in np.flatnonzero(np.isfinite(values["mean"][place, :, row])):
                rows.append(
                    {
                        "s": s,
                        "g": g,
                        "store": results.labels[s],
                        "prompt": results.titles[g],
                        "pair": PAIR_NAMES[str(pair)],
                        "layer": int(layers[at]),
                        "x": number(axis.at(layers, results.blocks[s])[at]),
                        **{name: number(values[name][place, at, row]) for name in _STATISTICS},
                        "images": int(images[place, row]),
                    }
                )
    return rows


def layer_rows(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Row per store, group and layer: a text per pair for a reader who points between ``left`` and ``right``."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in curves:
        key = row["s"], row["g"], row["layer"]
        own = found.setdefault(key, {name: row[name] for name in ("s", "g", "layer", "x")})
        spread = "" if row["std"] is None else f" ± {row['std']:.3f}"
        interval = "" if row["low"] is None else f"  [{row['low']:.3f}, {row['high']:.3f}]"
        own[row["pair"]] = f"{row['mean']:.3f}{spread}{interval}".replace("-", "−")
    for s, g in dict.fromkeys((row["s"], row["g"]) for row in found.values()):
        of_curve = [row for row in found.values() if (row["s"], row["g"]) == (s, g)]
        x = np.array([row["x"] for row in of_curve])
        middles = (x[:-1] + x[1:]) / 2
        for told, left, right in zip(of_curve, [x[0], *middles], [*middles, x[-1]], strict=True):
            told |= {"left": float(left), "right": float(right)}
    return list(found.values())


def normed_rows(results: Results, axis: LayerAxis) -> list[dict[str, Any]]:
    """Row per store, group and pair: the mean over images at the last layer after the final norm."""
    dataset = results.datasets["contextualization"]
    samples = xr.Dataset(coords={name: dataset[name] for name in (*SAMPLE_COLUMNS, "store")}).to_dataframe()
    normed = dataset["cosine_normed"].values
    rows = []
    for store in samples["store"].unique():
        s = results.place(store)
        own = np.flatnonzero(samples["store"] == store)
        for group, chosen in prompt_groups(samples.iloc[own]):
            for row, (pair, with_self) in enumerate(
                zip(dataset["pair"].values, dataset["self_pairs"].values, strict=True)
            ):
                curves = image_curves(samples.iloc[own[chosen]], normed[own[chosen], row : row + 1]).curves
                if with_self or not len(curves):
                    continue
                last = axis.at(np.array([results.blocks[s]]), results.blocks[s])[0]
                rows.append(
                    {
                        "s": s,
                        "g": results.groups.index(group),
                        "pair": PAIR_NAMES[str(pair)],
                        "x": number(last),
                        "mean": number(curves.mean()),
                    }
                )
    return rows


def phase_rows(results: Results, axis: LayerAxis) -> list[dict[str, Any]]:
    """Row per store, group and phase of the inter-modal curve; none without the analysis ``phases``."""
    dataset = results.datasets.get("phases")
    if dataset is None:
        return []
    rows = []
    curves = zip(stores_of(dataset), groups_of(dataset), dataset["pair"].values, strict=True)
    for place, (store, group, pair) in enumerate(curves):
        if pair != HEADLINE:
            continue
        own = dataset.isel(curve=place)
        phases = [_phase(own.isel(phase=at)) for at in range(own.sizes["phase"])]
        s, g = results.place(store), results.groups.index(group)
        there = [phase for phase in phases if phase.start >= 0]
        rows += [{**_phase_row(results, axis, s, g, phase), "inner": phase is not there[-1]} for phase in there]
    return rows


def _phase(own: xr.Dataset) -> Phase:
    values = {name: own[name].item() for name in Phase._fields}
    return Phase(**values)


def _phase_row(results: Results, axis: LayerAxis, s: int, g: int, phase: Phase) -> dict[str, Any]:
    def x(layer: int) -> float | None:
        return number(axis.at(np.array([layer]), results.blocks[s])[0])

    return {
        "s": s,
        "g": g,
        "store": results.labels[s],
        "prompt": results.titles[g],
        "numeral": numeral(phase),
        "name": full_name(phase),
        "start": phase.start,
        "start_low": phase.start_low,
        "start_high": phase.start_high,
        "end": phase.end,
        "end_low": phase.end_low,
        "end_high": phase.end_high,
        "change": number(phase.change),
        "change_low": number(phase.change_low),
        "change_high": number(phase.change_high),
        "supported": bool(phase.supported),
        "x": x(phase.start),
        "x2": x(phase.end),
        "middle": number((axis.at(np.array([phase.start, phase.end]), results.blocks[s])).mean()),
        "x_low": x(phase.end_low),
        "x_high": x(phase.end_high),
        "colour": tint(phase),
    }
