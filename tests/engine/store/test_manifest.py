"""Sealed JSON: one text for one value, and no byte changes unnoticed."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StrataError
from engine.store.manifest import canonical_json, has_true_sha256, hash_file, parse_json, seal_json

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
