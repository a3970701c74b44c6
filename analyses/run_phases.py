"""The analysis ``phases``: from stores, or from contextualization already there, to written results."""

import json
from collections.abc import Sequence
from pathlib import Path

from analyses.curves import BOOTSTRAPS
from analyses.identity import settings_text
from analyses.memory import check_memory, result_bytes, statistics_bytes
from analyses.opening import open_all
from analyses.phases import check_request, find_phases, name_missing
from analyses.phases_figure import draw_phases
from analyses.phases_results import (
    PHASES_IMAGES_SCHEMA,
    PHASES_SCHEMA,
    PHASES_SCORES_SCHEMA,
    to_dataset,
    to_image_tables,
    to_score_table,
    to_table,
)
from analyses.resources import Resources
from analyses.results import write_dataset, write_figures, write_table
from analyses.results_folder import check_folder, result_attributes
from analyses.run_contextualization import NAME as COSINES
from analyses.run_contextualization import load_or_compute, make_choice
from engine.errors import StrataError
from engine.store import Store

__all__ = ["NAME", "run"]

NAME = "phases"


def run(
    stores: Sequence[str],
    results_folder: Path,
    resources: Resources,
    *,
    text_roles: Sequence[str],
    source: str,
    adjustment: str,
    pattern: str,
    bootstraps: int,
    seed: int,
    include_layer_0: bool,
) -> list[Path]:
    """Find phases and write them; contextualization is computed and written first where it is missing."""
    choice = make_choice(text_roles, source, adjustment)
    opened, identities = open_all(stores, resources)
    check_folder(
        results_folder, [COSINES, NAME], identities, text_roles=choice.text_roles, adjustment=choice.adjustment
    )
    layers = {identity.store: store.layers for identity, store in zip(identities, opened, strict=True)}
    check_request(layers, pattern=pattern, bootstraps=bootstraps, include_layer_0=include_layer_0)
    _check_memory(opened, bootstraps, resources)
    results, written = load_or_compute(opened, identities, results_folder, resources, choice)
    found = find_phases(results, pattern=pattern, bootstraps=bootstraps, seed=seed, include_layer_0=include_layer_0)
    if not found:
        raise StrataError(
            "no sample has a curve to cut: its text set is empty and it has less than two image tokens; choose other "
            "--text-roles, or extract prompts with text"
        )
    for sentence in name_missing(results, found):
        resources.tell(sentence)
    settings = {"pattern": pattern, "bootstraps": bootstraps, "seed": seed, "include_layer_0": include_layer_0}
    attributes = result_attributes(NAME, settings_text(identities, **choice._asdict(), **settings)) | {
        "stores": json.dumps([identity.asdict() for identity in identities]),
        "text_roles": ",".join(choice.text_roles),
        "adjustment": choice.adjustment,
    }
    return [
        *written,
        write_dataset(results_folder, NAME, to_dataset(found, attributes)),
        write_table(results_folder, NAME, [to_table(found, pattern, choice.adjustment)], PHASES_SCHEMA),
        write_table(results_folder, f"{NAME}-images", to_image_tables(found), PHASES_IMAGES_SCHEMA),
        write_table(results_folder, f"{NAME}-scores", [to_score_table(found)], PHASES_SCORES_SCHEMA),
        *write_figures(results_folder, NAME, draw_phases(found, choice.adjustment)),
    ]


def _check_memory(stores: Sequence[Store], bootstraps: int, resources: Resources) -> None:
    """Refuse where curves and bootstrap samples would not fit beside the cosines, which are of all stores at once."""
    layers = [len(store.layers) for store in stores]
    samples = [sum(part.manifest["samples"] for part in store.parts) for store in stores]
    cosines = sum(
        result_bytes(store.parts, count, self_pairs=False) for store, count in zip(stores, layers, strict=True)
    )
    most = max(bootstraps, BOOTSTRAPS)
    statistics = [statistics_bytes(*shape, most, cut=True) for shape in zip(samples, layers, strict=True)]
    check_memory(0, cosines + max(statistics), 1, resources.memory)
