"""Opening the stores of an analysis, and telling what whoever reads its results should know of them."""

from collections.abc import Sequence

from analyses.identity import StoreIdentity, identify
from analyses.resources import Resources
from engine.errors import UsageError
from engine.store import Store, open_store

__all__ = ["open_all"]


def open_all(stores: Sequence[str], resources: Resources) -> tuple[list[Store], list[StoreIdentity]]:
    """Open stores one by one; notify of each that does not hold all that was planned.

    Raises
    ------
    UsageError
        None is named, or one twice: its samples would count double.
    """
    if not stores:
        raise UsageError("no store is named: give at least one path or URL")
    opened = [open_store(url) for url in stores]
    for store in opened:
        if [other.url for other in opened].count(store.url) > 1:
            raise UsageError(f"{store.url} is named twice: name each store once")
    identities = identify(opened)
    for store, identity in zip(opened, identities, strict=True):
        resources.tell(identity.completeness.note(store.url))
    return opened, identities
