"""What must hold of a loaded model before a run may trust it, checked on the first image that can be read."""

import numpy as np
import torch

from engine.capture.batch import BatchItem, collate, whole_runs
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.errors import StrataError
from engine.models.compatibility import image_count_error
from engine.models.families import Family
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage
from engine.prompts import Prompt
from engine.vocabulary import ROLE_CODES

__all__ = ["FURTHER_PROMPTS", "SAME_COSINE", "check_image_rows", "check_item", "check_prompt_dependence"]

FURTHER_PROMPTS = (
    Prompt("check-short", "custom", "Colours?"),
    Prompt("check", "custom", "List every object that can be seen, and its colour."),
)
"""Added to the prompts of a run for the checks alone, because a run with one prompt has nothing to compare it with.

They differ in length: whatever the run's first prompt is, one of them makes a padded batch with it.
"""

SAME_COSINE = {"float16": 1 - 1e-3, "bfloat16": 1 - 1e-3, "float32": 1 - 1e-5}
"""Mean over tokens, by dtype, of two runs that differ by kernel noise alone: measured in 16 bits after 32 blocks,
1 - 1e-4, and ten times that in the worst token. A prompt that reaches the image moves all of them, by 0.1 and more."""

# Above this no prompt can have reached the image: even prompts that mean the same move its tokens by more.
_UNMOVED_COSINE = {"float16": 1 - 1e-6, "bfloat16": 1 - 1e-6, "float32": 1 - 1e-10}


@torch.inference_mode()
def check_image_rows(loaded: LoadedModel, prepared: PreparedImage, family: Family) -> None:
    """Check that the model makes as many rows of image features as the processor makes image tokens.

    Raises
    ------
    StrataError
        With both numbers.
    """
    inputs = collate(whole_runs([check_item(prepared, 0)]), pad_id=0)
    pixels = inputs["pixel_values"].to(loaded.device, getattr(torch, loaded.dtype))
    side_text = {name: inputs[name].to(loaded.device) for name in prepared.side_texts[0]}
    rows = sum(len(features) for features in loaded.model.get_image_features(pixels, **side_text).pooler_output)
    tokens = int((prepared.layouts[0].role == ROLE_CODES["image"]).sum())
    if rows != tokens:
        raise image_count_error(family, tokens, rows)


def check_prompt_dependence(
    loaded: LoadedModel, prepared: PreparedImage, probe: Probe, *, depends: bool, pad_id: int
) -> None:
    """Check under two prompts what the family table says of image states: that they change, or that they do not.

    States that change although the table says that they do not would make a shared prefix wrong. Compares the first
    prompt and the last one with another text, of those that give finite states; where there are no two, nothing.

    Parameters
    ----------
    prepared
        An image with its prompts.
    probe
        Its layers must not change (all where it has none); where states depend on the prompt, any layer may show it.
    depends
        What the table says.

    Raises
    ------
    StrataError
        Naming the layer with the lowest mean cosine.
    """
    layers = probe.layers if probe.layers and not depends else tuple(range(probe.block_count + 1))
    of_states = Probe(layers, residual=True, pooled=False, block_count=probe.block_count)
    states = _states_of_two(loaded, prepared, of_states, pad_id)
    if len(states) < 2:
        return
    cosines = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(*states, strict=True)]
    worst = int(np.argmin(cosines))
    claim = "the checkpoint is not what its model_type says, and a store of it would be described wrongly. "
    advice = "`strata models` lists what is supported."
    if not depends and cosines[worst] < SAME_COSINE[loaded.dtype]:
        raise StrataError(
            f"image states change with the prompt (layer {layers[worst]}: mean cosine {cosines[worst]:.6f}), "
            f"though this family reads the image before the prompt: {claim}{advice}"
        )
    if depends and cosines[worst] >= _UNMOVED_COSINE[loaded.dtype]:
        raise StrataError(
            "image states are the same under two different prompts (lowest mean cosine "
            f"{cosines[worst]:.12f}, layer {layers[worst]}), though this family lets the image tokens read the prompt: "
            f"{claim}{advice}"
        )


def _states_of_two(loaded: LoadedModel, prepared: PreparedImage, probe: Probe, pad_id: int) -> list[list[torch.Tensor]]:
    """States of the image tokens, per layer (token, dim) float64, under up to two prompts with different texts."""
    found: list[tuple[int, list[torch.Tensor]]] = []
    for index in (0, *range(len(prepared.layouts) - 1, 0, -1)):
        if found and not _texts_differ(prepared, found[0][0], index):
            continue
        captured = capture_batch(loaded, [check_item(prepared, index)], probe, pad_id=pad_id)
        if captured.problems == (None,):
            found.append((index, [rows.double() for rows in captured.states]))
        if len(found) == 2:
            break
    return [states for _, states in found]


def _texts_differ(prepared: PreparedImage, one: int, other: int) -> bool:
    """Tell whether two prompts are different texts to the model, and to a side encoder (it may ignore case)."""
    same_tokens = np.array_equal(prepared.layouts[one].token_id, prepared.layouts[other].token_id)
    sides = prepared.side_texts[one], prepared.side_texts[other]
    return not same_tokens and (
        not sides[0] or any(not np.array_equal(sides[0][name], sides[1][name]) for name in sides[0])
    )


def check_item(prepared: PreparedImage, index: int) -> BatchItem:
    """Make one prompt's sample, of which the image tokens are wanted."""
    layout = prepared.layouts[index]
    return BatchItem(
        sample_id="",
        image=0,
        layout=layout,
        pixel_values=prepared.pixel_values,
        side_text=prepared.side_texts[index],
        wanted=layout.role == ROLE_CODES["image"],
        prefix=0,
    )
