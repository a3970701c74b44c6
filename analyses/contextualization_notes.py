"""What whoever reads contextualization should be told: which curves are empty, and why."""

import numpy as np

from analyses.contextualization_results import StoreResult
from analyses.part_task import PAIRS
from analyses.prompt_groups import prompt_groups
from analyses.resources import Resources

__all__ = ["tell_of_empty_curves"]


def tell_of_empty_curves(item: StoreResult, resources: Resources) -> None:
    """Say where no sample of a store, or of a prompt group, has a token of a set, and where a baseline is missing."""
    identity, result = item
    for kind, total in zip(("image", ", ".join(result.text_roles)), result.counts.sum(axis=0), strict=True):
        if total == 0:
            resources.tell(
                f"{identity.store} holds no {kind} token, so curves with them are empty: extract with --capture "
                "pooled, with these among --roles, or choose other --text-roles"
            )
    if result.counts[:, 1].any():
        _tell_of_groups(item, resources)
    _tell_of_baseline(item, resources)


def _tell_of_groups(item: StoreResult, resources: Resources) -> None:
    identity, result = item
    roles = ", ".join(result.text_roles)
    for group, chosen in prompt_groups(result.samples):
        without = int((result.counts[chosen, 1] == 0).sum())
        total = int(chosen.sum())
        if (result.counts[chosen, 1] == 1).all():
            resources.tell(
                f"{identity.store}: each of the {total} samples of {group.title} has a single token of {roles}, which "
                "has no other to be paired with, so the curve text-text is empty"
            )
        if without == total:
            resources.tell(
                f"{identity.store}: none of the {total} samples of {group.title} has a token of {roles}, so its curves "
                "with text are empty"
            )
        elif without:
            resources.tell(
                f"{identity.store}: {without} of the {total} samples of {group.title} have no token of {roles} and are "
                "in no curve with text"
            )


def _tell_of_baseline(item: StoreResult, resources: Resources) -> None:
    identity, result = item
    if result.baseline is None:
        return
    images = result.samples["image_id"].nunique()
    reason = "two images" if images < 2 else "two prompts with text, whose tokens differ,"
    missing = [pair for pair, pairs in zip(PAIRS, result.baseline.pairs, strict=True) if pairs == 0]
    there = [pair for pair in missing if np.any(result.counts[:, 1]) or pair == "image-image"]
    if there:
        resources.tell(
            f"{identity.store}: the anisotropy baseline of {' and '.join(there)} needs at least {reason} in the store, "
            "so these curves are empty; extract more of them, or use --adjustment none or mean-centred"
        )
