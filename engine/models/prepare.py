"""From one image and its prompts to model inputs: pixels, tokens, roles, patches, and the text of a side encoder.

Samples are processed singly; the processor's own padding is never used. Tokens depend on the prompt and on the
shape of the processed pixels only, so each such pair is tokenized once.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from engine.errors import UsageError
from engine.models.checkpoint import Checkpoint
from engine.models.compatibility import check_image_size, image_count_error
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
    side_texts
        Per prompt what a text encoder beside the language model reads: inputs by name, (token,) int64 each; empty
        where the family has none.
    prefix
        Leading tokens that all prompts share and that are stored once; 0 where nothing is shared.
    grids
        The patch grids of the image; none where its tokens are no patches.
    """

    pixel_values: torch.Tensor
    layouts: tuple[TokenLayout, ...]
    side_texts: tuple[Mapping[str, np.ndarray], ...]
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


class _Encoded(NamedTuple):
    """What does not depend on the pixels of a sample."""

    layout: TokenLayout
    side_text: Mapping[str, np.ndarray]


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
                    "the image has its place already: take it out of the prompt."
                )
        self._checkpoint = checkpoint
        self._prompts = tuple(prompts)
        self._share_prefix = share_prefix
        self._encoded: dict[tuple[str, torch.Size], _Encoded] = {}
        # Fast tokenizers keep padding settings that two threads must not touch at once.
        self._tokenizing = threading.Lock()

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Process one upright RGB image with every prompt."""
        processor = self._checkpoint.processor
        pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        check_image_size(pixels.shape[-2], pixels.shape[-1], self._checkpoint.config)
        encoded = [self._encode(image, pixels, prompt) for prompt in self._prompts]
        layouts = tuple(sample.layout for sample in encoded)
        return PreparedImage(
            pixel_values=pixels,
            layouts=layouts,
            side_texts=tuple(sample.side_text for sample in encoded),
            prefix=common_prefix(list(layouts)) if self._share_prefix else 0,
            grids=self._grids(image, pixels),
        )

    def prepare_nominal(self) -> PreparedImage:
        """Prepare a grey image of common size, to know how many tokens an image takes before any is read."""
        return self.prepare(Image.new("RGB", (640, 480), (127, 127, 127)))

    def _encode(self, image: Image.Image, pixels: torch.Tensor, prompt: Prompt) -> _Encoded:
        key = (prompt.prompt_id, pixels.shape)
        with self._tokenizing:
            if key not in self._encoded:
                self._encoded[key] = self._tokenize(image, pixels, prompt)
            return self._encoded[key]

    def _tokenize(self, image: Image.Image, pixels: torch.Tensor, prompt: Prompt) -> _Encoded:
        checkpoint = self._checkpoint
        text, _ = checkpoint.family.fill(prompt.text, checkpoint.image_token)
        inputs = checkpoint.processor(images=image, text=text, return_tensors="np")
        token_id = np.asarray(inputs["input_ids"][0])
        self._check_image_tokens(int((token_id == checkpoint.image_token_id).sum()), pixels)
        layout = lay_out_tokens(
            checkpoint,
            prompt.text,
            token_id,
            grid_shape=self._grid_shape(pixels) if checkpoint.family.patch_grid else None,
            class_tokens=self._class_tokens,
        )
        return _Encoded(layout, self._side_text(prompt, inputs))

    def _side_text(self, prompt: Prompt, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        side = self._checkpoint.family.side_text
        if side is None:
            return {}
        encoder = getattr(self._checkpoint.config, side.config)
        chosen = {name: np.asarray(inputs[name][0], dtype=np.int64) for name in side.inputs}
        token_id = chosen[side.inputs[0]]
        if len(token_id) > encoder.max_position_embeddings:
            raise UsageError(
                f"prompt {prompt.prompt_id!r} has {len(token_id)} tokens in the vocabulary of {side.tokenizer}, whose "
                f"encoder takes at most {encoder.max_position_embeddings} (max_position_embeddings of {side.config}): "
                "shorten the prompt."
            )
        if token_id.max() >= encoder.vocab_size:
            raise UsageError(
                f"the {side.tokenizer} of {self._checkpoint.model_id} gives prompt {prompt.prompt_id!r} the id "
                f"{token_id.max()}, but its encoder has {encoder.vocab_size} embeddings (vocab_size of {side.config}): "
                "check which tokenizer lies in that folder."
            )
        return chosen

    def _grids(self, image: Image.Image, pixels: torch.Tensor) -> tuple[Grid, ...]:
        if not self._checkpoint.family.patch_grid:
            return ()
        preprocessing = preprocessing_of(self._checkpoint.processor.image_processor)
        box = covered_box(image.width, image.height, **preprocessing._asdict())
        return (Grid(*self._grid_shape(pixels), *box, thumbnail=False),)

    def _grid_shape(self, pixels: torch.Tensor) -> tuple[int, int]:
        patch = int(self._checkpoint.config.vision_config.patch_size)
        return pixels.shape[-2] // patch, pixels.shape[-1] // patch

    @property
    def _class_tokens(self) -> int:
        """Image tokens that are no patches: the vision tower's CLS, where the model keeps it."""
        return int(getattr(self._checkpoint.config, "vision_feature_select_strategy", None) == "full")

    def _check_image_tokens(self, made: int, pixels: torch.Tensor) -> None:
        family, config = self._checkpoint.family, self._checkpoint.config
        rows, cols = self._grid_shape(pixels)
        expected = rows * cols + self._class_tokens if family.patch_grid else int(config.num_query_tokens)
        if made != expected:
            raise image_count_error(family, made, expected)
