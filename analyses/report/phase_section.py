"""The section of the phase diagram: one store and prompt at a time with its phases, then all curves over each other."""

from typing import Any

from analyses.contextualization_figure import IDENTITY_NOTE
from analyses.figure_style import ADJUSTMENT_NOTES, COSINE_NAMES, PAIR_COLOURS, PAIR_NAMES, LayerAxis
from analyses.report.chart_style import BAND, TEXT, chart, follow, legend, looks, subset, x_axis
from analyses.report.packing import Rows
from analyses.report.phase_rows import curve_rows, layer_rows, normed_rows, phase_rows
from analyses.report.results import Results
from analyses.report.section import Chart, Choice, Figure, Panel, Section, Table

__all__ = ["phase_section"]

_BANDS = ("standard deviation over images", "95 % interval of the mean")
_SHOWN = "datum.s == store && datum.g == prompt"
_PAIRS = list(PAIR_NAMES.values())
_GREY = "#808080"
_PAIRS_NOTE = "image–text: inter-modal; image–image and text–text: intra-modal."
_MARKS_NOTE = "Bars on top: 95 % intervals of the boundaries. Hollow: the last layer after the final norm."


def phase_section(results: Results) -> tuple[Section, dict[str, Rows]]:
    """Make the section and the rows that its charts name."""
    if "contextualization" not in results.datasets:
        how = f"Curves and phases are not there: strata analyze phases STORE --out {results.folder} computes both."
        return Section("phases", "Phase diagram", missing=(how,)), {}
    axis = results.axis(results.datasets["contextualization"]["layer"].values)
    curves, phases = curve_rows(results, axis), phase_rows(results, axis)
    rows = {
        "curves": curves,
        "phases": phases,
        "layers": layer_rows(curves),
        "normed": normed_rows(results, axis),
    }
    how = f"Phases are not there: strata analyze phases STORE --out {results.folder} adds them."
    figures = [_diagram(results, axis, rows)]
    if len({(row["s"], row["g"]) for row in curves}) > 1:
        figures.append(_comparison(results, axis, curves))
    return Section("phases", "Phase diagram", tuple(figures), () if phases else (how,)), rows


def _cosine(results: Results) -> str:
    return COSINE_NAMES[results.datasets["contextualization"].attrs["adjustment"]]


def _domain(rows: Rows) -> list[float]:
    """Return limits that all curves and bands fit in, so that switching between them compares them; air for marks."""
    ends = [row["mean"] + side * (row["std"] or 0) for row in rows for side in (-1, 1)]
    low, high = min(ends), max(ends)
    return [low - 0.04 * (high - low), high + 0.16 * (high - low)]


