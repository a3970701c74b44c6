"""What must hold of a loaded model before a run may trust it, checked on the first image that can be read."""

import numpy as np
import torch

from engine.capture.forward import BatchItem, Probe, capture_batch
from engine.errors import StrataError
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage
from engine.vocabulary import ROLE_CODES

__all__ = ["check_image_rows", "check_prompt_independence"]

# Two runs differ by kernel noise: measured in 16 bits after 32 blocks, 1e-4 in the mean over tokens and ten times that
# in the worst token. A prompt that reaches the image moves all of them, by 0.1 and more.
_SAME_COSINE = {"float16": 1 - 1e-3, "bfloat16": 1 - 1e-3, "float32": 1 - 1e-5}


@torch.inference_mode()
def check_image_rows(loaded: LoadedModel, prepared: PreparedImage) -> None:
    """Check that the projector makes as many rows as the processor makes image tokens.

    Raises
    ------
    StrataError
        With both numbers.
    """
    pixels = prepared.pixel_values.to(loaded.device, loaded.model.dtype)
    rows = sum(len(features) for features in loaded.model.get_image_features(pixels).pooler_output)
    tokens = int((prepared.layouts[0].role == ROLE_CODES["image"]).sum())
    if rows != tokens:
        raise StrataError(
            f"the processor made {tokens} image tokens, the model expects {rows}: check patch_size, "
            "num_additional_image_tokens and vision_feature_select_strategy in processor_config.json."
        )


def check_prompt_independence(loaded: LoadedModel, prepared: PreparedImage, probe: Probe, *, pad_id: int) -> None:
    """Check that image states are the same under two prompts, without which a shared prefix would be wrong.

    Compares the first and the last prompt that give finite states.

    Parameters
    ----------
    prepared
        An image with at least two prompts.
    probe
        Its layers are compared.

    Raises
    ------
    StrataError
        Naming the worst layer and its mean cosine.
    """
    states: list[list[torch.Tensor]] = []
    for layout in (prepared.layouts[0], *prepared.layouts[:0:-1]):
        is_image = layout.role == ROLE_CODES["image"]
        item = BatchItem("", 0, layout, prepared.pixel_values, is_image, prefix=0)
        captured = capture_batch(loaded, [item], probe._replace(residual=True, pooled=False), pad_id=pad_id)
        if captured.problems == (None,):
            states.append([rows.float() for rows in captured.states])
        if len(states) == 2:
            break
    else:
        # Fewer than two prompts give finite states: no prefix of this image will be used twice.
        return
    cosines = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(*states, strict=True)]
    worst = int(np.argmin(cosines))
    if cosines[worst] < _SAME_COSINE[loaded.dtype]:
        raise StrataError(
            f"image states change with the prompt (layer {probe.layers[worst]}: mean cosine {cosines[worst]:.6f}), "
            "though this family reads the image before the prompt: the checkpoint is not what its model_type says, and "
            "a store of it would be described wrongly. `strata models` lists what is supported."
        )
