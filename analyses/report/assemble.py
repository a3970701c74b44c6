"""From a results folder, and the stores of its results, to one page."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

from analyses.report.attention_rows import image_rows
from analyses.report.attention_section import attention_section
from analyses.report.attention_tables import query_names
from analyses.report.commands import analyze_command, report_command
from analyses.report.downloads import Download, to_csv
from analyses.report.explorer import Explorer, make_explorer, words_table
from analyses.report.lens_section import lens_section
from analyses.report.packing import Rows
from analyses.report.page import Page, render
from analyses.report.phase_section import phase_section
from analyses.report.pictures import choose_images, thumbnail_uri
from analyses.report.provenance import describe_store
from analyses.report.results import Results, open_results
from analyses.report.section import Section
from analyses.report.stores import Check, ReportedStore, open_reported, verification
from engine import __version__
from engine.errors import UsageError

__all__ = ["IMAGES", "Report", "make_report"]

IMAGES = 12
"""Images that a page shows where it has room for so many."""

_WORD_BYTES = 5 * 2**19  # of packed words
_PICTURE_BYTES = 2**20  # of thumbnails
_ATTENTION_VALUES = 700_000  # shares of single images, three to four packed bytes each
_LIBRARIES = ("activation-strata", "numpy", "xarray", "zarr", "pyarrow", "vl-convert-python")


class Report(NamedTuple):
    """A page, and sentences that whoever asked for it should read."""

    html: str
    notes: tuple[str, ...]


def make_report(
    folder: Path,
    stores: Sequence[str] = (),
    *,
    images: int = IMAGES,
    seed: int = 0,
    verified: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Make the page of a results folder.

    Parameters
    ----------
    folder : Path
        Written by ``strata analyze``.
    stores : sequence of str
        Stores of the results, of which thumbnails, words and attention of single images are read; none is needed.
    images : int
        How many images at most; fewer where the page would grow beyond some megabytes.
    seed : int
        Chooses the images, see `pictures.choose_images`.
    verified : bool
        Whether the stores are verified.
    progress : callable, optional
        As of `engine.store.verify`.

    Raises
    ------
    UsageError
        There are no results, or a store is none of theirs.
    """
    if images < 1:
        raise UsageError(f"--images {images}: at least one is shown")
    results = open_results(folder)
    reported = open_reported(stores, results)
    checks = {one.place: verification(one.path, progress) for one in reported} if verified else {}
    known = sorted({name for one in reported for name in one.store.samples["image_id"]})
    chosen = choose_images(known, images, seed)
    pictures = _pictures(reported, chosen)
    chosen = [name for name in chosen if name in {row["name"] for row in pictures}]
    explorer = _explorer(results, reported, chosen, pictures)
    sections, rows = _sections(results, reported, chosen, pictures, explorer)
    notes = [*results.notes, *(one.note for one in reported if one.note)]
    notes += [f"{one.path}: {checks[one.place].sentence}" for one in reported if _is_bad(checks.get(one.place))]
    subset = f"{len(chosen)} of {len(known)} images, chosen by seed {seed}" if reported else ""
    page = Page(
        folder=str(folder),
        labels=results.labels,
        sections=[_with_command(section, results, reported) for section in sections],
        stores=[
            describe_store(
                label,
                identity,
                next((one for one in reported if one.place == place), None),
                checks[place].sentence if place in checks else "",
            )
            for place, (label, identity) in enumerate(zip(results.labels, results.identities, strict=True))
        ],
        notes=notes,
        subset=subset,
        command=report_command(
            str(folder),
            stores,
            {"images": None if images == IMAGES else images, "seed": seed or None},
            verified=verified,
        ),
        versions=[("python", python_version()), *((name, version(name)) for name in _LIBRARIES)],
        rows={"pictures": pictures, **rows},
        downloads=_downloads(results, sections, rows),
        explorer=explorer,
        strata=__version__,
    )
    return Report(render(page), tuple(notes))


def _downloads(results: Results, sections: Sequence[Section], rows: Mapping[str, Rows]) -> dict[str, Download]:
    """Write what figures offer as files."""
    names = {"s": ("store", results.labels), "g": ("prompt", results.titles)}
    if "norm-attention" in results.datasets:
        names["q"] = ("from", query_names(results))
    if "logit-lens" in results.datasets:
        names["v"] = ("variant", results.datasets["logit-lens"]["variant"].values.tolist())
    offered = {name for section in sections for figure in section.figures for name in figure.data}
    return {name: to_csv(name, rows[name], names) for name in sorted(offered)}


def _is_bad(check: Check | None) -> bool:
    return check is not None and not check.sound


def _pictures(reported: Sequence[ReportedStore], images: Sequence[str]) -> Rows:
    """Row per chosen image and store that holds it, while there is room: ``s``, ``p`` from 1, ``name``, ``href``."""
    rows: Rows = []
    used = 0
    for p, image in enumerate(images, start=1):
        for one in reported:
            if image in one.store.samples["image_id"].to_numpy():
                href = thumbnail_uri(one.store, image)
                used += len(href or "")
                if used > _PICTURE_BYTES and rows:
                    return rows
                rows.append({"s": one.place, "p": p, "name": image, "href": href})
    return rows


def _explorer(
    results: Results, reported: Sequence[ReportedStore], images: Sequence[str], pictures: Rows
) -> Explorer | None:
    if "logit-lens" not in results.datasets or not reported or not words_table(results).is_file():
        return None
    stores = {one.place: one.store for one in reported}
    explorer = make_explorer(results, stores, images, pictures, _WORD_BYTES)
    return explorer if explorer.entries else None


def _sections(
    results: Results,
    reported: Sequence[ReportedStore],
    images: Sequence[str],
    pictures: Rows,
    explorer: Explorer | None,
) -> tuple[list[Section], dict[str, Rows]]:
    stores = {one.place: one.store for one in reported}
    of_images: Rows = []
    if "norm-attention" in results.datasets and stores:
        of_images = image_rows(results, stores, images, _ATTENTION_VALUES)
    lens, lens_rows = lens_section(results)
    if explorer is not None:
        lens = lens._replace(figures=(*lens.figures, explorer.figure))
    elif "logit-lens" in results.datasets:
        how = "strata report --store STORE reads where patches lie."
        if not words_table(results).is_file():
            how = f"{words_table(results).name} is missing: strata analyze logit-lens --words all writes it."
        missing = f"The explorer of patches is not there: {how}"
        lens = lens._replace(missing=(*lens.missing, missing))
    phases, phase_rows = phase_section(results)
    attention, attention_rows = attention_section(results, pictures, of_images)
    return [phases, lens, attention], phase_rows | lens_rows | attention_rows


def _with_command(section: Section, results: Results, reported: Sequence[ReportedStore]) -> Section:
    """Say which command computes a section again; the phases' computes the curves too."""
    names = {"phases": ("phases", "contextualization"), "logit-lens": ("logit-lens",), "attention": ("norm-attention",)}
    dataset = next((results.datasets[name] for name in names[section.name] if name in results.datasets), None)
    if dataset is None:
        return section
    paths = {one.place: one.path for one in reported}
    stores = [paths.get(place, identity.store) for place, identity in enumerate(results.identities)]
    attributes: dict[str, Any] = dataset.attrs
    command = analyze_command(attributes["analysis"], attributes["settings"], stores, str(results.folder))
    return section._replace(command=command)