def _diagram(results: Results, axis: LayerAxis, rows: dict[str, Rows]) -> Figure:
    controls = (
        Choice("store", "Store", results.labels),
        Choice("prompt", "Prompt", results.titles),
        Choice("band", "Band", _BANDS),
    )
    x = x_axis(axis)
    scale = {"domain": _domain(rows["curves"]), "zero": False, "nice": False}
    y = {"field": "mean", "type": "quantitative", "title": _cosine(results), "scale": scale}
    colours = {"domain": _PAIRS, "range": [PAIR_COLOURS[pair] for pair in PAIR_NAMES]}
    colour = {"field": "pair", "type": "nominal", "scale": colours, "legend": legend(_PAIRS)}
    curve: dict[str, Any] = {"data": {"name": "curves"}, "transform": [{"filter": _SHOWN}]}
    band = [
        {"filter": _SHOWN},
        {"calculate": "band == 0 ? datum.mean - datum.std : datum.low", "as": "below"},
        {"calculate": "band == 0 ? datum.mean + datum.std : datum.high", "as": "above"},
    ]
    tooltip = [{"field": "layer", "type": "quantitative"}]
    tooltip += [{"field": pair, "type": "nominal"} for pair in _PAIRS]
    spec = chart(
        f"{_cosine(results)} against {axis.label}, with the phases of the image–text curve; numbers in the table below",
        height=320,
        params=follow("phase-diagram", controls),
        layer=[
            *_phase_layers(x),
            {
                "data": {"name": "curves"},
                "transform": band,
                "mark": {"type": "area", **BAND},
                "encoding": {"x": x, "y": y | {"field": "below"}, "y2": {"field": "above"}, "color": colour},
            },
            {**curve, "mark": {"type": "line", "aria": False}, "encoding": {"x": x, "y": y, "color": colour}},
            {
                "data": {"name": "normed"},
                "transform": [{"filter": _SHOWN}],
                "mark": {"type": "point", "filled": False, "size": 50, "aria": False},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "data": {"name": "layers"},
                "transform": [{"filter": _SHOWN}],
                "params": [
                    {
                        "name": "pointed",
                        "select": {"type": "point", "fields": ["layer"], "on": "pointerover", "clear": "pointerout"},
                    }
                ],
                "mark": {"type": "rect", "color": TEXT, "aria": False},
                "encoding": {
                    "x": {**x, "field": "left"},
                    "x2": {"field": "right"},
                    "opacity": {"condition": {"param": "pointed", "empty": False, "value": 0.08}, "value": 0},
                    "tooltip": tooltip,
                },
            },
        ],
    )
    notes = [_counted(rows["curves"]), _PAIRS_NOTE, *_phase_notes(rows["phases"]), _MARKS_NOTE]
    notes += [ADJUSTMENT_NOTES.get(results.datasets["contextualization"].attrs["adjustment"], "")]
    if any(identity.image_states_depend_on_prompt is False for identity in results.identities):
        notes.append(IDENTITY_NOTE.replace("\n", " ").replace(": it is drawn once", ""))
    return Figure(
        "phase-diagram",
        "Curves and phases",
        (Panel(controls, (Chart("phase-diagram", "", spec),)),),
        tuple(filter(None, notes)),
        (*([_table(rows["phases"])] if rows["phases"] else []), _curve_table(results, rows["layers"])),
        ("curves", "phases") if rows["phases"] else ("curves",),
    )


def _counted(curves: Rows) -> str:
    """Say what a point of a curve is."""
    few, many = (end(row["images"] for row in curves) for end in (min, max))
    images = f"{many:,}" if few == many else f"{few:,} to {many:,}"
    return f"A point: the mean cosine similarity of all pairs of tokens, one of each kind, mean over {images} images."


def _phase_notes(phases: Rows) -> list[str]:
    names = ", ".join(dict.fromkeys(row["name"] for row in phases))
    shaded = f"Shaded: phases, in which the image–text curve rises and falls in turn ({names}); grey where images left "
    return [shaded + "out of the resamples do not support the phase."] if phases else []


def _phase_layers(x: dict[str, Any]) -> list[dict[str, Any]]:
    """Shades, boundaries, their intervals on top, and numerals."""
    own = {"data": {"name": "phases"}, "transform": [{"filter": _SHOWN}]}
    inner = {"data": {"name": "phases"}, "transform": [{"filter": f"{_SHOWN} && datum.inner"}]}
    told = [
        {"field": "name", "title": "phase"},
        *({"field": name, "title": name.replace("_", " "), "type": "quantitative"} for name in ("start", "end")),
        {"field": "change", "type": "quantitative", "format": "+.3f"},
        {"field": "supported"},
    ]
    grey = {"test": "!datum.supported", "value": _GREY}
    return [
        {
            **own,
            "mark": {"type": "rect", "aria": False},
            "encoding": {
                "x": x,
                "x2": {"field": "x2"},
                "opacity": {"condition": {"test": "!datum.supported", "value": 0.1}, "value": 0.2},
                "color": {"condition": grey, "field": "colour", "type": "nominal", "scale": None},
            },
        },
        {**inner, "mark": {"type": "rule", "opacity": 0.35, "aria": False}, "encoding": {"x": x | {"field": "x2"}}},
        {
            **inner,
            "mark": {"type": "rule", "strokeWidth": 2, "aria": False, "y": 3},
            "encoding": {"x": x | {"field": "x_low"}, "x2": {"field": "x_high"}, "y": {"value": 3}},
        },
        {
            **inner,
            "mark": {"type": "point", "filled": True, "size": 30, "color": TEXT, "opacity": 1, "aria": False},
            "encoding": {"x": x | {"field": "x2"}, "y": {"value": 3}},
        },
        {
            **own,
            "mark": {"type": "text", "fontWeight": "bold"},
            "encoding": {
                "x": x | {"field": "middle"},
                "y": {"value": 16},
                "text": {"field": "numeral"},
                "opacity": {"condition": {"test": "!datum.supported", "value": 0.7}, "value": 1},
                "description": {"field": "name"},
                "tooltip": told,
            },
        },
    ]


