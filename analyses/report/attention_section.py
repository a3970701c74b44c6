"""The section of norm-based attention: shares of roles, and the map of block and position linked to the picture.

Norms stand on the left and weights on the right, as in the figures, and follow the same controls.
"""

from typing import Any

import numpy as np

from analyses.figure_style import BAND_NOTE, LayerAxis
from analyses.norm_attention_figure import ROLE_COLOURS
from analyses.norm_attention_panels import IDENTITY_NOTE
from analyses.report.attention_rows import SINKS, mean_rows, place_rows, role_rows, segment_rows
from analyses.report.attention_tables import largest_table, query_names, role_table
from analyses.report.chart_style import BAND, TEXT, bound, chart, follow, legend, x_axis
from analyses.report.explorer import NO_PICTURES
from analyses.report.packing import Rows
from analyses.report.results import Results
from analyses.report.section import Chart, Choice, Control, Figure, Panel, Section, Slider

__all__ = ["attention_section"]

_SIDES = {"norm": "By norm ‖Σ α f‖", "weight": "By weight α"}
_ROLES, _MAPS = "attention-roles", "attention-maps"
_SHOWN = "datum.s == store && datum.g == prompt && datum.q == query"
_DECADES = 4
_FEW = 0.02
_SQUARE = 320  # pixels of a picture; two fit beside each other, one fits a phone
_BLOCK = "at_block"  # the signal that Vega-Lite makes of the field block of the selection `at`
_SEGMENT_NAMES = {"before": "before", "image": "image tokens", "after": "after", "end": "end"}
_NOTHING = "#80808033"
_PATCH = {"patch_row": "patch row", "patch_col": "column"}  # from 1, as the explorer counts
_MEASURES_NOTE = (
    "Share of the row: of all that the chosen token takes from the positions it sees. By weight α: the attention "
    "weights, mean over heads. By norm ‖Σ α f‖: the length of what arrives, the transformed values f weighted by α and "
    "summed over heads."
)


def attention_section(results: Results, pictures: Rows, of_images: Rows) -> tuple[Section, dict[str, Rows]]:
    """Make the section and the rows that its charts name.

    Parameters
    ----------
    results : Results
    pictures : list of dict
        The page's: ``p`` and ``name`` of every image, and its ``href``.
    of_images : list of dict
        Of `attention_rows.image_rows`.
    """
    if "norm-attention" not in results.datasets:
        how = (
            f"Attention is not there: strata analyze norm-attention STORE --out {results.folder} computes it from a "
            "store that was extracted with --capture attention."
        )
        return Section("attention", "Norm-based attention", missing=(how,)), {}
    axis = results.axis(results.datasets["norm-attention"]["block"].values, "block")
    rows = {
        "roles": role_rows(results, axis),
        "places": (places := place_rows(results)),
        "segments": segment_rows(places),
        "patches": [*mean_rows(results), *of_images],
    }
    figures = [_roles(results, axis, rows["roles"]), _maps(results, pictures, rows)]
    missing = [] if of_images else ["Single images are not there: strata report --store STORE reads them."]
    return Section("attention", "Norm-based attention", tuple(figures), tuple(missing)), rows


def _choices(results: Results) -> tuple[Choice, ...]:
    return (
        Choice("store", "Store", results.labels),
        Choice("prompt", "Prompt", results.titles),
        Choice("query", "From", query_names(results)),
    )


def _roles(results: Results, axis: LayerAxis, rows: Rows) -> Figure:
    there = {row["role"] for row in rows}
    colours = {role: colour for role, colour in {**ROLE_COLOURS, SINKS: TEXT}.items() if role in there}
    role = {"field": "role", "type": "nominal", "legend": legend(list(colours))}
    dashes = [[5, 3] if name == SINKS else [1, 0] for name in colours]
    color = role | {"scale": {"domain": list(colours), "range": list(colours.values())}}
    dash = role | {"scale": {"domain": list(colours), "range": dashes}}
    controls, charts = _choices(results), []
    for side, title in _SIDES.items():
        shown = {"field": side, "type": "quantitative", "title": "share of the row", "scale": {"domain": [0, 1]}}
        tooltip: list[dict[str, Any]] = [{"field": "role"}, {"field": "block", "type": "quantitative"}]
        tooltip.append({"field": side, "type": "quantitative", "title": "share", "format": ".3f"})
        spec = chart(
            f"{title}: share of each role against {axis.label}, a line per role; dashed the share of {SINKS}",
            height=220,
            params=follow(_ROLES, controls),
            data={"name": "roles"},
            transform=[{"filter": _SHOWN}],
            encoding={"x": x_axis(axis), "y": shown, "color": color},
            layer=[
                {
                    "mark": {"type": "area", **BAND},
                    "transform": [
                        {"calculate": f"max(0, datum.{side} - datum.{side}_std)", "as": "below"},
                        {"calculate": f"min(1, datum.{side} + datum.{side}_std)", "as": "above"},
                    ],
                    "encoding": {"y": {**shown, "field": "below"}, "y2": {"field": "above"}},
                },
                {"mark": {"type": "line", "aria": False, "clip": True}, "encoding": {"strokeDash": dash}},
                {
                    "mark": {"type": "point", "filled": True, "size": 140, "opacity": 0, "aria": False},
                    "encoding": {"tooltip": tooltip},
                },
            ],
        )
        charts.append(Chart(f"attention-roles-{side}", title, spec))
    notes = [
        _MEASURES_NOTE,
        f"{BAND_NOTE} Dashed: what position 0 and BOS (sinks) take, whatever their role.",
    ]
    if any(identity.image_states_depend_on_prompt is False for identity in results.identities):
        notes.append(IDENTITY_NOTE.replace(": drawn once", ""))
    panel, table = Panel(controls, tuple(charts)), role_table(results, rows)
    return Figure(_ROLES, "Shares of roles", (panel,), tuple(notes), (table,), ("roles",))


