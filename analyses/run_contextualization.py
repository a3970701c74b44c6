"""The analysis ``contextualization``: from stores to written results."""

from collections.abc import Sequence
from pathlib import Path

from analyses.contextualization import Contextualization, analyze_store, choose_source
from analyses.contextualization_figure import draw_contextualization
from analyses.contextualization_results import (
    CONTEXTUALIZATION_SCHEMA,
    StoreResult,
    from_dataset,
    to_dataset,
    to_tables,
)
from analyses.identity import StoreIdentity, identify, settings_text
from analyses.kept_parts import KeptParts
from analyses.resources import Resources
from analyses.results import open_dataset, write_dataset, write_figure, write_table
from engine.errors import UsageError
from engine.store import Store, open_store

__all__ = ["NAME", "load_or_compute", "run"]

NAME = "contextualization"

_DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)
"""What zarr, its codecs and xarray raise on files that are cut, changed or gone."""


def run(
    stores: Sequence[str],
    results_folder: Path,
    resources: Resources,
    *,
    text_roles: Sequence[str],
    self_pairs: bool,
    source: str,
) -> list[Path]:
    """Analyse stores one by one and write their results as one; see `analyses.registry.run`."""
    opened, identities = open_all(stores, resources)
    return _run(
        opened, identities, results_folder, resources, text_roles=text_roles, self_pairs=self_pairs, source=source
    )


def _run(
    opened: Sequence[Store],
    identities: Sequence[StoreIdentity],
    results_folder: Path,
    resources: Resources,
    *,
    text_roles: Sequence[str],
    self_pairs: bool,
    source: str,
) -> list[Path]:
    kept = KeptParts(results_folder)
    results = [
        StoreResult(
            identity,
            analyze_store(
                store,
                text_roles=text_roles,
                self_pairs=self_pairs,
                source=source,
                resources=resources,
                kept=kept,
            ),
        )
        for identity, store in zip(identities, opened, strict=True)
    ]
    for identity, result in results:
        _tell_of_empty_sets(identity, result, resources)
    settings = _settings(opened, identities, results[0].result.text_roles, self_pairs, source)
    written = [
        write_dataset(results_folder, NAME, to_dataset(results, settings)),
        write_table(results_folder, NAME, to_tables(results), CONTEXTUALIZATION_SCHEMA),
        *write_figure(results_folder, NAME, draw_contextualization(results)),
    ]
    kept.clear()
    return written


def _tell_of_empty_sets(identity: StoreIdentity, result: Contextualization, resources: Resources) -> None:
    """Say where no sample has a token of a set, so that its curves are empty."""
    for kind, total in zip(("image", ", ".join(result.text_roles)), result.counts.sum(axis=0), strict=True):
        if total == 0:
            resources.tell(
                f"{identity.store} holds no {kind} token, so curves with them are empty: extract with --capture "
                "pooled, with these among --roles, or choose other --text-roles"
            )


def load_or_compute(
    stores: Sequence[Store],
    identities: Sequence[StoreIdentity],
    results_folder: Path,
    resources: Resources,
    *,
    text_roles: Sequence[str],
    source: str,
) -> tuple[list[StoreResult], list[Path]]:
    """Give another analysis what this one found: from ``results_folder`` where it is there, else by running.

    Results there count when they are of the same stores in the same state, with the same roles, read from the same
    arrays, by this version; rows with self-pairs may be among them. Damaged ones are computed again.

    Returns
    -------
    results : list of StoreResult
    written : list of Path
        Empty where nothing had to be computed.

    Raises
    ------
    UsageError
        The folder holds contextualization of other roles, which would be lost.
    """
    try:
        found = _load(results_folder, stores, identities, text_roles, source)
    except _DAMAGED as error:
        resources.tell(f"{results_folder / NAME}.zarr is damaged ({error}) and is computed again")
        found = None
    if found is not None:
        return found, []
    written = _run(
        stores,
        identities,
        results_folder,
        resources,
        text_roles=text_roles,
        self_pairs=False,
        source=source,
    )
    dataset = open_dataset(results_folder, NAME)
    assert dataset is not None
    return from_dataset(dataset), written


def open_all(stores: Sequence[str], resources: Resources) -> tuple[list[Store], list[StoreIdentity]]:
    """Open stores one by one; notify of each that does not hold all that was planned.

    Raises
    ------
    UsageError
        None is named, or one twice: its samples would count double.
    """
    if not stores:
        raise UsageError("no store is named: give at least one path or URL")
    opened = [open_store(url) for url in stores]
    for store in opened:
        if [other.url for other in opened].count(store.url) > 1:
            raise UsageError(f"{store.url} is named twice: name each store once")
    identities = identify(opened)
    for store, identity in zip(opened, identities, strict=True):
        resources.tell(identity.completeness.note(store.url))
    return opened, identities


def _load(
    folder: Path, stores: Sequence[Store], identities: Sequence[StoreIdentity], text_roles: Sequence[str], source: str
) -> list[StoreResult] | None:
    dataset = open_dataset(folder, NAME)
    if dataset is None:
        return None
    roles = tuple(str(dataset.attrs["text_roles"]).split(","))
    if set(roles) != set(text_roles):
        asked = ",".join(text_roles)
        raise UsageError(
            f"{folder} holds {NAME} of --text-roles {','.join(roles)}, asked is --text-roles {asked}: choose another "
            f"--out, for example {folder}-{asked.replace(',', '-')}, or ask for the same roles"
        )
    wanted = [_settings(stores, identities, roles, self_pairs, source) for self_pairs in (False, True)]
    return from_dataset(dataset) if dataset.attrs["settings"] in wanted else None


def _settings(
    stores: Sequence[Store],
    identities: Sequence[StoreIdentity],
    text_roles: Sequence[str],
    self_pairs: bool,
    source: str,
) -> str:
    return settings_text(
        identities,
        text_roles=list(text_roles),
        self_pairs=self_pairs,
        source=[choose_source(store, source) for store in stores],
    )
