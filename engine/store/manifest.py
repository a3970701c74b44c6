"""JSON files that carry their own checksum: a part's manifest and ``store.json``.

The file is UTF-8 JSON, two-space indentation, keys sorted except that ``sha256`` stands last, one final newline. The
checksum is that of the file's bytes with the line of ``sha256`` (and the comma before it) taken out, so a reader in any
language checks it without having to agree on how numbers are printed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import StrataError
from engine.store.limits import RECORD_BYTES

__all__ = ["FileHash", "canonical_json", "has_true_sha256", "hash_file", "parse_json", "seal_json"]

_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')

FileHash = dict[str, int | str]
"""``{"sha256": hex digest, "bytes": length}``."""


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Serialise to the one text that these values have.

    Raises
    ------
    ValueError
        When a number is NaN or infinite, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def seal_json(value: Mapping[str, Any]) -> bytes:
    """Serialise with the file's own ``sha256`` as last field.

    Raises
    ------
    ValueError
        When ``value`` is empty or already has a ``sha256``.
    StrataError
        When it is longer than readers take.
    """
    if not value or "sha256" in value:
        raise ValueError("a record is sealed once and must not be empty")
    body = canonical_json(value)
    seal = f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    if len(body) + len(seal) > RECORD_BYTES:
        raise StrataError(
            f"a record would have {len(body):,} bytes, readers take {RECORD_BYTES:,}: make smaller parts (--part-bytes)"
        )
    return body.removesuffix(b"\n}\n") + seal.encode()


def has_true_sha256(content: bytes) -> bool:
    """Whether a sealed file's bytes are those that were sealed."""
    seal = _SEAL.search(content)
    if seal is None:
        return False
    body = content[: seal.start()] + b"\n}\n"
    return hashlib.sha256(body).hexdigest().encode() == seal.group(1)


def parse_json(content: bytes, origin: str) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    content
        The file's bytes.
    origin
        What to call the file in a message.

    Raises
    ------
    StrataError
        When the bytes are not a JSON object in UTF-8.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StrataError(f"{origin} is not JSON ({error}): the store is damaged, see strata verify") from error
    if not isinstance(value, dict):
        raise StrataError(f"{origin} holds a JSON {type(value).__name__}, not an object: the store is damaged")
    return value


def hash_file(path: Path) -> FileHash:
    """Hash a file in one pass."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": file.tell()}
