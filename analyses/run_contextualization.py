"""The analysis ``contextualization``: from stores to written results."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from analyses.contextualization import analyze_store
from analyses.contextualization_comparison import draw_comparison
from analyses.contextualization_figure import draw_contextualization
from analyses.contextualization_notes import tell_of_empty_curves
from analyses.contextualization_plan import check_adjustment, check_roles, choose_source
from analyses.contextualization_results import StoreResult, from_dataset, to_dataset
from analyses.contextualization_table import CONTEXTUALIZATION_SCHEMA, to_tables
from analyses.identity import StoreIdentity, settings_text
from analyses.kept_parts import KeptParts
from analyses.opening import open_all
from analyses.part_task import Adjustment
from analyses.resources import Resources
from analyses.results import open_dataset, write_dataset, write_figures, write_table
from analyses.results_folder import DAMAGED, check_folder, result_attributes
from engine.store import Store

__all__ = ["NAME", "Choice", "load_or_compute", "make_choice", "run"]

NAME = "contextualization"


class Choice(NamedTuple):
    """What cosines depend on beside the stores: roles of text, the array that is read, the adjustment."""

    text_roles: tuple[str, ...]
    source: str
    adjustment: Adjustment


def make_choice(text_roles: Sequence[str], source: str, adjustment: str) -> Choice:
    """Check roles and adjustment and put them in order.

    Raises
    ------
    UsageError
        One is unknown.
    """
    return Choice(check_roles(text_roles), source, check_adjustment(adjustment))


def run(
    stores: Sequence[str],
    results_folder: Path,
    resources: Resources,
    *,
    text_roles: Sequence[str],
    self_pairs: bool,
    source: str,
    adjustment: str,
) -> list[Path]:
    """Analyse stores one by one and write their results as one; see `analyses.registry.run`."""
    choice = make_choice(text_roles, source, adjustment)
    opened, identities = open_all(stores, resources)
    check_folder(results_folder, [NAME], identities, text_roles=choice.text_roles, adjustment=choice.adjustment)
    return _run(opened, identities, results_folder, resources, choice, self_pairs=self_pairs)


def _run(
    opened: Sequence[Store],
    identities: Sequence[StoreIdentity],
    results_folder: Path,
    resources: Resources,
    choice: Choice,
    *,
    self_pairs: bool,
) -> list[Path]:
    kept = KeptParts(results_folder)
    results = [
        StoreResult(
            identity, analyze_store(store, **choice._asdict(), self_pairs=self_pairs, resources=resources, kept=kept)
        )
        for identity, store in zip(identities, opened, strict=True)
    ]
    for item in results:
        tell_of_empty_curves(item, resources)
    attributes = result_attributes(NAME, _settings(opened, identities, choice, self_pairs))
    written = [
        write_dataset(results_folder, NAME, to_dataset(results, attributes)),
        write_table(results_folder, NAME, to_tables(results), CONTEXTUALIZATION_SCHEMA),
        *write_figures(results_folder, NAME, draw_contextualization(results)),
        *write_figures(results_folder, f"{NAME}-comparison", draw_comparison(results) if len(results) > 1 else []),
    ]
    kept.clear()
    return written


def load_or_compute(
    stores: Sequence[Store],
    identities: Sequence[StoreIdentity],
    results_folder: Path,
    resources: Resources,
    choice: Choice,
) -> tuple[list[StoreResult], list[Path]]:
    """Give another analysis what this one found: from ``results_folder`` where it is there, else by running.

    Results there count when they are of the same stores in the same state, with the same choices, by this version; rows
    with self-pairs may be among them. Damaged ones are computed again. The caller has checked the folder.

    Returns
    -------
    results : list of StoreResult
    written : list of Path
        Empty where nothing had to be computed.
    """
    try:
        found = _load(results_folder, stores, identities, choice)
    except DAMAGED as error:
        resources.tell(f"{results_folder / NAME}.zarr is damaged ({error}) and is computed again")
        found = None
    if found is not None:
        return found, []
    written = _run(stores, identities, results_folder, resources, choice, self_pairs=False)
    dataset = open_dataset(results_folder, NAME)
    assert dataset is not None
    return from_dataset(dataset), written


def _load(
    folder: Path, stores: Sequence[Store], identities: Sequence[StoreIdentity], choice: Choice
) -> list[StoreResult] | None:
    dataset = open_dataset(folder, NAME)
    if dataset is None:
        return None
    wanted = [_settings(stores, identities, choice, self_pairs) for self_pairs in (False, True)]
    return from_dataset(dataset) if dataset.attrs["settings"] in wanted else None


def _settings(stores: Sequence[Store], identities: Sequence[StoreIdentity], choice: Choice, self_pairs: bool) -> str:
    return settings_text(
        identities,
        text_roles=list(choice.text_roles),
        self_pairs=self_pairs,
        adjustment=choice.adjustment,
        source=[choose_source(store, choice.source, choice.adjustment) for store in stores],
    )
