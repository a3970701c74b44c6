"""Whether what a run has yet to write fits the disk, asked before a model is loaded.

Counted are all parts of the plan that are not committed, whichever rank writes them: ranks fill one file system, and
each of them would find room for its own share alone.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.cli.planning import Planned
from engine.cli.prediction import predict_parts, predict_tables
from engine.cli.sizes import format_bytes, format_count
from engine.errors import StrataError
from engine.plan import PlannedPart
from engine.store import part_name
from engine.store.disk import find_free_space
from engine.store.layout import PARTS_FOLDER, STAGING_FOLDER

__all__ = ["bytes_to_write", "check_free_space"]

_FILE_BYTES = 12 * 2**10
"""What a file takes beside its arrays: its half empty last block, the folders it stands in, its metadata or table."""


def check_free_space(store: Path, planned: Planned, missing: Sequence[PlannedPart], *, tables: bool) -> None:
    """Compare the estimate of what is yet to be written with the free space.

    Parameters
    ----------
    store
        Where to; need not exist.
    planned
        The plan.
    missing
        Its parts that are not committed, of all ranks; at least one.
    tables
        Whether the files beside the parts are to be written too.

    Raises
    ------
    StrataError
        When the free space is less, with path, need and next step.
    """
    need = bytes_to_write(planned, missing, tables=tables)
    # Unfinished work of these parts, dead or alive, lies there already; but a part is whole before its leftover goes.
    begun = [store / STAGING_FOLDER, *(store / PARTS_FOLDER / f"{part_name(part.number)}.zarr" for part in missing)]
    need = max(need - sum(map(_bytes_below, begun)), bytes_to_write(planned, missing[:1], tables=tables))
    folder, free = find_free_space(store)
    if free < need:
        raise StrataError(
            f"{store} needs about {format_bytes(need)} more for {format_count(len(missing), 'part')} that "
            f"{'is' if len(missing) == 1 else 'are'} not finished, and {format_bytes(free)} are free on {folder}: make "
            "room, choose another --out, or keep less (strata estimate says what takes how much); --force starts "
            "anyway, and what is finished when the disk is full stays valid."
        )


def bytes_to_write(planned: Planned, parts: Sequence[PlannedPart], *, tables: bool) -> int:
    """Bytes on disk of some parts, about; with ``tables`` those of the files beside them too."""
    predicted = [predict_parts(planned, parts)]
    if tables:
        predicted.append(predict_tables(planned, unembedding=planned.capture.unembedding))
    return int(sum(item.on_disk + item.files * _FILE_BYTES for item in predicted))


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process may be committing it
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
