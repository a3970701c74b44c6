"""What a page is made of: sections with figures, each with its controls, charts, numbers and the command behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Chart", "Choice", "Control", "Figure", "Panel", "Section", "Slider", "Table"]


class Choice(NamedTuple):
    """A list to choose one of.

    Attributes
    ----------
    name : str
        Of the signal of charts that is the place of what is chosen; one name per figure.
    label : str
    options : sequence of str
        One alone is nothing to choose: the page shows no list then.
    chosen : int
        At first.
    """

    name: str
    label: str
    options: Sequence[str]
    chosen: int = 0


class Slider(NamedTuple):
    """Whole numbers to slide over, from ``first`` to ``last``; ``name`` is that of the signal that is the number."""

    name: str
    label: str
    first: int
    last: int
    chosen: int


Control: TypeAlias = Choice | Slider


class Chart(NamedTuple):
    """One drawing.

    Attributes
    ----------
    name : str
        Of its element, and of the file that it is saved as.
    title : str
        Short; empty where the figure has but one.
    spec : mapping
        For Vega-Lite; its data are named.
    """

    name: str
    title: str
    spec: Mapping[str, Any]


class Panel(NamedTuple):
    """Charts side by side where there is room, and the controls right above them, which all charts of a figure follow.

    Attributes
    ----------
    controls : tuple of Control
    charts : tuple of Chart
    """

    controls: tuple[Control, ...]
    charts: tuple[Chart, ...]


class Table(NamedTuple):
    """Numbers as text, for eyes, screen readers and the clipboard."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    open: bool = False


class Figure(NamedTuple):
    """One figure.

    Attributes
    ----------
    name : str
    title : str
    panels : tuple of Panel
    notes : tuple of str
        What whoever reads the figure should know.
    tables : tuple of Table
    data : tuple of str
        Names of the rows that are saved as CSV.
    explorer : bool
        Whether it is the explorer of patches, which has no chart.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    data: tuple[str, ...] = ()
    explorer: bool = False


class Section(NamedTuple):
    """Figures of one analysis.

    Attributes
    ----------
    name, title : str
    figures : tuple of Figure
    missing : tuple of str
        Sentences that say what is not there, and how to get it.
    command : str
        What computes the results that the figures show; empty without results.
    """

    name: str
    title: str
    figures: tuple[Figure, ...] = ()
    missing: tuple[str, ...] = ()
    command: str = ""
