"""Attention as text: what the charts of it show, for screen readers and whoever wants the numbers."""

from typing import Any

from analyses.norm_attention_panels import QUERY_NAMES
from analyses.report.packing import Rows
from analyses.report.results import Results
from analyses.report.section import Table

__all__ = ["largest_table", "query_names", "role_table"]

_SIDES = ("norm", "weight")


def query_names(results: Results) -> list[str]:
    """Name the queries of ``norm-attention`` as figures do, in the order of its dataset."""
    names = results.datasets["norm-attention"]["query"].values.tolist()
    return [QUERY_NAMES.get(name, name) for name in names]


def role_table(results: Results, roles: Rows) -> Table:
    """Share of each role by norm and by weight, a row per store, prompt, query and block."""
    columns = list(dict.fromkeys(row["role"] for row in roles))
    cells: dict[tuple[int, ...], dict[str, str]] = {}
    for row in roles:
        shares = " / ".join("–" if row[side] is None else f"{row[side]:.3f}" for side in _SIDES)
        cells.setdefault(_key(row), {})[row["role"]] = shares
    return Table(
        "Shares of roles by norm / by weight",
        ("store", "prompt", "from", "block", *columns),
        [(*_names(results, key), *(own.get(role, "–") for role in columns)) for key, own in cells.items()],
    )


def largest_table(results: Results, places: Rows) -> Table:
    """Find the key with the largest share of each row, by norm and by weight."""
    best: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in places:
        own = best.setdefault(_key(row), dict.fromkeys(_SIDES))
        for side in _SIDES:
            if row[side] is not None and (own[side] is None or row[side] > own[side][side]):
                own[side] = row

    def said(row: dict[str, Any] | None, side: str) -> str:
        return "–" if row is None else f"{row['where']} ({row[side]:.3g})"

    return Table(
        "Where the largest share of each row lies",
        ("store", "prompt", "from", "block", "by norm", "by weight"),
        [(*_names(results, key), *(said(best[key][side], side) for side in _SIDES)) for key in sorted(best)],
    )


def _key(row: dict[str, Any]) -> tuple[int, ...]:
    return row["s"], row["g"], row["q"], row["block"]


def _names(results: Results, key: tuple[int, ...]) -> tuple[str, ...]:
    s, g, q, block = key
    return results.labels[s], results.titles[g], query_names(results)[q], str(block)
