"""Files within a page against the rows that they are of."""

import gzip
import io
from base64 import b64decode

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.report.downloads import to_csv

NAMES = {"s": ("store", ["first", 'a "quoted", second\n']), "g": ("prompt", ["normal", "noisy"])}


def test_places_become_names_and_drawing_is_left_out() -> None:
    rows = [{"s": 1, "g": 0, "block": 3, "left": 0.1, "norm": None}, {"s": 0, "g": 1, "block": 4, "left": 0, "more": 1}]
    file = to_csv("shares", rows, NAMES)
    kind, _, content = file.address.partition(",")
    assert (file.name, kind) == ("shares.csv", "data:text/csv;base64")
    read = pd.read_csv(io.BytesIO(b64decode(content)))
    assert list(read) == ["store", "prompt", "block", "norm", "more"]
    assert read["store"].tolist() == ['a "quoted", second\n', "first"]
    assert read["prompt"].tolist() == ["normal", "noisy"]
    assert read["norm"].isna().all()


def test_a_name_of_the_rows_own_stays() -> None:
    file = to_csv("lens", [{"g": 0, "prompt": "all prompts", "layer": 1}], NAMES)
    assert b64decode(file.address.partition(",")[2]) == b"prompt,layer\r\nall prompts,1\r\n"


def test_large_files_are_packed() -> None:
    rows = [{"s": number % 2, "value": number / 7} for number in range(30_000)]
    file = to_csv("places", rows, NAMES)
    kind, _, content = file.address.partition(",")
    assert (file.name, kind) == ("places.csv.gz", "data:application/gzip;base64")
    read = pd.read_csv(io.BytesIO(gzip.decompress(b64decode(content))))
    assert read["value"].tolist() == pytest.approx([row["value"] for row in rows])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8), min_size=1))
def test_any_text_comes_back(texts: list[str]) -> None:
    content = b64decode(to_csv("t", [{"text": text} for text in texts], {}).address.partition(",")[2])
    read = pd.read_csv(io.BytesIO(content), keep_default_na=False, skip_blank_lines=False, dtype=str)
    assert read["text"].tolist() == texts
