"""Tables read as Arrow reads them, and never take more than their pages' headers said."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StrataError
from engine.store.location import Location
from engine.store.parquet_pages import MalformedPageError, decoded_bytes
from engine.store.tables import open_table, read_table

NUMBERS = st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=50)
TEXTS = st.lists(st.none() | st.text(max_size=300), max_size=50)
LISTS = st.lists(st.none() | st.lists(st.text(max_size=40), max_size=20), max_size=50)


@given(
    data=st.one_of(
        NUMBERS.map(lambda values: pa.array(values, pa.int32())),
        TEXTS.map(lambda values: pa.array(values, pa.string())),
        LISTS.map(lambda values: pa.array(values, pa.list_(pa.string()))),
    ),
    repeat=st.integers(1, 40),
    dictionary=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    compression=st.sampled_from(["zstd", "snappy", "none"]),
    page=st.sampled_from([64, 2**20]),
)
def test_the_bound_is_one(
    data: pa.Array, repeat: int, dictionary: bool, version: str, compression: str, page: int
) -> None:
    table = pa.table({"x": pa.chunked_array([data] * repeat).combine_chunks()})
    file = BytesIO()
    pq.write_table(
        table, file, use_dictionary=dictionary, data_page_version=version, compression=compression, data_page_size=page
    )
    metadata = pq.ParquetFile(file).metadata
    columns = [metadata.row_group(number).column(0) for number in range(metadata.num_row_groups)]
    bound = sum(decoded_bytes(column, file, 2**40) for column in columns)
    read = pq.read_table(BytesIO(file.getvalue())).combine_chunks()
    # Nothing is allocated for validity where all is valid, a page's end is rounded up.
    assert read.nbytes <= bound + 64
    assert bound >= sum(column.total_uncompressed_size for column in columns) - 2**16


def test_other_encodings_are_refused() -> None:
    file = BytesIO()
    pq.write_table(
        pa.table({"x": ["a" * 50] * 9}), file, use_dictionary=False, column_encoding={"x": "DELTA_BYTE_ARRAY"}
    )
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    with pytest.raises(MalformedPageError, match="another encoding"):
        decoded_bytes(column, file, 2**40)


def test_a_table_by_its_schema(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int32()), "later": [3, 4]}), tmp_path / "x.parquet")
    location = Location(str(tmp_path))
    with open_table(location, "x.parquet", schema, rows=2) as table:
        assert table.columns == ("a",)
        assert table.read(["a"]).to_pydict() == {"a": [1, 2]}
    with pytest.raises(StrataError, match="lacks the column b"):
        read_table(location, "x.parquet", schema)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StrataError, match=r"x\.parquet is no table"):
        read_table(location, "x.parquet", schema)
