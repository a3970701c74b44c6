"""Which stores can be opened as one: those of the same model and captures."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import UsageError
from engine.store.differences import list_differences

__all__ = ["check_alike"]

# What a capture of an earlier format says by saying nothing.
_UNSAID: Mapping[str, Any] = {
    "residual_layers": None,
    "blocks": [],
    "queries": [],
    "dtypes": {},
    "tensor_roles": {},
    "tensor_blocks": {},
    "thumbnails": False,
    "lens_topk": None,
    "lens_layers": None,
}


def check_alike(urls: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Compare what stores must have in common.

    Parameters
    ----------
    urls, records
        What to call each store in a message, and its ``store.json``.

    Raises
    ------
    UsageError
        When one differs from the first, with each difference.
    """
    for url, record in zip(urls[1:], records[1:], strict=True):
        left, right = (_shared(entry) for entry in (records[0], record))
        if left != right:
            lines = "\n".join(f"  {line}" for line in list_differences(left, right))
            raise UsageError(
                f"{urls[0]} (stored) and {url} (asked) differ in model or captures:\n{lines}\nopen them one by one"
            )


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings that stores opened as one must have in common."""
    return {"model": record.get("model"), "capture": {**_UNSAID, **record["capture"]}}
