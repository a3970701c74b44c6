"""What whoever reads LogitLens should be told: where pieces come from, and what is missing or counts as 0."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.lens_scores import VARIANTS
from analyses.logit_lens import LogitLens
from analyses.logit_lens_plan import LensChoice
from analyses.logit_lens_results import GroupCurves, StoreLens
from analyses.prompt_groups import prompt_groups
from analyses.resources import Resources

__all__ = ["certified_percent", "tell_of_lens"]


def tell_of_lens(
    item: StoreLens, curves: Sequence[GroupCurves], choice: LensChoice, decoded: str | None, resources: Resources
) -> None:
    """Say it, each only where it is so; ``decoded`` is what `logit_lens_plan.why_decoded` says."""
    identity, result = item
    total = len(result.samples)
    if result.source == "lens":
        resources.tell(f"{identity.store}: pieces are those that extraction stored; no logit was computed for them")
    if decoded:
        resources.tell(f"{identity.store}: {decoded}")
    if not np.isnan(result.certified):
        resources.tell(
            f"{identity.store}: certified: the screen decided {certified_percent(result.certified)} of image tokens "
            "and layers, the others took the exact path; the pieces are the same"
        )
    if result.topk < choice.topk:
        resources.tell(f"{identity.store}: its vocabulary has {result.topk} pieces, so --topk {choice.topk} is all")
    if result.block_count not in result.layers:
        resources.tell(
            f"{identity.store}: layer {result.block_count}, the last, is not among the layers, so agreement with it is "
            "NaN"
        )
    without_tokens = int((result.image_tokens == 0).sum())
    if without_tokens:
        resources.tell(f"{identity.store}: {without_tokens} of {total} samples have no image token and decode nothing")
    groups = list(prompt_groups(result.samples))
    once = identity.image_states_depend_on_prompt is False and len(groups) > 1
    for (group, chosen), own in zip(groups, curves, strict=True):
        name = f"{identity.store}, {group.title}"
        _tell_of_group(name, int(chosen.sum()), own, resources)
        if not once:
            _tell_of_nothing_decoded(name, result, chosen, resources)
    if once:
        _tell_of_nothing_decoded(f"{identity.store}, all prompts", result, np.ones(total, np.bool_), resources)
    if result.trajectory is not None:
        unknown = int(np.isnan(result.trajectory[0, 1]).all(axis=1).sum())
        if unknown:
            resources.tell(
                f"{identity.store}: the last text token of {unknown} of {total} samples is not stored, so its "
                "trajectory is NaN"
            )


def certified_percent(share: float) -> str:
    """Write a share of tokens in percent; rounded down, so that 100 % are all."""
    return f"{math.floor(1000 * share) / 10:g} %"


def _tell_of_group(name: str, total: int, curves: GroupCurves, resources: Resources) -> None:
    if curves.without_captions:
        resources.tell(
            f"{name}: {curves.without_captions} of {total} samples have no captions, so no precision and no recall"
        )
    if curves.nothing_referred:
        resources.tell(
            f"{name}: the captions of {curves.nothing_referred} of {total} samples hold stop words only; their recall "
            "counts as 0"
        )


def _tell_of_nothing_decoded(name: str, result: LogitLens, chosen: NDArray[np.bool_], resources: Resources) -> None:
    """Count samples whose image tokens hold no word; those without image tokens have a note of their own."""
    looked_at = chosen & (result.image_tokens > 0)
    nothing = result.nothing_decoded[VARIANTS.index("token")][looked_at].sum(axis=0)
    if nothing.any():
        most = int(nothing.argmax())
        resources.tell(
            f"{name}: at {np.count_nonzero(nothing)} of {len(nothing)} layers some samples decode no word, most at "
            f"layer {result.layers[most]} ({nothing[most]} of {int(chosen.sum())} samples); "
            "their precision counts as 0 there"
        )
