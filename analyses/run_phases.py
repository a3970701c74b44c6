"""The analysis ``phases``: from stores, or from contextualization already there, to written results."""

import json
from collections.abc import Sequence
from pathlib import Path

from analyses.phases import find_phases
from analyses.phases_figure import draw_phases
from analyses.phases_results import PHASES_IMAGES_SCHEMA, PHASES_SCHEMA, to_dataset, to_image_tables, to_table
from analyses.resources import Resources
from analyses.results import write_dataset, write_figure, write_table
from analyses.run_contextualization import load_or_compute
from engine.errors import StrataError

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
    results, written = load_or_compute(
        stores,
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
    settings |= {"text_roles": list(results[0].result.text_roles)}
    return [
        *written,
        write_dataset(results_folder, NAME, to_dataset(found, json.dumps(settings, sort_keys=True))),
        write_table(results_folder, NAME, [to_table(found, pattern)], PHASES_SCHEMA),
        write_table(results_folder, f"{NAME}-images", to_image_tables(found), PHASES_IMAGES_SCHEMA),
        *write_figure(results_folder, NAME, draw_phases(found)),
    ]
