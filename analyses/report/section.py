"""What a page is made of: sections with figures, each with its charts, its numbers and the command that makes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Chart", "Figure", "Section", "Table"]


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
    shared : tuple of str
        Signals that follow those of the same name in other charts of the page.
    """

    name: str
    title: str
    spec: Mapping[str, Any]
    shared: tuple[str, ...] = ()


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
    charts : tuple of Chart
        Side by side where there is room; the first one brings the choices.
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
    charts: tuple[Chart, ...]
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
