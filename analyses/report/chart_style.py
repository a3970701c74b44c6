"""How charts of a page look, and how they follow its controls.

They take the colour of text from the page, so one drawing serves light and dark; a saved drawing, which has no page
around it, is black on nothing.
Data colours are those of the figures (Okabe and Ito's), all of which stand out from white and from the dark page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.figure_style import LayerAxis
from analyses.prompt_colours import prompt_colours
from analyses.report.results import Results
from analyses.report.section import Choice, Control, Slider

__all__ = ["BAND", "TEXT", "bound", "chart", "follow", "legend", "looks", "subset", "x_axis"]

TEXT = "currentColor"
BAND = {"opacity": 0.18, "aria": False}

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_CONFIG: Mapping[str, Any] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "domainColor": TEXT,
        "tickColor": TEXT,
        "gridColor": TEXT,
        "gridOpacity": 0.1,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
        "symbolType": "stroke",
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2.5,
        "symbolSize": 250,
        "orient": "top",
        "layout": {"top": {"direction": "vertical", "anchor": "start", "margin": 4}},  # of several, below each other
    },
    "text": {"color": TEXT, "fontSize": 12},
    "title": {"color": TEXT, "fontSize": 12, "fontWeight": "normal", "anchor": "start", "frame": "group"},
    "rule": {"color": TEXT},
    "line": {"strokeWidth": 2},
}
_STORES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#999999")
_SHORT = 18  # letters of a name in a legend
_DASHES = ([1, 0], [6, 3], [1.5, 2.5], [8, 3, 2, 3])


def chart(description: str, **parts: Any) -> dict[str, Any]:
    """Make a specification that Vega-Lite draws as wide as its place."""
    return {
        "$schema": _SCHEMA,
        "description": description,
        "width": "container",
        "height": 260,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        **parts,
    }


def follow(figure: str, controls: Sequence[Control]) -> list[dict[str, Any]]:
    """Make the parameters of a chart that follow controls of its figure; values are texts of digits, so compare by ==.

    Parameters
    ----------
    figure : str
        Its name.
    controls : sequence of Control
    """
    return [
        {"name": control.name, "value": control.chosen}
        | ({"bind": bound(figure, control)} if isinstance(control, Slider) or len(control.options) > 1 else {})
        for control in controls
    ]


def bound(figure: str, control: Control) -> dict[str, str]:
    """Name the element of the page that a parameter follows, as ``page.html`` names it."""
    return {"element": f"#{figure}-{control.name}"}


def subset(name: str, label: str, options: Sequence[str]) -> tuple[Choice, str]:
    """Make a choice of one of the options or of all, and the filter of rows whose field ``NAME`` is an option's place.

    Returns
    -------
    Choice
        Of ``only_NAME``.
    str
    """
    signal = f"only_{name}"
    choice = Choice(signal, label, ("all", *options) if len(options) > 1 else ("all",))
    return choice, f"({signal} == 0 || datum.{name} == {signal} - 1)"


def x_axis(axis: LayerAxis) -> dict[str, Any]:
    """Encode the field ``x``, layers or depths that all stores share."""
    ticks = {} if axis.relative else {"tickMinStep": 1, "format": "d"}
    margin = 0.02 * (axis.last - axis.first or 1)
    scale = {"domain": [axis.first - margin, axis.last + margin], "nice": False, "zero": False}
    return {"field": "x", "type": "quantitative", "title": axis.label, "axis": {"grid": False, **ticks}, "scale": scale}


def looks(results: Results) -> dict[str, Any]:
    """Encode which curve it is: of one store, colours tell prompts; of several, colours tell stores, dashes prompts."""
    titles = results.titles
    if len(results.labels) == 1:
        colours = prompt_colours(results.groups)
        return {"color": _scale("prompt", titles, [colours[group] for group in results.groups])}
    stores = [_STORES[number % len(_STORES)] for number in range(len(results.labels))]
    dashes = [_DASHES[number % len(_DASHES)] for number in range(len(titles))]
    encoding = {"color": _scale("store", results.labels, stores)}
    if len(titles) > 1:
        encoding["strokeDash"] = _scale("prompt", titles, dashes)
    return encoding


def legend(names: Sequence[str]) -> dict[str, Any]:
    """Make a legend that a phone has room for: short names stand in two columns."""
    return {"title": None, "columns": 2 if max(map(len, names)) <= _SHORT else 1}


def _scale(field: str, domain: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    scale = {"domain": list(domain), "range": list(values)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend(domain)}
