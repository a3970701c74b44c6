"""Arrays that claim terabytes in a few hundred bytes of files, in the manifest, in ``zarr.json``, or in both.

A manifest is refused that claims more values than its files can hold; a description that is not the manifest's, or has
chunks that no reader can hold, is refused before the first of them is read.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import change_json, change_record

STATES = "token/hidden_states"
HUGE = 2**38
CLAIMS = Refusals.everywhere(r"hidden_states.* what cannot be: .* bytes of values in .* bytes of files")
TOKENS = Refusals.everywhere(r"what cannot be: .* along token, where the part has")
LAZY = Refusals(None, None, "cannot be read: ", None, "hidden_states")


def claim(entry: dict[str, Any], shape: list[int]) -> None:
    entry.update(shape=shape, shard=shape)
    entry.pop("kept", None)


def test_a_manifest_that_claims_terabytes(store: Path, tmp_path: Path) -> None:
    change_record(store / f"{PART}.json", lambda record: claim(record["arrays"][STATES], [HUGE, *shape_of(record)[1:]]))
    withstand(store, CLAIMS, tmp_path / "results")


def shape_of(record: dict[str, Any]) -> list[int]:
    return list(record["arrays"][STATES]["shape"])


def test_tokens_that_are_not_there(store: Path, tmp_path: Path) -> None:
    change_record(store / f"{PART}.json", lambda record: claim(record["arrays"][STATES], [2, HUGE, 4]))
    withstand(store, TOKENS, tmp_path / "results")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [2, HUGE, 4]}, "its manifest says"),
        ({"shape": [2**62, 2**62, 4]}, "has the shape"),
        ({"shape": [-1, 2, 4]}, "has the shape"),
        ({"shape": ["2", 2, 4]}, "has the shape"),
        ({"shape": [2] * 400}, "has the shape"),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, HUGE, 4]}}},
            "whole chunks|its manifest",
        ),
        ({"chunk_grid": {"name": "rectilinear", "configuration": {}}}, "has chunks of None"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 0, 0]}}}, "has chunks of"),
    ],
)
def test_a_description_that_says_more(store: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    change_json(store, STATES, lambda node: node.update(change))
    withstand(store, LAZY._replace(deep=said, analysed=said), tmp_path / "results")


def test_inner_chunks_of_terabytes(store: Path, tmp_path: Path) -> None:
    long = [1, 2**36, 4]

    def stretch(node: dict[str, Any]) -> None:
        node["chunk_grid"]["configuration"]["chunk_shape"] = long
        node["codecs"][0]["configuration"]["chunk_shape"] = long

    change_json(store, STATES, stretch)
    change_record(store / f"{PART}.json", lambda record: record["arrays"][STATES].update(shard=long))
    said = "more than .* bytes each"
    withstand(store, LAZY._replace(deep=said, analysed=said), tmp_path / "results")
