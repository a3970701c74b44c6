"""What a benchmark run leaves: one table on the terminal and ``bench.json``."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from tests.bench.rows import Row

__all__ = ["make_table", "write_json"]

_MARKS = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}


def make_table(rows: Sequence[Row]) -> Table:
    """One line per row: name, value, goal, met, against."""
    table = Table(title="strata benchmark: every figure is a ratio of two things measured in this run")
    table.add_column("name", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("goal", no_wrap=True)
    table.add_column("met")
    table.add_column("against", overflow="fold")
    for row in rows:
        table.add_row(row.name, f"{row.value:.3f}", str(row.goal), _MARKS[row.goal.met(row.value)], row.against)
    return table


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """Write ``[{name, value, goal, met, against}]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps([row.record() for row in rows], indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(content + "\n", encoding="utf-8")
