"""The analysis ``norm-attention``: from stores to written results."""

from collections.abc import Sequence
from pathlib import Path

from analyses.identity import StoreIdentity, settings_text
from analyses.image_attention import read_image_attention
from analyses.kept_parts import KeptParts
from analyses.norm_attention import analyze_store
from analyses.norm_attention_figure import draw_shares
from analyses.norm_attention_image_figure import draw_image
from analyses.norm_attention_maps_figure import draw_patches, draw_positions
from analyses.norm_attention_notes import tell_of_missing
from analyses.norm_attention_results import StoreAttention, to_dataset
from analyses.norm_attention_table import NORM_ATTENTION_SCHEMA, to_tables
from analyses.opening import open_all
from analyses.picture import choose_image
from analyses.resources import Resources
from analyses.results import write_dataset, write_figures, write_table
from analyses.results_folder import check_folder, result_attributes
from engine.store import Store

__all__ = ["NAME", "run"]

NAME = "norm-attention"


def run(
    stores: Sequence[str], results_folder: Path, resources: Resources, *, without_sinks: bool, image: str
) -> list[Path]:
    """Analyse stores one by one and write their results as one; see `analyses.registry.run`."""
    opened, identities = open_all(stores, resources)
    check_folder(results_folder, [NAME], identities)
    image_id = choose_image(opened, image)
    kept = KeptParts(results_folder)
    results = [
        StoreAttention(identity, analyze_store(store, without_sinks=without_sinks, resources=resources, kept=kept))
        for identity, store in zip(identities, opened, strict=True)
    ]
    for item in results:
        tell_of_missing(item, resources)
    attributes = result_attributes(NAME, settings_text(identities, without_sinks=without_sinks))
    written = [
        write_dataset(results_folder, NAME, to_dataset(results, attributes)),
        write_table(results_folder, NAME, to_tables(results), NORM_ATTENTION_SCHEMA),
        *write_figures(results_folder, NAME, draw_shares(results)),
        *write_figures(results_folder, f"{NAME}-positions", draw_positions(results)),
        *write_figures(results_folder, f"{NAME}-patches", draw_patches(results)),
        *_write_image(results_folder, opened, identities, image_id, without_sinks=without_sinks),
    ]
    kept.clear()
    return written


def _write_image(
    results_folder: Path,
    stores: Sequence[Store],
    identities: Sequence[StoreIdentity],
    image: str,
    *,
    without_sinks: bool,
) -> list[Path]:
    """Draw one image of each store that has it; an image with no grid of its own is in no figure."""
    read = (read_image_attention(store, image, without_sinks=without_sinks) for store in stores)
    found = [(identity, item) for identity, item in zip(identities, read, strict=True) if item is not None]
    return write_figures(results_folder, f"{NAME}-image", draw_image(found, without_sinks=without_sinks))
