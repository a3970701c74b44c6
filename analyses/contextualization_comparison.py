"""Figure that compares stores: a panel per pair, the mean curves of all stores and prompt groups on shared axes.

Colours tell stores and line styles prompt groups, so that the legend has a line for each of these and not for each
curve. Marks tell stores too, each at layers of its own: of curves that coincide only one line is seen, but the marks of
all. More stores than colours are cut into rows by source. Bands stand in the figure of each store: on shared axes they
would hide the curves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analyses.contextualization_figure import has_one_image_curve
from analyses.contextualization_results import StoreResult
from analyses.curves import image_curves
from analyses.figure_pages import draw_pages
from analyses.figure_style import (
    ADJUSTMENT_NOTES,
    COLUMN_INCHES,
    COSINE_NAMES,
    NOTE,
    PAIR_NAMES,
    LayerAxis,
    common_axis,
    share_vertical,
)
from analyses.labels import short_label, store_labels
from analyses.part_task import PAIRS, PairRow
from analyses.prompt_groups import PromptGroup, prompt_groups

__all__ = ["draw_comparison"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (8, 4)), (0, (3, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MOST_MARKS = 6  # of a curve
_GREY = "0.4"
_NOTE = "Lines: means over images. Marks show curves that lie beneath others."
_IDENTITY = "Where image states do not see the prompt, the one image–image curve is drawn solid."
_PANELS, _LINE, _FOOT = 3.0, 0.13, 0.2  # inches of a row's panels, a line of a legend, the axis' label
_LETTER = 0.048  # inches

_Entry = tuple[Artist, str]


class _Look(NamedTuple):
    """What all rows share: axes, labels of stores, a style per prompt group, and names on a line of the legend."""

    axis: LayerAxis
    cosine: str
    labels: Mapping[str, str]
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

    def stores(self, row: Sequence[StoreResult]) -> list[_Entry]:
        """Lines of the legend for the stores of a row."""
        return [
            (Line2D([], [], color=colour, marker=marker, markersize=3), short_label(self.labels[item.identity.store]))
            for item, colour, marker in zip(row, _COLOURS, _MARKERS, strict=False)
        ]

    def inches(self, entries: int) -> float:
        """Height of so many names in the legend."""
        return _LINE * -(-entries // self.columns)


def draw_comparison(results: Sequence[StoreResult]) -> list[Figure]:
    """Draw all mean curves, rows of stores on as many pages as it takes.

    Layers where all models have as many blocks, else depths.
    """
    labels = store_labels([item.identity for item in results])
    groups = list(dict.fromkeys(group for item in results for group, _ in prompt_groups(item.result.samples)))
    names = [short_label(name) for name in (*labels.values(), *(group.title for group in groups))]
    look = _Look(
        common_axis([(item.result.layers, item.result.block_count) for item in results]),
        COSINE_NAMES[results[0].result.adjustment],
        labels,
        {group: _STYLES[number % len(_STYLES)] for number, group in enumerate(groups)},
        max(1, min(4, int(COLUMN_INCHES / (_LETTER * max(map(len, names)) + 0.5)))),
    )
    rows = _cut_rows(results)
    notes = [_NOTE, ADJUSTMENT_NOTES.get(results[0].result.adjustment, "")]
    notes += [_IDENTITY] if len(groups) > 1 and any(map(has_one_image_curve, results)) else []
    figures = draw_pages(
        rows,
        [_row_inches(row, look) for row in rows],
        notes,
        beside=lambda lines: _beside(look, lines),
        draw=lambda page, lines: _draw_page(page, look, lines),
    )
    share_vertical([ax for figure in figures for ax in figure.axes])
    return figures


def _row_inches(row: Sequence[StoreResult], look: _Look) -> float:
    return _PANELS + look.inches(len(row)) + _LINE


def _beside(look: _Look, notes: str) -> float:
    return look.inches(len(look.groups)) + _FOOT + 0.1 * (notes.count("\n") + 1)


def _draw_page(rows: Sequence[Sequence[StoreResult]], look: _Look, notes: str) -> Figure:
    heights = [_row_inches(row, look) for row in rows]
    total = sum(heights) + _beside(look, notes)
    heights[-1] += look.inches(len(look.groups))
    figure = Figure(figsize=(COLUMN_INCHES, total), layout="constrained")
    pieces = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for piece, row in zip(pieces, rows, strict=True):
        _draw_row(piece, row, look)
        stores = look.stores(row)
        _legend(piece, [stores, look.groups] if row is rows[-1] else [stores], look.columns)
    figure.supxlabel(notes, **NOTE)
    figure.supylabel(look.cosine, fontsize=6.5)
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


def _draw_row(piece: SubFigure, row: Sequence[StoreResult], look: _Look) -> None:
    for ax, pair in zip(piece.subplots(len(PAIRS), 1), PAIRS, strict=True):
        for number, item in enumerate(row):
            _draw_store(ax, item, pair, look, (number, len(row)))
        ax.set_title(PAIR_NAMES[pair], loc="left", pad=3)
        look.axis.set_on(ax, labelled=pair == PAIRS[-1])
        ax.tick_params(labelbottom=pair == PAIRS[-1])


def _draw_store(ax: Axes, item: StoreResult, pair: str, look: _Look, place: tuple[int, int]) -> None:
    """Draw the curves of a store, whose place among how many of its row says its colour and its marks."""
    result = item.result
    row = result.rows.index(PairRow(pair, False))
    once = pair == "image-image" and has_one_image_curve(item)
    places = look.axis.at(result.layers, result.block_count)
    marks = _marked(len(places), *place)
    for group, chosen in prompt_groups(result.samples):
        curves = image_curves(result.samples[chosen], result.cosine[chosen, :, row]).curves
        if not len(curves):
            continue
        mean, colour = curves.mean(axis=0), _COLOURS[place[0]]
        ax.plot(places, mean, color=colour, linestyle="-" if once else look.styles[group], linewidth=1.0)
        ax.scatter(places[marks], mean[marks], 5, colour, marker=_MARKERS[place[0]], linewidths=0, zorder=3)
        if once:
            return


def _marked(layers: int, number: int, stores: int) -> slice:
    """Which layers a store's marks stand at: no other's, where there are as many layers as stores."""
    step = max(stores, -(-layers // _MOST_MARKS))
    return slice(number * step // stores % layers, None, step)
