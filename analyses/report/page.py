"""One page without a network: HTML from a template that escapes, data packed, scripts allowed by their hashes.

The page's policy (Content-Security-Policy) lets nothing be loaded and runs the three scripts that were written into it
and no other, so a caption that were mistaken for a script would still do nothing. Charts are drawn by Vega-Lite, whose
JavaScript comes with vl-convert-python; it evaluates no text as code here (Vega's interpreter of expressions).
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from analyses.report.downloads import Download
from analyses.report.explorer import Explorer
from analyses.report.packing import Rows, pack
from analyses.report.provenance import StoreProvenance
from analyses.report.section import Section
from engine.errors import StrataError

__all__ = ["Page", "render"]

_VEGA_LITE = "6.4"
_OWN = files("analyses.report")
_EMBED = {"renderer": "svg", "ast": True, "actions": False, "tooltip": {"theme": "custom"}}
"""What Vega-Embed reads of a specification: SVG, no text is evaluated, no menu, tooltips as the page has them."""


class Page(NamedTuple):
    """What a page says.

    Attributes
    ----------
    folder : str
    labels : sequence of str
        Of the stores.
    sections : sequence of Section
    stores : sequence of StoreProvenance
    notes : sequence of str
        What is wrong, on top.
    subset : str
        Which images are shown; empty without stores.
    command : str
        That makes it.
    versions : sequence of (str, str)
        Libraries that made the page.
    rows : mapping
        Of charts, by name.
    downloads : mapping
        Rows that figures offer as files, by the same names.
    explorer : Explorer or None
    strata : str
        Version.
    """

    folder: str
    labels: Sequence[str]
    sections: Sequence[Section]
    stores: Sequence[StoreProvenance]
    notes: Sequence[str]
    subset: str
    command: str
    versions: Sequence[tuple[str, str]]
    rows: dict[str, Rows]
    downloads: Mapping[str, Download]
    explorer: Explorer | None
    strata: str


def render(page: Page) -> str:
    """Write the page."""
    scripts = [_library(), _text("loader.js"), *([_text("explorer.js")] if page.explorer is not None else [])]
    charts = [
        {"name": chart.name, "spec": {**chart.spec, "usermeta": {"embedOptions": _EMBED}}}
        for section in page.sections
        for figure in section.figures
        for panel in figure.panels
        for chart in panel.charts
    ]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        style=_markup("page.css"),
        licences=_text("chart_licences.txt"),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        payload=pack({"charts": charts, "rows": page.rows, "entries": page.explorer.entries if page.explorer else []}),
        vega=f"Vega {vl_convert.get_vega_version()}, Vega-Lite {_VEGA_LITE}, "
        f"Vega-Embed {vl_convert.get_vega_embed_version()}",
    )


@cache
def _library() -> str:
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    if "</script" in script.lower() or "<!--" in script:
        raise StrataError("the charting library cannot stand inside a page; install the pinned vl-convert-python")
    return script


def _text(name: str) -> str:
    return (_OWN / name).read_text(encoding="utf-8")


def _markup(name: str) -> Markup:
    return Markup(_text(name))


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
