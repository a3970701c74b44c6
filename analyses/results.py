"""Writing results: each file appears whole or not at all, and takes the place of the one before it.

``NAME.zarr`` (labelled arrays), ``NAME.parquet`` (tidy table), ``NAME.png`` and ``NAME.svg``. Everything is written
under a hidden name in the same folder and renamed; a crash leaves the old file, or none.
"""

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from matplotlib.figure import Figure

from engine.errors import StrataError

__all__ = ["open_dataset", "write_dataset", "write_figure", "write_figures", "write_page", "write_table"]

_FIGURE_SUFFIXES = (".png", ".svg")
_DPI = 300


def write_dataset(folder: Path, name: str, dataset: xr.Dataset) -> Path:
    """Write ``NAME.zarr`` (Zarr v3, metadata consolidated)."""

    def write(path: Path) -> None:
        with warnings.catch_warnings():
            # Results are written once: that consolidated metadata may go stale, as zarr warns, cannot happen.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            dataset.to_zarr(path, zarr_format=3, consolidated=True)

    return _replace(folder, f"{name}.zarr", write)


def open_dataset(folder: Path, name: str) -> xr.Dataset | None:
    """Open ``NAME.zarr``, or return None where there is none."""
    path = folder / f"{name}.zarr"
    return xr.open_zarr(path, chunks=None, consolidated=True) if path.is_dir() else None


def write_table(folder: Path, name: str, pieces: Iterable[pa.Table], schema: pa.Schema) -> Path:
    """Write ``NAME.parquet``, piece by piece."""
    # Measured numbers hardly repeat: a dictionary of them only takes room, while bytes of one place compress together.
    numbers = {field.name for field in schema if pa.types.is_floating(field.type)}
    encodings: dict[str, Any] = {
        "use_dictionary": [field.name for field in schema if field.name not in numbers],
        "column_encoding": dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
    }

    def write(path: Path) -> None:
        with pq.ParquetWriter(path, schema, compression="zstd", **encodings) as writer:
            for piece in pieces:
                writer.write_table(piece)

    return _replace(folder, f"{name}.parquet", write)


def write_figure(folder: Path, name: str, figure: Figure) -> list[Path]:
    """Write ``NAME.png`` (300 dpi) and ``NAME.svg``, without dates, so that the same results give the same bytes.

    The figure is laid out for good: matplotlib would do so twice for each file.
    """
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def write(path: Path) -> None:
        with mpl.rc_context({"svg.hashsalt": name}):
            undated = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=_DPI, metadata=undated)

    return [_replace(folder, f"{name}{suffix}", write) for suffix in _FIGURE_SUFFIXES]


def write_figures(folder: Path, name: str, figures: Sequence[Figure]) -> list[Path]:
    """Write a figure of several pages, or of none: ``NAME``, ``NAME-2``, …; pages that an earlier one had more go."""
    names = [f"{name}-{number}" if number > 1 else name for number in range(1, len(figures) + 1)]
    written = [path for own, figure in zip(names, figures, strict=True) for path in write_figure(folder, own, figure)]
    for path in folder.glob(f"{name}*"):
        number = "1" if path.stem == name else path.stem.removeprefix(f"{name}-")
        if path.suffix in _FIGURE_SUFFIXES and number.isdecimal() and int(number) > len(figures):
            path.unlink()
    return written


def write_page(path: Path, html: str) -> Path:
    """Write a page, which is UTF-8."""

    def write(staged: Path) -> None:
        staged.write_bytes(html.encode())

    return _replace(path.parent, path.name, write)


def _replace(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    target = folder / name
    staged = folder / f".{uuid.uuid4().hex}-{name}"
    old = staged.with_suffix(".old")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(staged)
        if target.is_dir():  # a folder cannot be renamed over a folder
            os.rename(target, old)
        os.replace(staged, target)
    except OSError as error:
        raise StrataError(
            f"{target} could not be written ({error}): make room or choose another --out; results written before stand"
        ) from error
    finally:
        _remove(staged)
        _remove(old)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
