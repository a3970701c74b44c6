"""Numbers of a figure as a file that a browser saves from the page itself: CSV, in an address that holds the data."""

import base64
import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from analyses.report.packing import Rows

__all__ = ["Download", "Names", "to_csv"]

Names = Mapping[str, tuple[str, Sequence[str]]]
"""By the field of a row that holds a place: what it is a place among, as a column's name, and the names there."""

# Where on the chart and how, which says nothing without it.
_DRAWN = {"x", "x2", "x_low", "x_high", "left", "right", "middle", "colour", "inner"}
_MOST_PLAIN = 2**18  # bytes; a heat map of several prompts and stores has megabytes of text that pack tenfold


class Download(NamedTuple):
    """A file within a page.

    Attributes
    ----------
    name : str
    address : str
        A ``data:`` address.
    """

    name: str
    address: str


def to_csv(name: str, rows: Rows, names: Names) -> Download:
    """Write rows as CSV (RFC 4180, UTF-8), with names instead of places.

    Parameters
    ----------
    name : str
        Of the file, without its end.
    rows : list of dict
        None, and what only other rows have, is an empty cell. A column of a row's own that has the name of a place's
        stays as it is.
    names : Names

    Returns
    -------
    Download
        ``NAME.csv``, or ``NAME.csv.gz``, which pandas and R read as they are, where the text is large.
    """
    told = [_tell(row, names) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in told for column in row)))
    writer.writeheader()
    writer.writerows(told)
    content, end, kind = text.getvalue().encode(), "csv", "text/csv"
    if len(content) > _MOST_PLAIN:
        content, end, kind = gzip.compress(content, mtime=0), "csv.gz", "application/gzip"
    return Download(f"{name}.{end}", f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}")


def _tell(row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    named = {column: options[row[place]] for place, (column, options) in names.items() if place in row}
    return named | {key: value for key, value in row.items() if key not in names and key not in _DRAWN}