def _maps(results: Results, pictures: Rows, rows: dict[str, Rows]) -> Figure:
    blocks = sorted({row["block"] for row in rows["places"]})
    of_places = _domain([row[side] for row in rows["places"] for side in _SIDES])
    of_patches = _domain([value for row in rows["patches"] for side in _SIDES for value in row[side]])
    there = {row["p"] for row in rows["patches"]}
    names = ["mean over samples", *dict.fromkeys(row["name"] for row in pictures if row["p"] in there)]
    choices, picture = _choices(results), Choice("picture", "Picture", names, min(1, len(names) - 1))
    block = Slider(_BLOCK, "Block", blocks[0], blocks[-1], blocks[len(blocks) // 2])
    panels = (
        Panel(choices, tuple(_places(side, of_places, choices, block, blocks) for side in _SIDES)),
        Panel((block, picture), tuple(_patches(side, of_patches, (*choices, block, picture)) for side in _SIDES)),
    )
    notes = [
        "Colours are shares of the row, logarithmic, on one scale for both sides; grey: 0, as after the query. "
        "Click a block, or move the slider, to see it on the patches. Text before and after the image, and the "
        "template's end, are drawn wider than image tokens.",
    ]
    if len(names) > 1:
        notes.append(
            "A picture, chosen here and not in the explorer above, shows one sample, with its first prompt of the "
            "chosen kind; the map of positions is the mean over samples."
        )
        if len(names) - 1 < len({row["name"] for row in pictures}):
            notes.append(f"The page has room for the attention of {len(names) - 1} of the images that it shows.")
        if all(row["href"] is None for row in pictures):
            notes.append(NO_PICTURES)
    return Figure(
        _MAPS,
        "Blocks and positions, and the same on the picture",
        panels,
        tuple(notes),
        (largest_table(results, rows["places"]),),
        ("places",),
    )


def _domain(shares: list[float | None]) -> list[float]:
    """Return a scale for all: up to the largest share, down to what few are below, but no more decades than tell."""
    there = np.array([share for share in shares if share] or [1.0])
    high = float(there.max())
    low = max(float(np.quantile(there, _FEW)), high * 10.0**-_DECADES)
    return [float(f"{min(low, high / 2):.1e}"), float(f"{high:.1e}")]


def _colour(side: str, domain: list[float]) -> dict[str, Any]:
    scale = {"type": "log", "domain": domain, "clamp": True, "scheme": "viridis"}
    look = {"title": "share of the row", "gradientLength": 160, "format": ".2", "values": domain}
    return {"field": side, "type": "quantitative", "scale": scale, "legend": look}


def _places(side: str, domain: list[float], choices: tuple[Choice, ...], block: Slider, blocks: list[int]) -> Chart:
    at = {
        "name": "at",
        "select": {"type": "point", "fields": ["block"], "on": "click", "toggle": False, "clear": False},
        "bind": {"block": bound(_MAPS, block)},
        "value": [{"block": block.chosen}],
    }
    ticks = {"values": blocks[:: -(-len(blocks) // 10)], "grid": False}
    # Scales that are given: one that were read from the rows of all layers would draw them all again with each block.
    y = {"field": "block", "type": "ordinal", "title": "block", "scale": {"domain": blocks}, "axis": ticks}
    x = {"field": "left", "type": "quantitative", "scale": {"domain": [0, 1], "nice": False}, "axis": None}
    tooltip = [{"field": "where", "title": "key"}, {"field": "block", "type": "quantitative"}]
    tooltip += [{"field": name, "type": "quantitative", "format": ".3g"} for name in _SIDES]
    colour = _colour(side, domain)
    grey = {"test": f"!isValid(datum.{side})", "value": _NOTHING}
    spec = chart(
        f"{_SIDES[side]}: share of the row, blocks against positions, mean over samples",
        height=max(180, min(420, 18 * len(blocks))),
        params=follow(_MAPS, choices),
        data={"name": "places"},
        transform=[{"filter": _SHOWN}],
        encoding={"y": y},
        layer=[
            {
                "params": [at],
                "mark": {"type": "rect", "aria": False, "cursor": "pointer"},
                "encoding": {
                    "x": x,
                    "x2": {"field": "right"},
                    "color": {"condition": grey, **colour},
                    "tooltip": tooltip,
                },
            },
            {
                "data": {"name": "segments"},  # which are few: this follows a slider
                "transform": [
                    {"filter": "datum.s == store && datum.g == prompt"},
                    {
                        "aggregate": [
                            {"op": "min", "field": "left", "as": "start"},
                            {"op": "max", "field": "right", "as": "end"},
                        ],
                    },
                    {"calculate": f"toNumber({_BLOCK})", "as": "block"},
                ],
                "mark": {"type": "rect", "fillOpacity": 0, "stroke": TEXT, "strokeWidth": 1.5, "aria": False},
                "encoding": {"x": {**x, "field": "start"}, "x2": {"field": "end"}},
            },
            *_segments(x),
        ],
    )
    return Chart(f"attention-places-{side}", f"{_SIDES[side]}: blocks × positions", spec)


def _segments(x: dict[str, Any]) -> list[dict[str, Any]]:
    """Where text before the image, image tokens and text after them begin, and their names under the map."""
    own = {
        "data": {"name": "segments"},
        "transform": [
            {"filter": "datum.s == store && datum.g == prompt"},
            {"calculate": f"{_SEGMENT_NAMES}[datum.segment]", "as": "name"},
        ],
    }
    begins = {"x": {**x, "field": "left"}, "y": {"value": 0}, "y2": {"value": {"expr": "height + 5"}}}
    named = {"x": {**x, "field": "middle"}, "y": {"value": {"expr": "height + 12"}}, "text": {"field": "name"}}
    return [
        {**own, "mark": {"type": "rule", "color": "white", "strokeWidth": 1.5, "aria": False}, "encoding": begins},
        {**own, "mark": {"type": "text", "baseline": "top", "aria": False}, "encoding": named},
    ]


def _patches(side: str, domain: list[float], controls: tuple[Control, ...]) -> Chart:
    unit = {"type": "quantitative", "scale": {"domain": [0, 1], "nice": False}, "axis": None}
    shown = "datum.s == store && datum.q == query && datum.p == picture && datum.block == at_block"
    shown += " && (datum.g === null || datum.g == prompt)"
    cells = [
        {"filter": shown},
        {"flatten": [side]},
        {"window": [{"op": "row_number", "as": "place"}], "frame": [None, None]},
        {"calculate": "floor((datum.place - 1) / datum.cols)", "as": "row"},
        {"calculate": "(datum.place - 1) % datum.cols", "as": "col"},
        {"calculate": "datum.row + 1", "as": "patch_row"},
        {"calculate": "datum.col + 1", "as": "patch_col"},
        {"calculate": "datum.left + datum.col * datum.cell_width", "as": "x"},
        {"calculate": "datum.x + datum.cell_width", "as": "x2"},
        {"calculate": "1 - datum.top - datum.row * datum.cell_height", "as": "y"},
        {"calculate": "datum.y - datum.cell_height", "as": "y2"},
    ]
    tooltip: list[dict[str, Any]] = [{"field": "prompt"}, {"field": "block", "type": "quantitative"}]
    tooltip += [{"field": name, "title": title, "type": "quantitative"} for name, title in _PATCH.items()]
    tooltip.append({"field": side, "type": "quantitative", "title": "share", "format": ".3g"})
    spec = chart(
        f"{_SIDES[side]}: share of the row on the patches of the chosen picture at the chosen block",
        width=_SQUARE,
        height=_SQUARE,
        autosize="pad",
        params=follow(_MAPS, controls),
        title={"text": {"expr": f"'block ' + {_BLOCK}"}},
        layer=[
            {
                "data": {"name": "pictures"},
                "transform": [{"filter": "datum.s == store && datum.p == picture && isValid(datum.href)"}],
                "mark": {"type": "image", "width": _SQUARE, "height": _SQUARE, "aspect": True, "aria": False},
                "encoding": {
                    "url": {"field": "href"},
                    "x": {"datum": 0.5, **unit},
                    "y": {"datum": 0.5, **unit},
                },
            },
            {
                "data": {"name": "patches"},
                "transform": cells,
                "mark": {"type": "rect", "aria": False, "clip": True},
                "encoding": {
                    "x": {"field": "x", **unit},
                    "x2": {"field": "x2"},
                    "y": {"field": "y", **unit},
                    "y2": {"field": "y2"},
                    "color": {
                        "condition": {"test": f"!(datum.{side} > 0)", "value": _NOTHING},
                        **_colour(side, domain),
                    },
                    "opacity": {"condition": {"test": "picture > 0", "value": 0.65}, "value": 1},
                    "tooltip": tooltip,
                },
            },
        ],
    )
    return Chart(f"attention-patches-{side}", f"{_SIDES[side]}: on the picture", spec)
