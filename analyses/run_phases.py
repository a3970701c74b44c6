"""The analysis ``phases``: from stores, or from contextualization already there, to written results."""

import json
from collections.abc import Sequence
from pathlib import Path

from analyses.curves import BOOTSTRAPS
from analyses.memory import check_memory, result_bytes, statistics_bytes
from analyses.phases import HEADLINE, find_phases
from analyses.phases_figure import draw_phases
from analyses.phases_results import PHASES_IMAGES_SCHEMA, PHASES_SCHEMA, to_dataset, to_image_tables, to_table
from analyses.resources import Resources
from analyses.results import write_dataset, write_figure, write_table
from analyses.run_contextualization import load_or_compute, open_all
from engine import __version__
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
    pattern: str,
    bootstraps: int,
    seed: int,
    include_layer_0: bool,
) -> list[Path]:
    """Find phases and write them; contextualization is computed and written first where it is missing."""
    opened, identities = open_all(stores, resources)
    _check_memory(opened, bootstraps, resources)
    results, written = load_or_compute(
        opened,
        identities,
        results_folder,
        resources,
        text_roles=text_roles,
        source=source,
    )
    found = find_phases(results, pattern=pattern, bootstraps=bootstraps, seed=seed, include_layer_0=include_layer_0)
    if not found:
        raise StrataError(
            "no sample has a curve to cut: its text set is empty and it has less than two image tokens; choose other "
            "--text-roles, or extract prompts with text"
        )
    settings = {"pattern": pattern, "bootstraps": bootstraps, "seed": seed, "include_layer_0": include_layer_0}
    settings |= {"text_roles": list(results[0].result.text_roles), "strata": __version__}
    return [
        *written,
        write_dataset(results_folder, NAME, to_dataset(found, json.dumps(settings, sort_keys=True))),
        write_table(results_folder, NAME, [to_table(found, pattern)], PHASES_SCHEMA),
        write_table(results_folder, f"{NAME}-images", to_image_tables(found), PHASES_IMAGES_SCHEMA),
        *(write_figure(results_folder, NAME, draw_phases(found)) if any(c.pair == HEADLINE for c in found) else ()),
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
