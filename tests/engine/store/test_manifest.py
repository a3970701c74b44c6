"""Sealed JSON: one text for one value, and no byte changes unnoticed. What a manifest cannot say, sealed or not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StrataError
from engine.store.manifest import canonical_json, has_true_sha256, hash_file, parse_json, seal_json
from engine.store.manifest_check import check_manifest

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
scalars = scalars | st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
)
records = st.dictionaries(st.text('abcxyz"é', min_size=1, max_size=5), values, min_size=1, max_size=5)


@settings(max_examples=60)
@given(records)
def test_order_of_keys_does_not_matter(record: dict) -> None:
    backwards = dict(reversed(record.items()))
    assert canonical_json(record) == canonical_json(backwards)
    assert json.loads(canonical_json(record)) == record


@settings(max_examples=60)
@given(records)
def test_seal_by_the_written_rule(record: dict) -> None:
    """The checksum is checked as FORMAT.md tells a reader in another language to do it."""
    sealed = seal_json(record)
    lines = sealed.decode().splitlines()
    stated = lines[-2].strip().removeprefix('"sha256": "').removesuffix('"')
    body = sealed[: sealed.rindex(b',\n  "sha256"')] + b"\n}\n"
    assert hashlib.sha256(body).hexdigest() == stated
    assert has_true_sha256(sealed)
    assert json.loads(sealed) == {**record, "sha256": stated}
    assert list(json.loads(sealed))[-1] == "sha256"


@settings(max_examples=60)
@given(records, st.data())
def test_any_changed_byte_is_noticed(record: dict, data: st.DataObject) -> None:
    sealed = bytearray(seal_json(record))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= 1 << data.draw(st.integers(0, 7))
    assert not has_true_sha256(bytes(sealed))


@pytest.mark.parametrize("record", [{}, {"sha256": "x", "a": 1}])
def test_what_cannot_be_sealed(record: dict) -> None:
    with pytest.raises(ValueError, match="sealed"):
        seal_json(record)


def test_nan_is_not_json() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize(("content", "message"), [(b"{", "not JSON"), (b"[1]", "list"), (b"\xff", "not JSON")])
def test_what_is_no_record(content: bytes, message: str) -> None:
    with pytest.raises(StrataError, match=message):
        parse_json(content, "x.json")


def test_hash_of_a_file(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file") == {"sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3}


def test_what_no_reader_takes_is_not_written() -> None:
    with pytest.raises(StrataError, match="readers take 8,388,608: make smaller parts"):
        seal_json({"reasons": ["x" * 100] * 100_000})


GOLDEN = Path(__file__).parents[2] / "golden"
STATES = "token/hidden_states"


def golden_manifest(version: str = "1.0") -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((GOLDEN / version / "parts/00000000.json").read_bytes())
    return manifest


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.4", "1.0"])
def test_manifests_of_every_version_say_what_can_be(version: str) -> None:
    assert check_manifest(golden_manifest(version)) is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("run", [], "has a run that is no object"),
        ("run", None, "has a run that is no object"),
        ("seconds", float("nan"), "has a time that is none"),
        ("seconds", 10**400, "has a time that is none"),
    ],
    ids=lambda value: f"{value!r:.16}",
)
def test_fields_that_cannot_be(field: str, value: object, said: str) -> None:
    manifest = golden_manifest()
    assert check_manifest({**manifest, field: value}) == said
    del manifest[field]
    assert check_manifest(manifest) == f"lacks {field}"


@pytest.mark.parametrize(
    ("attribute", "wrong", "right"),
    [
        ("captured_dtype", ["int32", "float64", None, ["float16"]], ["float16", "float32", "bfloat16"]),
        ("mantissa_bits", ["x", None, True, 0, -5000, 3.0, 10**400], [1, 7, 100]),
        ("rounding_max_relative_error", ["x", None, [0], -1e-9, float("nan"), float("inf"), 10**400], [0, 0.0, 1, 2.5]),
        ("rounding_max_absolute_error", ["x", None, [0], -1e-9, float("nan"), float("inf"), 10**400], [0, 0.0, 70]),
    ],
)
def test_attributes_that_cannot_be(attribute: str, wrong: list[object], right: list[object]) -> None:
    manifest = golden_manifest()
    for value in wrong:
        manifest["arrays"][STATES]["attributes"][attribute] = value
        assert str(check_manifest(manifest)).startswith(
            f"says of {STATES!r} what cannot be: the {attribute} {value!r:.40}, not "
        )
    for value in right:
        manifest["arrays"][STATES]["attributes"][attribute] = value
        assert check_manifest(manifest) is None


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (STATES, "dtype", "int32"),
        ("sample/token_count", "dtype", "float32"),
        (STATES, "dims", ["token", "layer", "dim"]),
        ("sample/unit_mean", "dims", ["layer", "role", "image", "dim"]),
        ("token/role", "dims", ["role"]),
    ],
)
def test_arrays_of_the_format_have_its_dimensions_and_kind_of_number(path: str, field: str, value: object) -> None:
    manifest = golden_manifest()
    manifest["arrays"][path][field] = value
    assert f"says of {path!r} what cannot be" in str(check_manifest(manifest))
    manifest["arrays"][f"{path}_of_mine"] = manifest["arrays"].pop(path)
    manifest["files"] = {name.replace(path, f"{path}_of_mine"): entry for name, entry in manifest["files"].items()}
    assert "where it has" not in str(check_manifest(manifest)), "others are ignored"
