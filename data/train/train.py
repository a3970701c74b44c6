"""Training in four stages, from fresh weights to a captioning model.

``vision``: the vision tower and the projector learn, patch by patch, what is seen: which object from the left, its
size, colour and shape (a linear read-out that is thrown away afterwards). No language model runs, so this is cheap.
``sparse``: the language model learns captions from some of the image's patches, at their true positions, which halves
the sequence. ``full``: the whole model learns captions from every patch, with the patch loss kept on at a small weight.
``polish``: the same at low rates and in larger batches.
The loss of the text is taken over the answer only.

Every stage has its own seed and depends on nothing but the weights it is given, so that a later stage may be repeated
from the result of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data.train.examples import IGNORE, Conversations, Pool, choose_patches, converse, normalise, patch_attributes
from data.train.optimiser import Optimiser, Rates
from data.train.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIZES

__all__ = ["DEMO_RUN", "Learner", "PatchReadout", "Run", "Stage", "train_captions", "train_vision"]

_CLASSES = (MAX_OBJECTS + 1, len(SIZES), len(COLOURS), len(SHAPES))

Report = Callable[[int, float], None]
"""Called after each step with its number (from 1) and its loss."""


class Stage(NamedTuple):
    """One stretch of one-cycle optimisation."""

    seed: int
    steps: int
    batch: int
    rates: Rates
    """Peak learning rates."""
    patches: int | None = None
    """Patches of an image that the language model sees; None for all."""
    sight: float = 1.0
    """Factor on the rates of the vision tower and the projector; 0 leaves them as they are."""


class Run(NamedTuple):
    """All numbers of a training."""

    pool_seed: int
    pool: int
    """Scenes in memory, drawn from again and again."""
    vision: Stage
    sparse: Stage
    full: Stage
    polish: Stage


DEMO_RUN = Run(
    pool_seed=1,
    pool=40_000,
    vision=Stage(seed=11, steps=1500, batch=64, rates=Rates(matrices=3e-3, others=2e-3)),
    sparse=Stage(seed=12, steps=1200, batch=32, rates=Rates(matrices=5e-3, others=2e-3), patches=12, sight=0.0),
    full=Stage(seed=13, steps=500, batch=32, rates=Rates(matrices=1.5e-3, others=7e-4), sight=0.5),
    polish=Stage(seed=14, steps=450, batch=64, rates=Rates(matrices=4e-4, others=2e-4)),
)

_PATCH_WEIGHT = 0.2


class PatchReadout(nn.Module):
    """A linear read-out of what each image token shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(_CLASSES))

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Sum the cross-entropies of order, size, colour and shape.

        Parameters
        ----------
        features : torch.Tensor
            (sample, patch, width).
        attributes : torch.Tensor
            (4, sample, patch) int64, see ``patch_attributes``.
        """
        parts = self.linear(features).split(_CLASSES, dim=-1)
        return torch.stack(
            [
                functional.cross_entropy(part.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
                for part, wanted in zip(parts, attributes, strict=True)
            ]
        ).sum()


class Learner(NamedTuple):
    """What is trained, and what prepares its input."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    readout: PatchReadout

    def sight(self) -> list[nn.Module]:
        """Return the parts that the first stage trains."""
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector, self.readout]

    def image_features(self, pool: Pool, rows: np.ndarray) -> Tensor:
        """Return what the projector makes of scenes: (sample, patch, width) float32."""
        pixels = normalise(pool.pixels[rows], self.processor)
        return torch.stack(list(self.model.get_image_features(pixel_values=pixels).pooler_output))


def train_vision(learner: Learner, pool: Pool, stage: Stage, report: Report) -> None:
    """Teach the vision tower and the projector what each patch shows."""
    rng = np.random.default_rng(stage.seed)
    optimiser = Optimiser([(learner.sight(), 1.0)], stage.rates, stage.steps)
    for step in range(1, stage.steps + 1):
        rows = rng.integers(len(pool.scenes), size=stage.batch)
        loss = learner.readout(learner.image_features(pool, rows), _attributes(pool, rows))
        optimiser.update(loss)
        report(step, loss.item())


def train_captions(learner: Learner, pool: Pool, stage: Stage, report: Report) -> None:
    """Teach the language model to answer with captions; what sees learns along at the rate that the stage says."""
    rng = np.random.default_rng(stage.seed)
    speech = [learner.model.model.language_model, learner.model.lm_head]
    optimiser = Optimiser([(speech, 1.0), (learner.sight(), stage.sight)], stage.rates, stage.steps)
    for step in range(1, stage.steps + 1):
        rows = rng.integers(len(pool.scenes), size=stage.batch)
        with torch.set_grad_enabled(stage.sight > 0):
            features = learner.image_features(pool, rows)
        talk = converse(rng, [pool.scenes[row] for row in rows], learner.processor.tokenizer, features.shape[1])
        patches = np.tile(np.arange(features.shape[1]), (stage.batch, 1))
        if stage.patches is not None:
            patches = choose_patches(rng, pool.owners[rows], stage.patches)
        loss = _answer_loss(learner.model, talk, features, torch.from_numpy(patches))
        optimiser.update(loss + stage.sight * _PATCH_WEIGHT * learner.readout(features, _attributes(pool, rows)))
        report(step, loss.item())


def _answer_loss(
    model: LlavaForConditionalGeneration, talk: Conversations, features: Tensor, patches: Tensor
) -> Tensor:
    positions = _kept_positions(talk.ids, patches, features.shape[1], model.config.image_token_id)
    ids, labels = talk.ids.gather(1, positions), talk.labels.gather(1, positions)
    seen = features.gather(1, patches.unsqueeze(-1).expand(-1, -1, features.shape[2]))
    places = (ids == model.config.image_token_id).unsqueeze(-1)
    embedded = model.get_input_embeddings()(ids).masked_scatter(places, seen)
    # Padding is on the right of a causal model, so a mask of ones will do; without any, the gaps between
    # positions would be taken for borders between packed sequences.
    states = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
    ).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    asked = wanted != IGNORE
    return functional.cross_entropy(model.lm_head(states[asked]), wanted[asked])


def _kept_positions(ids: Tensor, patches: Tensor, image_tokens: int, image_token_id: int) -> Tensor:
    # All samples have the image at the same place: the template's beginning is fixed.
    start = int((ids[0] == image_token_id).int().argmax())
    before = torch.arange(start).expand(len(ids), -1)
    after = torch.arange(start + image_tokens, ids.shape[1]).expand(len(ids), -1)
    return torch.cat([before, start + patches, after], dim=1)


def _attributes(pool: Pool, rows: np.ndarray) -> Tensor:
    return patch_attributes([pool.scenes[row] for row in rows], pool.owners[rows])
