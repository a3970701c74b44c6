"""What a results folder may hold: results of one set of stores, one choice of text roles and one adjustment.

Results that do not depend on text roles or an adjustment lie beside any of them.

Whoever opens the folder compares its files, so files that do not belong together must not meet there. Every dataset
says which analysis made it, in which format, and from what; an analysis looks at all of them before it computes, and
refuses rather than replaces what is not its own. The same stores are those of the same plans: a store may have moved,
and may have more parts than before, and its results are then computed anew and take the place of the old ones.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from analyses.identity import StoreIdentity
from engine.errors import UsageError

__all__ = ["DAMAGED", "RESULTS_FORMAT", "check_folder", "name_outdated", "result_attributes"]

RESULTS_FORMAT = 1
"""Of the datasets that analyses write; another number is another layout."""

DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)
"""What zarr, its codecs and xarray raise on files that are cut, changed or gone."""


def result_attributes(analysis: str, settings: str) -> dict[str, Any]:
    """Attributes of every results dataset: who made it, in which format, with which settings."""
    return {"analysis": analysis, "results_format": RESULTS_FORMAT, "settings": settings}


def check_folder(
    folder: Path,
    names: Sequence[str],
    identities: Sequence[StoreIdentity],
    *,
    text_roles: Sequence[str] | None = None,
    adjustment: str | None = None,
) -> None:
    """Refuse a folder whose results do not belong beside those that are asked for.

    Parameters
    ----------
    folder : Path
    names : sequence of str
        Datasets that may be written, ``NAME.zarr``. One that cannot be read is damaged and no reason to refuse.
    identities : sequence of StoreIdentity
    text_roles, adjustment
        What is asked for; None where the results do not depend on it.

    Raises
    ------
    UsageError
        ``NAME.zarr`` is no result of this analysis or of another format, or any result there is of other stores, text
        roles or adjustment; the message names the file, what it holds, what is asked and the next step.
    """
    asked = {
        "stores": _plans([identity.asdict() for identity in identities]),
        "text_roles": text_roles,
        "adjustment": adjustment,
    }
    for path in sorted(folder.glob("*.zarr")):
        attributes = _attributes(path)
        if attributes is None:
            continue
        if path.stem in names:
            _check_own(path, attributes)
        if attributes.get("results_format") == RESULTS_FORMAT and "stores" in attributes:
            _check_beside(path, attributes, asked)


def name_outdated(folder: Path, written: Collection[Path]) -> list[str]:
    """Say which datasets are of other parts of the same stores than those that were written just now."""
    parts = {path: _parts(path) for path in sorted(folder.glob("*.zarr"))}
    now = {state for path, state in parts.items() if path in written and state}
    return [
        f"{path} is of other parts of its stores than what was written now: run strata analyze {path.stem} again"
        for path, state in parts.items()
        if path not in written and state and now and state not in now
    ]


def _parts(path: Path) -> tuple[str, ...]:
    """Name the parts of its stores that a dataset is of by their hashes; empty where it does not say."""
    attributes = _attributes(path)
    if attributes is None or attributes.get("results_format") != RESULTS_FORMAT:
        return ()
    try:
        return tuple(sorted(str(store["parts_sha256"]) for store in json.loads(attributes["stores"])))
    except DAMAGED:
        return ()


def _attributes(path: Path) -> Mapping[str, Any] | None:
    try:
        return zarr.open_group(path, mode="r").attrs.asdict()
    except DAMAGED:
        return None


def _check_own(path: Path, attributes: Mapping[str, Any]) -> None:
    analysis, version = attributes.get("analysis"), attributes.get("results_format")
    if analysis is None:
        holds = "no results that this strata knows"
    elif analysis != path.stem:
        holds = f"results of the analysis {analysis}"
    elif version != RESULTS_FORMAT:
        holds = f"results of format {version}"
    else:
        return
    raise UsageError(
        f"{path} holds {holds}, asked are results of the analysis {path.stem} in format {RESULTS_FORMAT}: choose "
        f"another --out, or remove {path}"
    )


def _check_beside(path: Path, attributes: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    try:
        stored = _plans(json.loads(attributes["stores"]))
    except DAMAGED:
        return  # of another package, which means something else by these words
    holds, wants = [], []
    if [plan for plan, _ in stored] != [plan for plan, _ in asked["stores"]]:
        holds.append(_name_stores(stored))
        wants.append(_name_stores(asked["stores"]))
    roles, asked_roles = attributes.get("text_roles"), asked["text_roles"]
    if None not in (roles, asked_roles) and set(str(roles).split(",")) != set(asked_roles):
        holds.append(f"--text-roles {roles}")
        wants.append(f"--text-roles {','.join(asked_roles)}")
    adjustment, asked_adjustment = attributes.get("adjustment"), asked["adjustment"]
    if None not in (adjustment, asked_adjustment) and adjustment != asked_adjustment:
        holds.append(f"--adjustment {adjustment}")
        wants.append(f"--adjustment {asked_adjustment}")
    if holds:
        raise UsageError(
            f"{path} holds {path.stem} of {' and '.join(holds)}, asked is {' and '.join(wants)}; results in one folder "
            f"are of the same: choose another --out, or remove {path.parent}/{path.stem}*"
        )


def _plans(stores: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Plan and name of every store, in an order that does not depend on how they were given."""
    return sorted((str(store["plan_sha256"]), str(store["store"])) for store in stores)


def _name_stores(stores: Sequence[tuple[str, str]]) -> str:
    named = [f"{name} (plan {plan[:8]})" for plan, name in stores]
    return f"{'store' if len(named) == 1 else 'stores'} {', '.join(named)}"
