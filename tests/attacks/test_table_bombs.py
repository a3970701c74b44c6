"""Parquet tables that become gigabytes when they are read: one long value, one in every row, values without end.

The headers of all pages are looked at first: what they claim must be in proportion to the file.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import reseal

BOMB = r"parquet claims more than .* bytes"
LONG = 80 * 2**20


def replaced(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)


def one_long_value(table: pa.Table) -> pa.Table:
    return replaced(table, "prompt", pa.array(["a" * LONG, ""]))


def one_value_everywhere(table: pa.Table) -> pa.Table:
    return replaced(table, "references", pa.array([["a" * 2**20] * 80, []]))


def nothing_without_end(table: pa.Table) -> pa.Table:
    offsets = pa.array([0, 2**23, 2**23], pa.int32())
    return replaced(table, "references", pa.ListArray.from_arrays(offsets, pa.nulls(2**23, pa.string())))


@pytest.mark.parametrize("make", [one_long_value, one_value_everywhere, nothing_without_end])
def test_a_table_of_samples(store: Path, tmp_path: Path, make: Any) -> None:
    pq.write_table(make(pq.read_table(store / f"{PART}.parquet")), store / f"{PART}.parquet", compression="zstd")
    reseal(store)
    assert (store / f"{PART}.parquet").stat().st_size < 2**18
    withstand(store, Refusals(None, None, BOMB, None, BOMB), tmp_path / "results")


def test_a_plan(store: Path, tmp_path: Path) -> None:
    table = pq.read_table(store / "plan.parquet")
    pq.write_table(replaced(table, "image_id", pa.array(["a" * LONG, ""])), store / "plan.parquet", compression="zstd")
    reseal(store)
    withstand(store, Refusals(None, "plan.parquet: holds no plan", "plan.parquet", BOMB, BOMB), tmp_path / "results")


@pytest.mark.parametrize("column", ["image_id", "segments", "query_positions"])
def test_columns_of_other_types(store: Path, tmp_path: Path, column: str) -> None:
    table = pq.read_table(store / f"{PART}.parquet")
    odd = table.set_column(table.schema.get_field_index(column), column, pa.array([1.5, 2.5]))
    pq.write_table(odd, store / f"{PART}.parquet")
    reseal(store)
    said = f"has double in the column {column}"
    withstand(store, Refusals(None, None, said, None, said), tmp_path / "results")


def test_rows_that_nobody_planned(store: Path, tmp_path: Path) -> None:
    table = pq.read_table(store / f"{PART}.parquet")
    pq.write_table(pa.concat_tables([table] * 3), store / f"{PART}.parquet")
    reseal(store)
    said = "has 6 rows, 2 are recorded"
    withstand(store, Refusals(None, None, said, None, said), tmp_path / "results")
