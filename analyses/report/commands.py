"""The command that computes a result again, written from what the result says it depends on."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.registry import options_of

__all__ = ["analyze_command", "extract_command", "report_command"]

_PROMPTS = {"custom": "PROMPTS.json", "empty": "empty"}


def analyze_command(name: str, settings: str, stores: Sequence[str], folder: str) -> str:
    """Write ``strata analyze …`` with every option that differs from its default.

    Parameters
    ----------
    name : str
        Of the analysis.
    settings : str
        The attribute of its dataset.
    stores : sequence of str
        Paths where they are known, else names.
    folder : str
        The results folder.
    """
    known: Mapping[str, Any] = json.loads(settings)
    words = ["strata", "analyze", name, *stores, "--out", folder]
    for option in options_of(name):
        value = _common(known.get(option.name, option.default), option.type)
        if value == option.default or value is None:
            continue
        flag = f"--{option.name.replace('_', '-')}"
        words += [flag] if option.type is bool else [flag, _text(value)]
    return shlex.join(words)


def _common(value: Any, kind: type) -> Any:
    """Return a value as the option has it; of a list with a value per store what is common, None where they differ."""
    if isinstance(value, list) and (kind is not tuple or (value and isinstance(value[0], list))):
        value = value[0] if all(entry == value[0] for entry in value) else None
    return tuple(map(str, value)) if kind is tuple and value is not None else value


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def extract_command(record: Mapping[str, Any], store: str) -> str:
    """Write ``strata extract …`` as far as a store records it: paths of images and annotations it does not.

    Parameters
    ----------
    record : mapping
        ``store.json``.
    store : str
        Its path.
    """
    model, source, capture = record["model"], record.get("source", {}), record["capture"]
    words = ["strata", "extract", "--model", str(model.get("id", "MODEL"))]
    revision = str(model.get("revision") or "")
    if revision and ":" not in revision:  # of a local folder it is a hash of its files, which selects nothing
        words += ["--revision", revision]
    words += ["--dtype", str(model["dtype"])] if model.get("dtype") else []
    words += ["--source", str(source.get("kind", "KIND")), "--annotations", "ANNOTATIONS", "--images", "IMAGES"]
    words += ["--split", str(source["split"])] if source.get("split") else []
    kinds = [prompt.get("kind", "") for prompt in record.get("prompts", ())]
    for kind in dict.fromkeys(kinds):
        words += ["--prompts", _PROMPTS.get(kind, f"{kind}:{kinds.count(kind)}")]
    words += ["--limit", str(record["limit"])] if record.get("limit") is not None else []
    words += ["--seed", str(record.get("seed", 0)), "--capture", ",".join(capture.get("tensors", ()))]
    words += ["--thumbnails"] if capture.get("thumbnails") else []
    return shlex.join([*words, "--out", store])


def report_command(folder: str, stores: Sequence[str], options: Mapping[str, int | None], *, verified: bool) -> str:
    """Write ``strata report …``.

    Parameters
    ----------
    folder : str
        The results folder.
    stores : sequence of str
        Paths.
    options : mapping
        By the name of the option; None is its default.
    verified : bool
    """
    words = ["strata", "report", folder, *(word for store in stores for word in ("--store", store))]
    words += [f"--{name}={value}" for name, value in options.items() if value is not None]
    words += ["--no-verify"] if stores and not verified else []
    return shlex.join([*words, "--out", "FILE.html"])
