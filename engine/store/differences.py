"""How two records of settings differ, one line per setting, in words for people."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["list_differences"]

_LONGEST = 80


def list_differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """List each setting that two records do not share.

    Parameters
    ----------
    stored, asked
        Nested JSON values.

    Returns
    -------
    list of str
        ``capture.layers: stored 0..8, asked 0..4``, in the order of the keys; one general line when none differs
        (the same settings then chose other samples).
    """
    left, right = dict(_flatten(stored)), dict(_flatten(asked))
    lines = [
        f"{key}: stored {_say(left, key)}, asked {_say(right, key)}"
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or left[key] != right[key]
    ]
    return lines or ["the settings are the same, but they chose other samples"]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        items = enumerate(value)
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
        return
    for key, entry in items:
        yield from _flatten(entry, f"{prefix}.{key}" if prefix else str(key))


def _say(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    value = values[key]
    text = _say_list(value) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _say_list(values: list[Any]) -> str:
    integers = all(isinstance(value, int) for value in values)
    if integers and len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values)) or "nothing"
