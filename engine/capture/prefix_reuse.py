"""Whether the prefix that an image's prompts share is run once, decided when a model is loaded.

The full pass over every sample is always right. Keys and values of a prefix serve its prompts only where no block
forgets or mixes them (sliding windows, recurrent states), and where the model gives the same states either way, which
is tried on the first image.
"""

import numpy as np
import torch

from engine.capture.batch import BatchItem
from engine.capture.checks import SAME_COSINE, check_item
from engine.capture.forward import capture_batch
from engine.capture.prefix_cache import why_no_cache
from engine.capture.prefixes import capture_prefixes
from engine.capture.probe import Probe
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage
from engine.models.tokens import common_prefix

__all__ = ["ONCE", "choose_prefix_pass"]

ONCE = "once per image"
"""The prefix of an image is run once, and its prompts against its keys and values."""


def choose_prefix_pass(loaded: LoadedModel, prepared: PreparedImage, probe: Probe, *, pad_id: int) -> str:
    """Try on one image whether its prompts give the same states behind a prefix that was run before.

    Parameters
    ----------
    loaded
        The model, whose image states do not depend on the prompt.
    prepared
        The image with two prompts at least.
    probe
        What is captured: attention that is listened to is listened to here.
    pad_id
        Token id of padding.

    Returns
    -------
    str
        :data:`ONCE`, or that the prefix runs with every prompt, and why.
    """
    reason = why_no_cache(loaded.language.config) or _why_other_states(loaded, _items(prepared), probe, pad_id)
    return ONCE if reason is None else f"with every prompt: {reason}"


def _items(prepared: PreparedImage) -> list[BatchItem]:
    """Make samples of the first prompt and of the one whose length differs most, so that one is padded."""
    lengths = [len(layout) for layout in prepared.layouts]
    other = max(range(1, len(lengths)), key=lambda index: abs(lengths[index] - lengths[0]))
    items = [check_item(prepared, index) for index in (0, other)]
    prefix = common_prefix([item.layout for item in items])
    return [item._replace(prefix=prefix, wanted=np.ones(len(item.layout), bool)) for item in items]


def _why_other_states(loaded: LoadedModel, items: list[BatchItem], probe: Probe, pad_id: int) -> str | None:
    layers = tuple(range(probe.block_count + 1))
    of_states = probe._replace(
        layers=layers, residual=True, pooled=False, residual_layers=None, lens_layers=(), tensor_roles={}
    )
    prefixes = capture_prefixes(loaded, items, of_states, pad_id=pad_id)
    if prefixes is None:
        return "the image is not all of what its prompts share"
    full, shared = (
        capture_batch(loaded, items, of_states, pad_id=pad_id, prefixes=before) for before in (None, prefixes)
    )
    if not any(problem is None for problem in full.problems) or full.problems != shared.problems:
        return f"the first image cannot be compared ({next(filter(None, (*full.problems, *shared.problems)))})"
    for layer, one, other in zip(layers, full.states, shared.states, strict=True):
        cosine = float(torch.cosine_similarity(one.double(), other.double(), dim=-1).mean())
        if not cosine >= SAME_COSINE[loaded.dtype]:
            return f"states of layer {layer} are others behind a prefix that was run before (mean cosine {cosine:.6f})"
    return None
