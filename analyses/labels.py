"""What figures call stores: model and source, and more only where two would have the same name."""

from collections.abc import Sequence

from analyses.identity import StoreIdentity

__all__ = ["LONGEST", "short_label", "store_labels"]

LONGEST = 46
"""Letters of a label that fit a column of a paper."""


def store_labels(identities: Sequence[StoreIdentity]) -> dict[str, str]:
    """Label every store, no two alike: ``llava-1.5-7b-hf · coco``.

    Where two stores share model and source, the end of the store's name joins, as much of it as tells them apart.

    Returns
    -------
    dict
        From ``StoreIdentity.store``.
    """
    plain = {one.store: f"{one.model.rsplit('/', 1)[-1] or 'unnamed model'} · {one.source}" for one in identities}
    labels = {}
    for store, label in plain.items():
        others = [other for other, same in plain.items() if same == label and other != store]
        labels[store] = f"{label} · {_distinct_end(store, others)}" if others else label
    return labels


def short_label(label: str, longest: int = LONGEST) -> str:
    """Leave out the middle of a label that is too long for its place in a figure."""
    half = longest // 2
    return label if len(label) <= longest else f"{label[: half - 1]}…{label[-half:]}"


def _distinct_end(store: str, others: Sequence[str]) -> str:
    """Return the fewest folders at the end of a path that none of the others ends with."""
    pieces = store.split("/")
    for count in range(1, len(pieces)):
        end = "/".join(pieces[-count:])
        if not any(f"/{other}".endswith(f"/{end}") for other in others):
            return end
    return store
