"""Training: dense labels against brute force, what the loss covers, and bit-equal repetition."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from data.train.captions import caption
from data.train.examples import IGNORE, Pool, build_pool, choose_patches, converse, normalise, patch_attributes
from data.train.model import DEMO, build_model, build_processor
from data.train.optimiser import Rates
from data.train.scenes import COLOURS, SHAPES, SIZES, draw, draw_labels, scenes
from data.train.tokenizer import build_tokenizer
from data.train.train import Learner, PatchReadout, Stage, train_captions, train_vision

SMALL = DEMO._replace(vision_width=16, vision_layers=2, vision_heads=2, width=16, blocks=2, heads=2, intermediate=16)
TOKENIZER = build_tokenizer()
PROCESSOR = build_processor(SMALL, TOKENIZER)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return build_pool(9, 12, SMALL.image, SMALL.patch)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    return Learner(build_model(SMALL, TOKENIZER), PROCESSOR, PatchReadout(SMALL.width))


def test_training_pixels_are_the_processors(pool: Pool) -> None:
    images = [draw(scene) for scene in pool.scenes]
    processed = PROCESSOR.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(normalise(pool.pixels, PROCESSOR), processed, atol=1e-5, rtol=0)


def test_patch_attributes_are_those_of_the_object_that_covers_most(pool: Pool) -> None:
    found = patch_attributes(pool.scenes, pool.owners).numpy()
    for row, scene in enumerate(pool.scenes):
        labels = draw_labels(scene)
        for patch in range(64):
            top, left = 16 * (patch // 8), 16 * (patch % 8)
            tile = labels[top : top + 16, left : left + 16]
            shares = [np.mean(tile == order) for order in range(1, len(scene.objects) + 1)]
            if max(shares) == 0:
                expected = [0, IGNORE, IGNORE, IGNORE]
            elif max(shares) < 0.15:
                expected = [IGNORE] * 4
            else:
                order = int(np.argmax(shares)) + 1
                item = scene.objects[order - 1]
                words = list(SIZES), list(COLOURS), list(SHAPES)
                codes = [known.index(word) for known, word in zip(words, item.kind, strict=True)]
                expected = [order, *codes]
            assert found[:, row, patch].tolist() == expected


def test_every_object_owns_a_patch() -> None:
    pool = build_pool(10, 100, SMALL.image, SMALL.patch)
    for scene, owners in zip(pool.scenes, pool.owners, strict=True):
        assert set(range(1, len(scene.objects) + 1)) <= set(owners.tolist())


def test_chosen_patches_are_distinct_sorted_and_mostly_objects(pool: Pool) -> None:
    chosen = choose_patches(np.random.default_rng(0), pool.owners, 12)
    assert chosen.shape == (len(pool.scenes), 12)
    assert (np.diff(chosen, axis=1) > 0).all()
    on_objects = np.take_along_axis(pool.owners > 0, chosen, axis=1).mean()
    assert on_objects > (pool.owners > 0).mean()


def test_only_the_answer_is_learned() -> None:
    chosen = list(islice(scenes(3), 16))
    rng = np.random.default_rng(1)
    for _ in range(8):
        talk = converse(rng, chosen, TOKENIZER, 64)
        assert ((talk.ids == TOKENIZER.convert_tokens_to_ids("<image>")).sum(1) == 64).all()
        assert ((talk.ids == TOKENIZER.bos_token_id).sum(1) == 1).all()
        for scene, ids, labels in zip(chosen, talk.ids, talk.labels, strict=True):
            answer = labels[labels != IGNORE]
            text = TOKENIZER.decode(answer)
            assert text.strip() in {f"{caption(scene, style)}</s>" for style in range(5)}
            assert torch.equal(ids[labels != IGNORE], answer)


@pytest.mark.parametrize("patches", [None, 12])
def test_two_trainings_give_the_same_bits_and_another_seed_does_not(pool: Pool, patches: int | None) -> None:
    rates = Rates(matrices=1e-3, others=1e-3)

    def train(seed: int) -> dict[str, torch.Tensor]:
        made = learner()
        train_vision(made, pool, Stage(seed, 2, 4, rates), lambda step, loss: None)
        train_captions(made, pool, Stage(seed + 1, 3, 4, rates, patches), lambda step, loss: None)
        return made.model.state_dict()

    first, again, other = train(5), train(5), train(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_stage_without_sight_leaves_the_tower_alone(pool: Pool) -> None:
    made = learner()
    before = {name: weight.clone() for name, weight in made.model.state_dict().items()}
    stage = Stage(1, 2, 4, Rates(1e-3, 1e-3), patches=12, sight=0.0)
    train_captions(made, pool, stage, lambda step, loss: None)
    changed = {name for name, weight in made.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert not any("vision_tower" in name or "projector" in name for name in changed)


@pytest.mark.parametrize("patches", [None, 12])
def test_the_loss_is_the_models_own_with_left_out_patches_masked(pool: Pool, patches: int | None) -> None:
    losses: list[float] = []
    stage = Stage(4, 1, 6, Rates(1e-3, 1e-3), patches)
    train_captions(learner(), pool, stage, lambda step, loss: losses.append(loss))
    rng = np.random.default_rng(4)
    rows = rng.integers(len(pool.scenes), size=6)
    talk = converse(rng, [pool.scenes[row] for row in rows], TOKENIZER, 64)
    mask = (talk.ids != TOKENIZER.pad_token_id).long()
    if patches is not None:
        kept = choose_patches(rng, pool.owners[rows], patches)
        for row in range(6):
            image = np.flatnonzero(talk.ids[row] == TOKENIZER.convert_tokens_to_ids("<image>"))
            mask[row, np.delete(image, kept[row])] = 0
    positions = torch.arange(talk.ids.shape[1]).expand(6, -1)
    with torch.no_grad():
        pixels = normalise(pool.pixels[rows], PROCESSOR)
        inputs = {"input_ids": talk.ids, "attention_mask": mask, "position_ids": positions, "labels": talk.labels}
        expected = learner().model(pixel_values=pixels, **inputs).loss.item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)


def test_both_stages_learn(pool: Pool) -> None:
    made = learner()
    losses: list[float] = []
    rates = Rates(matrices=1e-2, others=1e-2)
    train_vision(made, pool, Stage(2, 30, 12, rates), lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    losses.clear()
    train_captions(made, pool, Stage(2, 30, 12, rates), lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.6 * losses[0]
