"""The analysis ``logit-lens``: from stores to written results."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from analyses.identity import settings_text
from analyses.kept_parts import KeptParts
from analyses.lens_layers import choose_layers
from analyses.lens_patches import image_pieces
from analyses.lens_task import LensTask
from analyses.logit_lens import analyze_store, stored_pieces
from analyses.logit_lens_figure import draw_curves
from analyses.logit_lens_notes import tell_of_lens
from analyses.logit_lens_patches_figure import draw_patches
from analyses.logit_lens_plan import LensChoice, plan_tasks, plan_workers, why_decoded
from analyses.logit_lens_results import StoreLens, group_curves, to_dataset
from analyses.logit_lens_table import LOGIT_LENS_SCHEMA, TRAJECTORY_SCHEMA, to_tables, to_trajectory_tables
from analyses.logit_lens_trajectory_figure import draw_trajectory
from analyses.logit_lens_words_table import WORDS_SCHEMA, check_words, to_word_tables
from analyses.opening import open_all
from analyses.picture import choose_image
from analyses.prompt_groups import prompt_groups
from analyses.resampling import check_bootstraps
from analyses.resources import Resources
from analyses.results import write_dataset, write_figures, write_table
from analyses.results_folder import check_folder, result_attributes
from engine.store import Store

__all__ = ["NAME", "run"]

NAME = "logit-lens"


def run(
    stores: Sequence[str],
    results_folder: Path,
    resources: Resources,
    *,
    topk: int,
    layers: Sequence[str],
    source: str,
    trajectory: bool,
    words: str,
    image: str,
    figure_layers: Sequence[str],
    bootstraps: int,
    seed: int,
) -> list[Path]:
    """Analyse stores one by one and write their results as one; see `analyses.registry.run`."""
    opened, identities = open_all(stores, resources)
    check_folder(results_folder, [NAME], identities)
    check_bootstraps(bootstraps)
    check_words(words)
    choice = LensChoice(topk, layers, source, trajectory)
    tasks = [plan_tasks(store, choice) for store in opened]
    image_id = choose_image(opened, image)
    for own in tasks:
        choose_layers(own[0].layers, figure_layers, "--figure-layers")
    allowed = [plan_workers(store, own, resources, bootstraps) for store, own in zip(opened, tasks, strict=True)]
    kept = KeptParts(results_folder)
    results = [
        StoreLens(identity, analyze_store(store, own, resources=use, kept=kept))
        for identity, store, own, use in zip(identities, opened, tasks, allowed, strict=True)
    ]
    curves = [
        [group_curves(result, chosen, bootstraps, seed) for _, chosen in prompt_groups(result.samples)]
        for _, result in results
    ]
    for store, item, of_store in zip(opened, results, curves, strict=True):
        tell_of_lens(item, of_store, choice, why_decoded(store, choice), resources)
    attributes = result_attributes(
        NAME,
        settings_text(
            identities,
            topk=topk,
            layers=[list(own[0].layers) for own in tasks],
            source=[own[0].source for own in tasks],
            trajectory=trajectory,
            words=words,
            bootstraps=bootstraps,
            seed=seed,
        ),
    )
    written = [
        write_dataset(results_folder, NAME, to_dataset(results, curves, attributes)),
        write_table(results_folder, NAME, to_tables(results), LOGIT_LENS_SCHEMA),
        *write_figures(results_folder, NAME, draw_curves(results, curves)),
    ]
    if words != "none":
        rows = _word_rows(results, opened, tasks, kept, words)
        written.append(write_table(results_folder, f"{NAME}-words", rows, WORDS_SCHEMA))
    if trajectory:
        tables = to_trajectory_tables(results)
        written.append(write_table(results_folder, f"{NAME}-trajectory", tables, TRAJECTORY_SCHEMA))
        written += write_figures(results_folder, f"{NAME}-trajectory", draw_trajectory(results, curves))
    drawn = [image_pieces(store, own, kept, image_id, figure_layers) for store, own in zip(opened, tasks, strict=True)]
    written += write_figures(results_folder, f"{NAME}-patches", draw_patches(results, drawn))
    if not any(drawn):
        resources.tell(
            f"no grid shows the whole of image {image_id}, so its patches are not drawn: choose another --image"
        )
    kept.clear()
    return written


def _word_rows(
    results: Sequence[StoreLens],
    stores: Sequence[Store],
    tasks: Sequence[Sequence[LensTask]],
    kept: KeptParts,
    words: str,
) -> Iterator[pa.Table]:
    for item, store, own in zip(results, stores, tasks, strict=True):
        pieces = stored_pieces(store.parts, own, kept)
        yield from to_word_tables(item.identity, store.model.vocabulary, item.result.layers, pieces, words)
