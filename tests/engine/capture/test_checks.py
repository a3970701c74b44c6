"""What is checked of a loaded model, on models that pass and models that are made to fail."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from engine.capture.checks import check_image_rows, check_prompt_dependence
from engine.capture.probe import Probe
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import LoadedModel, load_model
from engine.models.prepare import PreparedImage, Preparer
from engine.prompts import Prompt
from tests.tiny_llava import TinyShape, save_checkpoint

BLOCKS = 3
PROBE = Probe(tuple(range(BLOCKS + 1)), residual=True, pooled=True, block_count=BLOCKS)
PROMPTS = (Prompt("a", "custom", "What is it?"), Prompt("b", "custom", "Sum up what is shown in the image briefly."))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("m") / "m", TinyShape(blocks=BLOCKS))))


def prepared(checkpoint: Checkpoint) -> PreparedImage:
    image = Image.effect_noise((30, 24), 90).convert("RGB")
    return Preparer(checkpoint, PROMPTS, share_prefix=True).prepare(image)


def attend_to_what_follows(loaded: LoadedModel) -> None:
    """Switch the causal mask off, as in families that read prompt and image together."""
    for block in loaded.language.blocks:
        block.self_attn.is_causal = False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_image_states_of_a_causal_model_do_not_depend_on_the_prompt(checkpoint: Checkpoint, dtype: str) -> None:
    loaded = load_model(checkpoint, dtype=dtype, device="cpu")
    check_prompt_dependence(loaded, prepared(checkpoint), PROBE, depends=False, pad_id=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_whose_image_sees_the_prompt_is_found_out(checkpoint: Checkpoint, dtype: str) -> None:
    loaded = load_model(checkpoint, dtype=dtype, device="cpu")
    attend_to_what_follows(loaded)
    with pytest.raises(
        StrataError, match=r"image states change with the prompt \(layer [123]: .*is not what its model_type says"
    ):
        check_prompt_dependence(loaded, prepared(checkpoint), PROBE, depends=False, pad_id=0)


def test_layers_that_do_not_depend_on_the_prompt_pass_in_any_model(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    attend_to_what_follows(loaded)
    check_prompt_dependence(loaded, prepared(checkpoint), PROBE._replace(layers=(0,)), depends=False, pad_id=0)


def test_any_layer_may_show_that_a_prompt_reaches_the_image(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    image, first_layer = prepared(checkpoint), PROBE._replace(layers=(0,))
    with pytest.raises(StrataError, match="image states are the same under two different prompts"):
        check_prompt_dependence(loaded, image, first_layer, depends=True, pad_id=0)
    attend_to_what_follows(loaded)
    check_prompt_dependence(loaded, image, first_layer, depends=True, pad_id=0)


def test_one_text_under_two_names_proves_nothing(checkpoint: Checkpoint) -> None:
    twice = (PROMPTS[0], Prompt("again", "custom", PROMPTS[0].text))
    image = Preparer(checkpoint, twice, share_prefix=True).prepare(Image.new("RGB", (16, 16), (200, 10, 60)))
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    check_prompt_dependence(loaded, image, PROBE, depends=True, pad_id=0)


def test_as_many_rows_as_image_tokens_pass(checkpoint: Checkpoint) -> None:
    check_image_rows(load_model(checkpoint, dtype="float32", device="cpu"), prepared(checkpoint), checkpoint.family)


def test_a_projector_with_other_rows_than_image_tokens_is_refused(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    # The class token stays in: 17 rows for the 16 tokens that the processor makes.
    loaded.model.config.vision_feature_select_strategy = "full"
    with pytest.raises(StrataError, match="made 16 image tokens, the model expects 17: check patch_size"):
        check_image_rows(loaded, prepared(checkpoint), checkpoint.family)


def test_missing_image_tokens_are_refused(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    image = prepared(checkpoint)
    layout = image.layouts[0]
    fewer = replace(layout, role=layout.role.copy())
    fewer.role[-2] = 2
    with pytest.raises(StrataError, match="made 17 image tokens, the model expects 16"):
        check_image_rows(loaded, replace(image, layouts=(fewer, *image.layouts[1:])), checkpoint.family)


def spoil(loaded: LoadedModel, token_id: int) -> None:
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token_id] = torch.nan


def test_a_prompt_with_states_that_are_not_finite_is_passed_over(checkpoint: Checkpoint) -> None:
    three = (*PROMPTS, Prompt("c", "custom", "\x7f"))
    image = Preparer(checkpoint, three, share_prefix=True).prepare(Image.new("RGB", (16, 16), (200, 10, 60)))
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    only_in_last = set(image.layouts[2].token_id) - set(image.layouts[0].token_id) - set(image.layouts[1].token_id)
    spoil(loaded, int(only_in_last.pop()))
    check_prompt_dependence(loaded, image, PROBE, depends=False, pad_id=0)
    attend_to_what_follows(loaded)
    with pytest.raises(StrataError, match="image states change with the prompt"):
        check_prompt_dependence(loaded, image, PROBE, depends=False, pad_id=0)


def test_without_two_usable_prompts_there_is_nothing_to_compare(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    image = prepared(checkpoint)
    spoil(loaded, int(image.layouts[0].token_id[-1]))
    check_prompt_dependence(loaded, image, PROBE, depends=False, pad_id=0)
