"""What a results folder holds for a report: the datasets of our analyses, and which stores they are of.

A dataset that is damaged or of another format is named and left out; the others make a report nevertheless.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.figure_style import LayerAxis, common_axis
from analyses.identity import StoreIdentity
from analyses.labels import store_labels
from analyses.prompt_groups import PromptGroup
from analyses.registry import ANALYSES
from analyses.results import open_dataset
from analyses.results_folder import DAMAGED, RESULTS_FORMAT, name_outdated
from engine.errors import UsageError

__all__ = ["Results", "groups_of", "open_results", "stores_of"]


class Results(NamedTuple):
    """An opened results folder.

    Attributes
    ----------
    folder : Path
    datasets : mapping
        By the name of the analysis.
    identities : tuple of StoreIdentity
        Stores of the results, in their order; rows of the report name them by their place here.
    labels : tuple of str
        What the report calls them, no two alike.
    blocks : tuple of int
        Their L; 0 where no dataset says.
    groups : tuple of PromptGroup
        Of all curves, each once; rows of the report name them by their place here.
    notes : tuple of str
        What is wrong with files of the folder.
    """

    folder: Path
    datasets: Mapping[str, xr.Dataset]
    identities: tuple[StoreIdentity, ...]
    labels: tuple[str, ...]
    blocks: tuple[int, ...]
    groups: tuple[PromptGroup, ...]
    notes: tuple[str, ...]

    def place(self, store: str) -> int:
        """Place of a store that a dataset names."""
        return [identity.store for identity in self.identities].index(store)

    @property
    def titles(self) -> list[str]:
        """What the report calls the groups, no two alike: a prompt of the user's own may be named like a kind."""
        plain = [group.title for group in self.groups]
        return [
            title if plain.count(title) == 1 else f"{title} ({group.kind})"
            for title, group in zip(plain, self.groups, strict=True)
        ]

    def axis(self, layers: NDArray[np.integer], word: str = "layer") -> LayerAxis:
        """Choose the axis that all stores share: numbers, or depths where they differ in the number of blocks."""
        return common_axis([(layers[layers <= blocks], blocks) for blocks in self.blocks], word)


def open_results(folder: Path) -> Results:
    """Open every dataset of a results folder.

    Raises
    ------
    UsageError
        There is no such folder, or no results of an analysis of ours are in it that can be read.
    """
    datasets: dict[str, xr.Dataset] = {}
    notes: list[str] = []
    described: dict[str, dict[str, Any]] = {}
    for name in ANALYSES:
        try:
            dataset = open_dataset(folder, name)
            if dataset is None:
                continue
            stores = _describe(dataset, name)
        except DAMAGED as error:
            notes.append(f"{name}.zarr cannot be read ({error}): run strata analyze {name} again")
            continue
        datasets[name] = dataset
        for entry in stores:
            described[entry["store"]] = described.get(entry["store"], {}) | entry
    if not datasets:
        found = f"; {'; '.join(notes)}" if notes else ""
        raise UsageError(
            f"{folder} holds no results that a report can show{found}: run strata analyze all STORE --out {folder}"
        )
    identities = tuple(StoreIdentity.fromdict(entry) for entry in described.values())
    labels = store_labels(identities)
    newest = [folder / f"{next(iter(datasets))}.zarr"]
    return Results(
        folder,
        datasets,
        identities,
        tuple(labels[identity.store] for identity in identities),
        tuple(int(entry.get("blocks", 0)) for entry in described.values()),
        tuple(dict.fromkeys(group for dataset in datasets.values() for group in groups_of(dataset))),
        (*notes, *name_outdated(folder, newest)),
    )


def _describe(dataset: xr.Dataset, name: str) -> list[dict[str, Any]]:
    """Return what a dataset says about its stores.

    Raises
    ------
    ValueError
        It is of another analysis or format.
    """
    if dataset.attrs.get("analysis") != name or dataset.attrs.get("results_format") != RESULTS_FORMAT:
        raise ValueError(f"it is no result of {name} in format {RESULTS_FORMAT}")
    stores: list[dict[str, Any]] = json.loads(dataset.attrs["stores"])
    for entry in stores:
        StoreIdentity.fromdict(entry)
    return stores


def groups_of(dataset: xr.Dataset) -> list[PromptGroup]:
    """Prompt group of each curve of a dataset."""
    prefix = "curve_" if "curve_prompt_kind" in dataset.coords else ""
    kinds, prompts = (dataset[f"{prefix}{column}"].values for column in ("prompt_kind", "prompt_id"))
    return [PromptGroup(str(kind), str(prompt)) for kind, prompt in zip(kinds, prompts, strict=True)]


def stores_of(dataset: xr.Dataset) -> list[str]:
    """Store of each curve of a dataset."""
    return [str(store) for store in dataset["curve_store" if "curve_store" in dataset.coords else "store"].values]
