"""Codecs and data types by name: a reader that looks names up would import whatever a plug-in registered under them.

Refused by comparing names with those of the format; nothing is looked up, so nothing is imported or unpickled.
"""

from pathlib import Path
from typing import Any

import pytest
import zarr.registry

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import change_json, change_record

STATES = "token/hidden_states"
PICKLE = {"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}
ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


def shard_codecs(*codecs: dict[str, Any]) -> dict[str, Any]:
    inner = {"chunk_shape": [1, 1, 4], "codecs": list(codecs), "index_codecs": [ENDIAN], "index_location": "end"}
    return {"name": "sharding_indexed", "configuration": inner}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codecs": [PICKLE]}, r"has the codecs .*pickle"),
        ({"codecs": [ENDIAN, {"name": "gzip", "configuration": {"level": 1}}]}, r"has the codecs .*gzip"),
        ({"codecs": [shard_codecs(PICKLE)]}, "has shards with the codecs .*pickle"),
        ({"codecs": [shard_codecs(shard_codecs(ENDIAN))]}, "has shards with the codecs"),
        ({"codecs": "blosc"}, "has the codecs None"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}, "has the codecs None"),
        ({"data_type": "object"}, "has the data type 'object'"),
        ({"data_type": {"name": "numpy.datetime64", "configuration": {"unit": "s"}}}, "has the data type"),
        ({"data_type": "variable_length_bytes"}, "has the data type"),
        ({"fill_value": 0}, "has the fill value 0"),
        ({"chunk_key_encoding": {"name": "v2"}}, "has chunks under other names"),
        ({"storage_transformers": [PICKLE]}, "has chunks under other names"),
        ({"zarr_format": 2}, "describes no Zarr v3 array"),
    ],
)
def test_a_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    change_json(store, STATES, lambda node: node.update(change))
    monkeypatch.setattr(zarr.registry, "get_codec_class", lambda *_: pytest.fail("a codec was looked up"))
    withstand(store, Refusals(None, None, said, None, said), tmp_path / "results")


@pytest.mark.parametrize("dtype", ["object", "O", "V1000000", "datetime64[s]", "float64", None])
def test_a_dtype_of_the_manifest(store: Path, tmp_path: Path, dtype: str | None) -> None:
    change_record(store / f"{PART}.json", lambda record: record["arrays"][STATES].update(dtype=dtype))
    withstand(store, Refusals.everywhere("what cannot be: the dtype"), tmp_path / "results")
