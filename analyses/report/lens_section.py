"""The section of LogitLens: precision, recall and agreement against depth, and the explorer of patches."""

from collections.abc import Sequence
from typing import Any

from analyses.figure_style import BAND_NOTE, LayerAxis
from analyses.logit_lens_panels import ALL_PROMPTS, IDENTITY_NOTE
from analyses.report.chart_style import BAND, TEXT, chart, follow, looks, subset, x_axis
from analyses.report.packing import Rows, number
from analyses.report.results import Results, groups_of, stores_of
from analyses.report.section import Chart, Choice, Control, Figure, Panel, Section, Table

__all__ = ["lens_rows", "lens_section"]

_FIGURE = "lens-curves"
_MEASURES = {"precision": "Precision", "recall": "Recall", "agreement": "Agreement with the last layer"}
_MEASURES_NOTE = (
    "At each layer the hidden state of every image token goes through the model's final norm and unembedding; its best "
    "piece is what it says. Precision: how much of what is said stands in the captions. Recall: how many words of the "
    "captions are said. Agreement: image tokens that say the same at the last layer."
)
_STATISTICS = {"": "mean", "_std": "std"}
_VARIANT_WORDS = {"unique": "distinct words", "token": "words with repetition", "prefix": "beginnings of words"}


def lens_section(results: Results) -> tuple[Section, dict[str, Rows]]:
    """Make the section, without the explorer, and the rows that its charts name."""
    if "logit-lens" not in results.datasets:
        how = f"LogitLens is not there: strata analyze logit-lens STORE --out {results.folder} computes it."
        return Section("logit-lens", "LogitLens", missing=(how,)), {}
    axis = results.axis(results.datasets["logit-lens"]["layer"].values)
    rows = lens_rows(results, axis)
    once = all(row["prompt"] == ALL_PROMPTS for row in rows)
    notes = (
        _MEASURES_NOTE,
        BAND_NOTE,
        "Words count once (distinct), with repetition, or as beginnings of the captions' words.",
        *([IDENTITY_NOTE.replace("\n", " ")] if once else []),
    )
    measures = [name for name in _MEASURES if any(row[name] is not None for row in rows)]
    variants = [_VARIANT_WORDS[str(name)] for name in results.datasets["logit-lens"]["variant"].values]
    prompts, prompt_shown = subset("g", "Prompt", results.titles[:1] if once else results.titles)
    stores, store_shown = subset("s", "Store", results.labels)
    controls = (Choice("variant", "Words", variants), prompts, stores)
    shown = f"datum.v == variant && {prompt_shown} && {store_shown}"
    charts = tuple(
        _chart(results, axis, name, _highest(rows, name), controls=controls, shown=shown, once=once)
        for name in measures
    )
    missing = (
        () if "precision" in measures else ("The source has no captions, so there is nothing to score words with.",)
    )
    panel, table = Panel(controls, charts), _table(rows, measures)
    figure = Figure(_FIGURE, "Words against captions", (panel,), notes, (table,), ("lens",))
    return Section("logit-lens", "LogitLens", (figure,), missing), {"lens": rows}


def lens_rows(results: Results, axis: LayerAxis) -> Rows:
    """Row per store, prompt group, variant and layer.

    Returns
    -------
    list of dict
        Places ``s``, ``g`` and ``v`` of store, group and variant, their names, ``layer``, ``x``, and per measure its
        mean over images, and with ``_std`` its standard deviation. Where image states do not see the prompt,
        the first group stands for all prompts.
    """
    dataset = results.datasets["logit-lens"]
    layers, variants = dataset["layer"].values, [str(name) for name in dataset["variant"].values]
    values = {end: {name: dataset[f"{name}_{what}"].values for name in _MEASURES} for end, what in _STATISTICS.items()}
    stores = stores_of(dataset)
    rows: Rows = []
    for place, (store, group) in enumerate(zip(stores, groups_of(dataset), strict=True)):
        s = results.place(store)
        shared = results.identities[s].image_states_depend_on_prompt is False and stores.count(store) > 1
        if shared and stores.index(store) != place:
            continue
        g = results.groups.index(group)
        x = axis.at(layers, results.blocks[s])
        for v, variant in enumerate(variants):
            for at in range(len(layers)):
                statistics = {
                    f"{name}{end}": number(array[(place, v, at) if array.ndim == 3 else (place, at)])
                    for end, arrays in values.items()
                    for name, array in arrays.items()
                }
                if all(value is None for value in statistics.values()):
                    continue
                rows.append(
                    {
                        "s": s,
                        "g": g,
                        "v": v,
                        "store": results.labels[s],
                        "prompt": ALL_PROMPTS if shared else results.titles[g],
                        "variant": variant,
                        "layer": int(layers[at]),
                        "x": number(x[at]),
                        **statistics,
                    }
                )
    return rows


def _table(rows: Rows, measures: list[str]) -> Table:
    def said(row: dict[str, Any], measure: str) -> str:
        mean, std = row[measure], row[f"{measure}_std"]
        return "–" if mean is None else f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"

    return Table(
        "Mean and standard deviation over images",
        ("store", "prompt", "words", "layer", *measures),
        [
            (row["store"], row["prompt"], row["variant"], str(row["layer"]), *(said(row, name) for name in measures))
            for row in rows
        ],
    )


def _highest(rows: Rows, measure: str) -> float:
    """Return the upper end of an axis: precision and recall, which are compared, have the same."""
    if measure == "agreement":
        return 1.0
    ends = [row[name] + (row[f"{name}_std"] or 0) for row in rows for name in ("precision", "recall") if row[name]]
    return min(1.0, 1.04 * max(ends, default=1.0))


def _chart(
    results: Results,
    axis: LayerAxis,
    measure: str,
    highest: float,
    *,
    controls: Sequence[Control],
    shown: str,
    once: bool,
) -> Chart:
    encoding = looks(results)
    if once:  # of one store there is nothing to tell apart then
        encoding = {"color": encoding["color"] if len(results.labels) > 1 else {"value": TEXT}}
    y: dict[str, Any] = {"field": measure, "type": "quantitative", "title": None}
    y["scale"] = {"domain": [0, highest], "nice": False}
    tooltip = [{"field": name} for name in ("store", "prompt", "variant")]
    tooltip += [{"field": name, "type": "quantitative"} for name in ("layer", measure)]
    words = "agreement does not depend on how words count" if measure == "agreement" else "choose how words count"
    spec = chart(
        f"{_MEASURES[measure]} against {axis.label}, a line per store and prompt kind; {words}",
        height=220,
        params=follow(_FIGURE, controls),
        data={"name": "lens"},
        transform=[
            {"filter": shown},
            {"calculate": f"max(0, datum.{measure} - datum.{measure}_std)", "as": "below"},
            {"calculate": f"min(1, datum.{measure} + datum.{measure}_std)", "as": "above"},
        ],
        encoding={
            "x": x_axis(axis),
            "y": y,
            **encoding,
            "detail": [{"field": "s"}, {"field": "g"}],
        },
        layer=[
            {
                "mark": {"type": "area", "clip": True, **BAND},
                "encoding": {"y": {**y, "field": "below"}, "y2": {"field": "above"}},
            },
            {"mark": {"type": "line", "aria": False}},
            {
                "mark": {"type": "point", "filled": True, "size": 140, "opacity": 0, "aria": False},
                "encoding": {"tooltip": tooltip},
            },
        ],
    )
    return Chart(f"lens-{measure}", _MEASURES[measure], spec)
