"""Which panels figures of norm-attention have: one per store, prompt group and query, but none twice."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.labels import LONGEST, short_label, store_labels
from analyses.norm_attention_results import StoreAttention
from analyses.prompt_groups import PromptGroup, prompt_groups

__all__ = ["IDENTITY_NOTE", "QUERY_NAMES", "Panel", "panels"]

IDENTITY_NOTE = (
    "Where image states do not see the prompt, the last image token looks the same way with every prompt: drawn once."
)
QUERY_NAMES = {"last_text": "last text token", "last_image": "last image token"}

_IMAGE_QUERIES = ("last_image", "image:")


class Panel(NamedTuple):
    """One store's prompt group and query.

    Attributes
    ----------
    item : StoreAttention
    group : PromptGroup
    number : int
        Of the group in the store's maps.
    chosen : array (sample) of bool
        The group's samples.
    query : int
    title : str
    """

    item: StoreAttention
    group: PromptGroup
    number: int
    chosen: NDArray[np.bool_]
    query: int
    title: str


def _words(query: str) -> str:
    return f"the {QUERY_NAMES[query]}" if query in QUERY_NAMES else f"token {query}"


def panels(results: Sequence[StoreAttention]) -> tuple[list[Panel], bool]:
    """List the panels; a query that no sample of a group has gets none.

    Returns
    -------
    list of Panel
    bool
        Whether some are left out because the image does not see the prompt.
    """
    labels = store_labels([item.identity for item in results])
    found, left_out = [], False
    for item in results:
        store = f"{short_label(labels[item.identity.store], LONGEST)}\n" if len(results) > 1 else ""
        blind = item.identity.image_states_depend_on_prompt is False
        for number, (group, chosen) in enumerate(prompt_groups(item.result.samples)):
            for query, name in enumerate(item.result.queries):
                if np.isnan(item.result.values["attention"][chosen, query]).all():
                    continue
                if blind and number and name.startswith(_IMAGE_QUERIES):
                    left_out = True
                    continue
                title = f"{store}{short_label(group.title, 24)}, from {_words(name)}"
                found.append(Panel(item, group, number, chosen, query, title))
    return found, left_out
