"""What the model is given: the processor's own tokens and pixels, whatever the image, for every prompt."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint
from engine.models.prepare import Preparer
from engine.prompts import Prompt
from engine.vocabulary import ROLE_CODES, ROLES
from tests.tiny_llava import build_processor

PROMPTS = (
    Prompt("question-1", "question", "What is the content of the image?"),
    Prompt("normal-1", "normal", "Briefly describe the content of the image."),
    Prompt("empty", "empty", ""),
    Prompt("own", "custom", "What is the 犬 doing?"),
)
IMAGE_TOKENS = 16


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def with_processor(checkpoint: Checkpoint, **settings: object) -> Checkpoint:
    processor = build_processor()
    for name, value in settings.items():
        setattr(processor, name, value)
    return replace(checkpoint, processor=processor)


@pytest.mark.parametrize("size", [(20, 20), (31, 17), (9, 40), (3, 5), (16, 1)])
def test_tokens_and_pixels_are_the_processors_for_one_sample(checkpoint: Checkpoint, size: tuple[int, int]) -> None:
    image = noise(*size)
    prepared = Preparer(checkpoint, PROMPTS, share_prefix=True).prepare(image)
    assert len(prepared.layouts) == len(PROMPTS)
    for prompt, layout in zip(PROMPTS, prepared.layouts, strict=True):
        instruction = f"{prompt.text} " if prompt.text else ""
        whole = checkpoint.processor(
            images=image, text=f"USER: <image>\n{instruction}ASSISTANT:", return_tensors="pt", padding=False
        )
        assert layout.token_id.tolist() == whole["input_ids"][0].tolist()
        assert prepared.pixel_values.dtype == torch.float32
        torch.testing.assert_close(prepared.pixel_values, whole["pixel_values"], rtol=0, atol=0)
        assert (layout.role == ROLE_CODES["image"]).sum() == IMAGE_TOKENS
        assert ((layout.role == ROLE_CODES["instruction"]).sum() > 0) == bool(prompt.text)


def test_the_prefix_reaches_to_where_the_prompts_part(checkpoint: Checkpoint) -> None:
    prepared = Preparer(checkpoint, PROMPTS, share_prefix=True).prepare(noise(20, 20))
    shared = [ROLES[code] for code in prepared.layouts[0].role[: prepared.prefix]]
    assert shared[0] == "special"
    assert shared.count("image") == IMAGE_TOKENS
    assert shared[-1] == "template", "the line break after the image is common to all"
    for layout in prepared.layouts:
        assert (layout.token_id[: prepared.prefix] == prepared.layouts[0].token_id[: prepared.prefix]).all()
    assert Preparer(checkpoint, PROMPTS, share_prefix=False).prepare(noise(20, 20)).prefix == 0
    assert Preparer(checkpoint, PROMPTS[:1], share_prefix=True).prepare(noise(20, 20)).prefix == 0


@pytest.mark.parametrize("roles", [None, ("image",), ("image", "instruction"), ("special", "template"), ("target",)])
@pytest.mark.parametrize("share", [True, False])
def test_stored_tokens_are_counted_one_by_one(
    checkpoint: Checkpoint, roles: tuple[str, ...] | None, share: bool
) -> None:
    prepared = Preparer(checkpoint, PROMPTS, share_prefix=share).prepare(noise(20, 20))
    stored = 0
    for number, layout in enumerate(prepared.layouts):
        for position, code in enumerate(layout.role):
            if number > 0 and position < prepared.prefix:
                continue
            stored += roles is None or ROLES[code] in roles
    assert prepared.stored_tokens(roles) == stored


def test_the_grid_covers_the_centre_square_of_a_wide_image(checkpoint: Checkpoint) -> None:
    prepared = Preparer(checkpoint, PROMPTS[:1], share_prefix=True).prepare(noise(64, 32))
    (grid,) = prepared.grids
    assert (grid.rows, grid.cols, grid.thumbnail) == (4, 4, False)
    assert (grid.x0, grid.y0, grid.x1, grid.y1) == (16.0, 0.0, 48.0, 32.0)
    tall = Preparer(checkpoint, PROMPTS[:1], share_prefix=True).prepare(noise(32, 64)).grids[0]
    assert (tall.x0, tall.y0, tall.x1, tall.y1) == (0.0, 16.0, 32.0, 48.0)


def test_a_patch_shows_what_lies_in_its_rectangle_of_the_box(checkpoint: Checkpoint) -> None:
    wide, row, col = np.zeros((32, 64, 3), dtype=np.uint8), 1, 2
    preparer = Preparer(checkpoint, PROMPTS[:1], share_prefix=True)
    grid = preparer.prepare(Image.fromarray(wide)).grids[0]
    height, width = (grid.y1 - grid.y0) / grid.rows, (grid.x1 - grid.x0) / grid.cols
    top, left = int(grid.y0 + row * height), int(grid.x0 + col * width)
    wide[top : top + int(height), left : left + int(width)] = 255
    pixels = preparer.prepare(Image.fromarray(wide)).pixel_values[0].mean(dim=0)
    patches = pixels.reshape(4, 4, 4, 4).mean(dim=(1, 3))
    assert divmod(int(patches.argmax()), 4) == (row, col)


def test_an_image_placeholder_in_a_prompt_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"prompt 'mine' contains the image placeholder '<image>'"):
        Preparer(checkpoint, [Prompt("mine", "custom", "Look at <image> again.")], share_prefix=True)


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"patch_size": 8}, 4),
        ({"num_additional_image_tokens": 0}, 15),
        ({"vision_feature_select_strategy": "full"}, 17),
    ],
)
def test_another_count_of_image_tokens_is_refused_with_both_numbers(
    checkpoint: Checkpoint, settings: dict[str, object], made: int
) -> None:
    preparer = Preparer(with_processor(checkpoint, **settings), PROMPTS, share_prefix=True)
    with pytest.raises(StrataError, match=rf"made {made} image tokens, the model expects {IMAGE_TOKENS}: check patch"):
        preparer.prepare(noise(20, 20))


@pytest.mark.parametrize(
    ("settings", "made"),
    [({"do_center_crop": False}, "20 × 16"), ({"crop_size": {"height": 32, "width": 32}}, "32 × 32")],
)
def test_pixels_that_the_vision_tower_has_no_positions_for_are_refused(
    checkpoint: Checkpoint, settings: dict[str, object], made: str
) -> None:
    image_processor = build_processor().image_processor
    for name, value in settings.items():
        setattr(image_processor, name, value)
    preparer = Preparer(with_processor(checkpoint, image_processor=image_processor), PROMPTS, share_prefix=True)
    with pytest.raises(StrataError, match=rf"made an image of {made} pixels, the vision tower takes 16 × 16: check"):
        preparer.prepare(noise(25, 20))


def test_a_kept_class_token_is_no_patch(checkpoint: Checkpoint) -> None:
    full = with_processor(checkpoint, vision_feature_select_strategy="full")
    config = type(full.config).from_dict({**full.config.to_dict(), "vision_feature_select_strategy": "full"})
    prepared = Preparer(replace(full, config=config), PROMPTS[:1], share_prefix=True).prepare(noise(20, 20))
    layout = prepared.layouts[0]
    image = layout.role == ROLE_CODES["image"]
    assert image.sum() == IMAGE_TOKENS + 1
    assert layout.patch_row[image].tolist() == [-1, *np.repeat(range(4), 4)]
    assert layout.patch_col[image].tolist() == [-1, *np.tile(range(4), 4)]


def test_a_second_bos_is_refused(checkpoint: Checkpoint) -> None:
    preparer = Preparer(checkpoint, [Prompt("mine", "custom", "What <s> is it?")], share_prefix=True)
    with pytest.raises(StrataError, match=r"BOS .* stands 2 times"):
        preparer.prepare(noise(20, 20))


def test_threads_prepare_what_one_thread_prepares(checkpoint: Checkpoint) -> None:
    images = [noise(20 + seed, 40 - seed, seed) for seed in range(12)]
    one = Preparer(checkpoint, PROMPTS, share_prefix=True)
    expected = [one.prepare(image) for image in images]
    preparer = Preparer(checkpoint, PROMPTS, share_prefix=True)
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(preparer.prepare, images))
    for got, wanted in zip(prepared, expected, strict=True):
        torch.testing.assert_close(got.pixel_values, wanted.pixel_values, rtol=0, atol=0)
        assert (got.prefix, got.grids) == (wanted.prefix, wanted.grids)
        for layout, other in zip(got.layouts, wanted.layouts, strict=True):
            assert layout.token_id.tolist() == other.token_id.tolist()


def test_a_nominal_image_takes_as_many_tokens_as_any(checkpoint: Checkpoint) -> None:
    preparer = Preparer(checkpoint, PROMPTS, share_prefix=True)
    assert preparer.prepare_nominal().stored_tokens(None) == preparer.prepare(noise(21, 55)).stored_tokens(None)
