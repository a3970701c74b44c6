"""From one image and its prompts to model inputs: pixels, tokens, roles, patches.

Samples are processed singly; the processor's own padding is never used. Tokens depend on the prompt and on the
shape of the processed pixels only, so each such pair is tokenized once.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint
from engine.models.geometry import covered_box, preprocessing_of
from engine.models.tokens import TokenLayout, common_prefix, lay_out_tokens
from engine.prompts import Prompt
from engine.vocabulary import ROLE_CODES, ROLES

__all__ = ["Grid", "PreparedImage", "Preparer"]


class Grid(NamedTuple):
    """One grid of image patches and the pixels of the upright original that it covers."""

    rows: int
    cols: int
    x0: float
    y0: float
    x1: float
    y1: float
    thumbnail: bool


@dataclass(frozen=True)
class PreparedImage:
    """One image with all its prompts, ready for the model.

    Attributes
    ----------
    pixel_values
        (1, channel, height, width) float32, what the processor made of the image.
    layouts
        One token layout per prompt, in the plan's prompt order.
    prefix
        Leading tokens that all prompts share and that are stored once; 0 where nothing is shared.
    grids
        The patch grids of the image.
    """

    pixel_values: torch.Tensor
    layouts: tuple[TokenLayout, ...]
    prefix: int
    grids: tuple[Grid, ...]

    def stored_tokens(self, roles: Sequence[str] | None) -> int:
        """Tokens that the image stores with all its prompts, its shared prefix once.

        Parameters
        ----------
        roles
            Names of the roles that are stored; all where None.
        """
        codes = range(len(ROLES)) if roles is None else [ROLE_CODES[name] for name in roles]
        shared = np.isin(self.layouts[0].role[: self.prefix], codes).sum()
        return int(shared + sum(np.isin(layout.role[self.prefix :], codes).sum() for layout in self.layouts))


class Preparer:
    """Prepares images for one checkpoint and one list of prompts.

    Parameters
    ----------
    checkpoint
        Configuration and processor of the model.
    prompts
        The prompts every image gets.
    share_prefix
        Whether tokens that all prompts of an image share are stored once.

    Raises
    ------
    UsageError
        Where a prompt contains the image placeholder.
    """

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[Prompt], *, share_prefix: bool) -> None:
        for prompt in prompts:
            if checkpoint.image_token in prompt.text:
                raise UsageError(
                    f"prompt {prompt.prompt_id!r} contains the image placeholder {checkpoint.image_token!r}; "
                    "the template already places the image: take it out of the prompt."
                )
        self._checkpoint = checkpoint
        self._prompts = tuple(prompts)
        self._share_prefix = share_prefix
        self._layouts: dict[tuple[str, torch.Size], TokenLayout] = {}
        # Fast tokenizers keep padding settings that two threads must not touch at once.
        self._tokenizing = threading.Lock()

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Process one upright RGB image with every prompt."""
        processor = self._checkpoint.processor
        pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        layouts = tuple(self._layout(image, pixels, prompt) for prompt in self._prompts)
        rows, cols = self._grid_shape(pixels)
        preprocessing = preprocessing_of(processor.image_processor)
        box = covered_box(image.width, image.height, **preprocessing._asdict())
        return PreparedImage(
            pixel_values=pixels,
            layouts=layouts,
            prefix=common_prefix(list(layouts)) if self._share_prefix else 0,
            grids=(Grid(rows, cols, *box, thumbnail=False),),
        )

    def prepare_nominal(self) -> PreparedImage:
        """Prepare a grey image of common size, to know how many tokens an image takes before any is read."""
        return self.prepare(Image.new("RGB", (640, 480), (127, 127, 127)))

    def _layout(self, image: Image.Image, pixels: torch.Tensor, prompt: Prompt) -> TokenLayout:
        key = (prompt.prompt_id, pixels.shape)
        with self._tokenizing:
            if key not in self._layouts:
                self._layouts[key] = self._tokenize(image, pixels, prompt)
            return self._layouts[key]

    def _tokenize(self, image: Image.Image, pixels: torch.Tensor, prompt: Prompt) -> TokenLayout:
        checkpoint = self._checkpoint
        text, _ = checkpoint.family.fill(prompt.text, checkpoint.image_token)
        token_id = checkpoint.processor(images=image, text=text, return_tensors="np")["input_ids"][0]
        self._check_image_tokens(int((token_id == checkpoint.image_token_id).sum()), pixels)
        return lay_out_tokens(
            checkpoint.processor,
            checkpoint.family,
            prompt.text,
            np.asarray(token_id),
            grid_shape=self._grid_shape(pixels),
            class_tokens=self._class_tokens,
        )

    def _grid_shape(self, pixels: torch.Tensor) -> tuple[int, int]:
        patch = int(self._checkpoint.config.vision_config.patch_size)
        return pixels.shape[-2] // patch, pixels.shape[-1] // patch

    @property
    def _class_tokens(self) -> int:
        """Image tokens that are no patches: the vision tower's CLS, where the model keeps it."""
        return int(self._checkpoint.config.vision_feature_select_strategy == "full")

    def _check_image_tokens(self, made: int, pixels: torch.Tensor) -> None:
        rows, cols = self._grid_shape(pixels)
        expected = rows * cols + self._class_tokens
        if made != expected:
            raise StrataError(
                f"the processor made {made} image tokens, the model expects {expected}: check patch_size, "
                "num_additional_image_tokens and vision_feature_select_strategy in processor_config.json."
            )
