"""Figure that compares stores: a panel per pair, the mean curves of all stores and prompt groups on shared axes.

Colours tell stores and line styles prompt groups, so that the legend has a line for each of these and not for each
curve. More stores than colours are cut into rows by source. Bands stand in the figure of each store: on shared axes
they would hide the curves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analyses.contextualization_figure import has_one_image_curve
from analyses.contextualization_results import StoreResult
from analyses.curves import image_curves
from analyses.figure_style import (
    ADJUSTMENT_NOTES,
    COLUMN_INCHES,
    COSINE_NAMES,
    NOTE,
    PAIR_NAMES,
    STYLE,
    LayerAxis,
    common_axis,
    wrap_notes,
)
from analyses.labels import short_label, store_labels
from analyses.part_task import PAIRS, PairRow
from analyses.prompt_groups import PromptGroup, prompt_groups

__all__ = ["draw_comparison"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (8, 4)), (0, (3, 3)))
_GREY = "0.4"
_NOTE = "Lines: means over images."
_IDENTITY = "Where image states do not see the prompt, the one image–image curve is drawn solid."
_PANELS, _LINE, _FOOT = 3.0, 0.13, 0.2  # inches of a row's panels, a line of a legend, the axis' label
_LETTER = 0.048  # inches

_Entry = tuple[Artist, str]


class _Look(NamedTuple):
    """What all rows share: the axis, a style per prompt group, and how many names stand on a line of the legend."""

    axis: LayerAxis
    styles: dict[PromptGroup, Any]
    columns: int

    @property
    def groups(self) -> list[_Entry]:
        """Lines of the legend for prompt groups; none where there is one."""
        entries: list[_Entry] = [
            (Line2D([], [], color=_GREY, linestyle=style), short_label(group.title))
            for group, style in self.styles.items()
        ]
        return entries if len(entries) > 1 else []

    def lines(self, entries: int) -> int:
        """Lines of the legend that so many names take."""
        return -(-entries // self.columns)


def draw_comparison(results: Sequence[StoreResult]) -> Figure:
    """Draw all mean curves; layers where all models have as many blocks, else depths."""
    labels = store_labels([item.identity for item in results])
    groups = list(dict.fromkeys(group for item in results for group, _ in prompt_groups(item.result.samples)))
    names = [short_label(name) for name in (*labels.values(), *(group.title for group in groups))]
    look = _Look(
        common_axis([(item.result.layers, item.result.block_count) for item in results]),
        {group: _STYLES[number % len(_STYLES)] for number, group in enumerate(groups)},
        max(1, min(4, int(COLUMN_INCHES / (_LETTER * max(map(len, names)) + 0.5)))),
    )
    rows = _cut_rows(results)
    heights = [_PANELS + _LINE * (look.lines(len(row)) + 1) for row in rows]
    heights[-1] += _LINE * look.lines(len(look.groups))
    notes = [_NOTE, ADJUSTMENT_NOTES.get(results[0].result.adjustment, "")]
    notes += [_IDENTITY] if len(groups) > 1 and any(map(has_one_image_curve, results)) else []
    text = wrap_notes(notes)
    foot = _FOOT + 0.1 * (text.count("\n") + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, sum(heights) + foot), layout="constrained")
        pieces = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes: list[Axes] = []
        for piece, row in zip(pieces, rows, strict=True):
            axes += _draw_row(piece, row, look)
            stores = [
                (Line2D([], [], color=colour), short_label(labels[item.identity.store]))
                for item, colour in zip(row, _COLOURS, strict=False)
            ]
            _legend(piece, [stores, look.groups] if row is rows[-1] else [stores], look.columns)
        _share(axes)
        figure.supxlabel(text, **NOTE)
        figure.supylabel(COSINE_NAMES[results[0].result.adjustment], fontsize=6.5)
    return figure


def _cut_rows(results: Sequence[StoreResult]) -> list[list[StoreResult]]:
    """All stores in one row while colours tell them apart, else rows by source, none longer than that."""
    most = len(_COLOURS)
    if len(results) <= most:
        return [list(results)]
    sources: dict[str, list[StoreResult]] = {}
    for item in results:
        sources.setdefault(item.identity.source, []).append(item)
    return [own[start : start + most] for own in sources.values() for start in range(0, len(own), most)]


def _legend(piece: SubFigure, kinds: Sequence[Sequence[_Entry]], columns: int) -> None:
    """Write names line by line, each kind on lines of its own; matplotlib fills columns first."""
    blank: _Entry = (Line2D([], [], linestyle="none"), "")
    cells = [entry for kind in kinds for entry in (*kind, *[blank] * (-len(kind) % columns))]
    ordered = [entry for column in range(columns) for entry in cells[column::columns]]
    handles, names = zip(*ordered, strict=True)
    piece.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.2,
    )


def _draw_row(piece: SubFigure, row: Sequence[StoreResult], look: _Look) -> list[Axes]:
    axes = list(piece.subplots(len(PAIRS), 1))
    for ax, pair in zip(axes, PAIRS, strict=True):
        for item, colour in zip(row, _COLOURS, strict=False):
            _draw_store(ax, item, pair, colour, look)
        ax.set_title(PAIR_NAMES[pair], loc="left", pad=3)
        look.axis.set_on(ax, labelled=pair == PAIRS[-1])
        ax.tick_params(labelbottom=pair == PAIRS[-1])
    return axes


def _draw_store(ax: Axes, item: StoreResult, pair: str, colour: str, look: _Look) -> None:
    result = item.result
    row = result.rows.index(PairRow(pair, False))
    once = pair == "image-image" and has_one_image_curve(item)
    places = look.axis.at(result.layers, result.block_count)
    for group, chosen in prompt_groups(result.samples):
        curves = image_curves(result.samples[chosen], result.cosine[chosen, :, row]).curves
        if not len(curves):
            continue
        style = "-" if once else look.styles[group]
        ax.plot(places, curves.mean(axis=0), color=colour, linestyle=style, linewidth=1.0)
        if once:
            return


def _share(axes: Sequence[Axes]) -> None:
    """Give all panels one vertical axis; an empty one has no say in it."""
    drawn = [ax.get_ylim() for ax in axes if ax.lines] or [(0.0, 1.0)]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in drawn), max(high for _, high in drawn))