def _table(phases: Rows) -> Table:
    store = ("store",) if len({row["s"] for row in phases}) > 1 else ()
    return Table(
        "Phases of the image–text curve",
        (*store, "prompt", "phase", "layers", "end, 95 %", "change", "change, 95 %", "supported"),
        [
            (
                *(row[name] for name in (*store, "prompt")),
                row["name"],
                f"{row['start']}–{row['end']}",
                _span(row["end_low"], row["end_high"]),
                _signed(row["change"]),
                f"{_signed(row['change_low'])} to {_signed(row['change_high'])}",
                "yes" if row["supported"] else "not supported",
            )
            for row in phases
        ],
        open=True,
    )


def _curve_table(results: Results, layers: Rows) -> Table:
    """Say what a pointer is told, for whoever has none."""
    store = ("store",) if len(results.labels) > 1 else ()
    return Table(
        "Mean ± standard deviation over images, and 95 % interval of the mean",
        (*store, "prompt", "layer", *_PAIRS),
        [
            (
                *(results.labels[row["s"]] for _ in store),
                results.titles[row["g"]],
                str(row["layer"]),
                *(row.get(pair, "–") for pair in _PAIRS),
            )
            for row in layers
        ],
    )


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}–{last}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}".replace("-", "−")


def _comparison(results: Results, axis: LayerAxis, curves: Rows) -> Figure:
    pairs = Choice("pair", "Pair", _PAIRS)
    stores, store_shown = subset("s", "Store", results.labels)
    prompts, prompt_shown = subset("g", "Prompt", results.titles)
    controls = (pairs, prompts, stores)
    domains = {pair: _domain([row for row in curves if row["pair"] == pair]) for pair in _PAIRS}
    tooltip = [{"field": name} for name in ("store", "prompt", "pair")]
    tooltip += [{"field": name, "type": "quantitative"} for name in ("layer", "mean", "std", "images")]
    spec = chart(
        f"{_cosine(results)} of one pair of token sets against {axis.label}, a line per store and prompt kind",
        params=follow("phase-comparison", controls),
        data={"name": "curves"},
        transform=[{"filter": f"{_PAIRS}[pair] === datum.pair && {prompt_shown} && {store_shown}"}],
        encoding={
            "x": x_axis(axis),
            "y": {
                "field": "mean",
                "type": "quantitative",
                "title": _cosine(results),
                "scale": {"domain": {"expr": f"{list(domains.values())}[pair]"}, "zero": False, "nice": False},
            },
            **looks(results),
            "detail": [{"field": "s"}, {"field": "g"}],
        },
        layer=[
            {"mark": {"type": "line", "aria": False}},
            {
                "mark": {"type": "point", "filled": True, "size": 140, "opacity": 0, "aria": False},
                "encoding": {"tooltip": tooltip},
            },
        ],
    )
    notes = (_counted(curves), "One curve alone, with its band, stands in the figure above.")
    panel = Panel(controls, (Chart("phase-comparison", "", spec),))
    return Figure("phase-comparison", "All curves of one pair", (panel,), notes, data=("curves",))
