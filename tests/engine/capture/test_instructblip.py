"""InstructBLIP: captured states against Hugging Face's own, both paddings, and what is checked at load time."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from engine.capture.batch import BatchItem, collate, whole_runs
from engine.capture.checks import check_image_rows, check_prompt_dependence
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import LoadedModel, load_model
from engine.models.prepare import PreparedImage, Preparer
from engine.prompts import Prompt
from engine.vocabulary import ROLE_CODES, ROLES
from tests.tiny_instructblip import QUERIES, TinyShape, save_checkpoint

BLOCKS = 3
SHAPES = {
    "grouped": TinyShape(blocks=BLOCKS),
    "every head its own, other BOS": TinyShape(blocks=BLOCKS, key_value_heads=4, bos="<s>"),
}
LAYERS = tuple(range(BLOCKS + 1))
PROBE = Probe(LAYERS, residual=True, pooled=False, block_count=BLOCKS)
TEXTS = ("What?", "", "Sum up what is shown in the 犬 image briefly.", "Briefly describe the content of the image:")
PROMPTS = tuple(Prompt(f"p{number}", "custom" if text else "empty", text) for number, text in enumerate(TEXTS))


class Opened(NamedTuple):
    checkpoint: Checkpoint
    loaded: LoadedModel


Open = Callable[[str, str], Opened]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("instructblip")
    return {name: save_checkpoint(folder / str(len(name)), shape) for name, shape in SHAPES.items()}


@pytest.fixture
def opened(saved: dict[str, Path]) -> Open:
    def run(dtype: str = "float32", shape: str = "grouped") -> Opened:
        checkpoint = open_checkpoint(str(saved[shape]))
        return Opened(checkpoint, load_model(checkpoint, dtype=dtype, device="cpu"))

    return run


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8))


def prepare(checkpoint: Checkpoint, seed: int = 0, prompts: tuple[Prompt, ...] = PROMPTS) -> PreparedImage:
    return Preparer(checkpoint, prompts, share_prefix=False).prepare(picture(seed))


def items(prepared: PreparedImage, image: int = 0) -> list[BatchItem]:
    return [
        BatchItem(f"{image}/{number}", image, layout, prepared.pixel_values, side, np.ones(len(layout), bool), prefix=0)
        for number, (layout, side) in enumerate(zip(prepared.layouts, prepared.side_texts, strict=True))
    ]


def hidden_states(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Per layer (sample, position, dim) of Hugging Face's own pass; the last one is final-normed."""
    with torch.inference_mode():
        output = loaded.model(**inputs, output_hidden_states=True, use_cache=False)
    return list(output.language_model_outputs.hidden_states)


def processed(checkpoint: Checkpoint, text: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The processor's own inputs of one sample."""
    return dict(checkpoint.processor(images=picture(seed), text=text, return_tensors="pt"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_states_are_hugging_faces_and_the_last_layer_is_before_the_norm(opened: Open, dtype: str, shape: str) -> None:
    checkpoint, loaded = opened(dtype, shape)
    for text, item in zip(TEXTS, items(prepare(checkpoint)), strict=True):
        captured = capture_batch(loaded, [item], PROBE, pad_id=checkpoint.pad_id)
        assert captured.problems == (None,)
        expected = hidden_states(loaded, processed(checkpoint, text))
        for layer in range(BLOCKS):
            assert captured.states[layer].dtype == getattr(torch, dtype)
            torch.testing.assert_close(captured.states[layer], expected[layer][0], rtol=0, atol=0)
        with torch.inference_mode():
            normed = loaded.language.final_norm(captured.states[BLOCKS])
        torch.testing.assert_close(normed, expected[BLOCKS][0], rtol=0, atol=0)
        assert not torch.allclose(captured.states[BLOCKS].float(), expected[BLOCKS][0].float(), rtol=0.05)


def test_the_tiny_model_looks_at_image_and_prompt(opened: Open) -> None:
    """Without this, every other comparison here could pass on a model that sees neither."""
    checkpoint, loaded = opened("float32", "grouped")
    one, other = (capture_batch(loaded, items(prepare(checkpoint, seed)), PROBE, pad_id=0).states[0] for seed in (0, 1))
    assert torch.cosine_similarity(one[:QUERIES], other[:QUERIES], dim=-1).mean() < 0.999
    lengths = [len(layout) for layout in prepare(checkpoint).layouts]
    second = one[lengths[0] : lengths[0] + QUERIES]
    assert torch.cosine_similarity(one[:QUERIES], second, dim=-1).mean() < 0.999


@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 1 - 1e-6), ("bfloat16", 1 - 5e-2), ("float16", 1 - 1e-3)])
def test_padded_batch_equals_single_samples(opened: Open, dtype: str, cosine: float) -> None:
    checkpoint, loaded = opened(dtype, "grouped")
    batch = [*items(prepare(checkpoint)), *items(prepare(checkpoint, seed=1), image=1)]
    assert len({len(item.layout) for item in batch}) > 2
    assert len({len(item.side_text["qformer_input_ids"]) for item in batch}) > 2
    batched = capture_batch(loaded, batch, PROBE, pad_id=checkpoint.pad_id)
    single = [capture_batch(loaded, [item], PROBE, pad_id=checkpoint.pad_id).states for item in batch]
    for layer in LAYERS:
        expected = torch.cat([states[layer] for states in single])
        assert batched.states[layer].shape == expected.shape, "padding must not reach the store"
        similarity = torch.cosine_similarity(batched.states[layer].double(), expected.double(), dim=-1)
        assert similarity.min() >= cosine
        if dtype == "float32":
            torch.testing.assert_close(batched.states[layer], expected, rtol=1e-3, atol=1e-3)


def test_padding_lies_left_of_the_whole_sequence_and_right_of_the_side_text(opened: Open) -> None:
    checkpoint, _ = opened("float32", "grouped")
    batch = items(prepare(checkpoint))
    inputs = collate(whole_runs(batch), pad_id=77)
    side_length = max(len(item.side_text["qformer_input_ids"]) for item in batch)
    assert inputs["qformer_input_ids"].shape == inputs["qformer_attention_mask"].shape == (len(batch), side_length)
    for row, (text, item) in enumerate(zip(TEXTS, batch, strict=True)):
        own = processed(checkpoint, text)
        missing = inputs["input_ids"].shape[1] - len(item.layout)
        assert inputs["input_ids"][row].tolist() == [77] * missing + own["input_ids"][0].tolist()
        assert inputs["attention_mask"][row].tolist() == [0] * missing + [1] * len(item.layout)
        assert inputs["position_ids"][row].tolist() == [0] * missing + list(range(len(item.layout)))
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            ids = own[name][0].tolist()
            assert inputs[name][row].tolist() == ids + [0] * (side_length - len(ids))


def real_states(loaded: LoadedModel, inputs: dict[str, torch.Tensor], row: int) -> list[torch.Tensor]:
    kept = inputs["attention_mask"][row].bool()
    return [states[row][kept] for states in hidden_states(loaded, inputs)[:BLOCKS]]


def differ_by(states: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(states, others, strict=True))


def test_other_paddings_would_be_noticed(opened: Open) -> None:
    """The processor's own padding stands between image tokens and BOS; a side text padded on the left is shifted."""
    checkpoint, loaded = opened("float32", "grouped")
    texts = [TEXTS[0], TEXTS[3]]
    alone = [states[0] for states in hidden_states(loaded, processed(checkpoint, texts[0]))[:BLOCKS]]
    batch = [items(prepare(checkpoint))[number] for number in (0, 3)]
    assert differ_by(real_states(loaded, collate(whole_runs(batch), pad_id=checkpoint.pad_id), 0), alone) < 1e-3

    own = dict(checkpoint.processor(images=[picture()] * 2, text=texts, return_tensors="pt", padding=True))
    shown = own["attention_mask"][0].tolist()
    assert shown[:QUERIES] == [1] * QUERIES
    assert shown[QUERIES] == 0, "this padding stands behind the image tokens"
    assert differ_by(real_states(loaded, own, 0), alone) > 0.01

    inputs = collate(whole_runs(batch), pad_id=checkpoint.pad_id)
    shift = int((inputs["qformer_attention_mask"][0] == 0).sum())
    assert shift > 0
    for name in ("qformer_input_ids", "qformer_attention_mask"):
        inputs[name][0] = inputs[name][0].roll(shift)
    assert differ_by(real_states(loaded, inputs, 0), alone) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pooled_states_are_the_means_of_the_hidden_states(opened: Open, dtype: str) -> None:
    checkpoint, loaded = opened(dtype, "grouped")
    batch = items(prepare(checkpoint))
    captured = capture_batch(loaded, batch, PROBE._replace(pooled=True), pad_id=checkpoint.pad_id)
    assert captured.pooled is not None
    starts = np.cumsum([0, *(len(item.layout) for item in batch)])
    for layer in LAYERS:
        rows = captured.states[layer].double().numpy()
        for sample, item in enumerate(batch):
            for role, name in enumerate(ROLES):
                chosen = rows[starts[sample] : starts[sample + 1]][item.layout.role == role]
                assert captured.pooled.token_count[role, sample] == len(chosen), name
                unit_mean = captured.pooled.unit_mean[layer, role, sample]
                if not len(chosen):
                    assert np.isnan(unit_mean).all()
                    continue
                units = chosen / np.sqrt((chosen * chosen).sum(axis=1))[:, None]
                np.testing.assert_allclose(unit_mean, units.mean(axis=0), rtol=1e-4, atol=1e-5)
    counts = dict(zip(ROLES, captured.pooled.token_count[:, 1], strict=True))
    assert (counts["image"], counts["special"], counts["instruction"]) == (QUERIES, 1, 0), "of the empty prompt"


def test_rows_of_image_features_are_counted(opened: Open) -> None:
    checkpoint, loaded = opened("float16", "grouped")
    prepared = prepare(checkpoint)
    check_image_rows(loaded, prepared, checkpoint.family)
    prepared.layouts[0].role[0] = ROLE_CODES["special"]
    with pytest.raises(
        StrataError, match=r"made 5 image tokens, the model expects 6: check num_query_tokens in processor_config\.json"
    ):
        check_image_rows(loaded, prepared, checkpoint.family)


def deafen(loaded: LoadedModel) -> None:
    """Let the queries of the Q-Former no longer see its text: nothing comes out of its self-attention."""
    with torch.no_grad():
        for layer in loaded.model.qformer.encoder.layer:
            layer.attention.output.dense.weight.zero_()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_image_states_that_do_not_hear_the_prompt_are_found_out(opened: Open, dtype: str) -> None:
    checkpoint, loaded = opened(dtype, "grouped")
    prepared = prepare(checkpoint)
    check_prompt_dependence(loaded, prepared, PROBE, depends=True, pad_id=checkpoint.pad_id)
    with pytest.raises(StrataError, match=r"image states change with the prompt \(layer \d: mean cosine"):
        check_prompt_dependence(loaded, prepared, PROBE, depends=False, pad_id=checkpoint.pad_id)
    deafen(loaded)
    check_prompt_dependence(loaded, prepared, PROBE, depends=False, pad_id=checkpoint.pad_id)
    with pytest.raises(
        StrataError, match=r"the same under two different prompts \(lowest mean cosine .*not what its model_type says"
    ):
        check_prompt_dependence(loaded, prepared, PROBE, depends=True, pad_id=checkpoint.pad_id)


def test_prompts_that_are_one_text_to_the_encoder_prove_nothing(opened: Open) -> None:
    checkpoint, loaded = opened("float32", "grouped")
    alike = tuple(Prompt(str(number), "custom", text) for number, text in enumerate(("image", "IMAGE", "image")))
    prepared = prepare(checkpoint, prompts=alike)
    assert prepared.layouts[0].token_id.tolist() != prepared.layouts[1].token_id.tolist()
    check_prompt_dependence(loaded, prepared, PROBE, depends=True, pad_id=checkpoint.pad_id)
    deafen(loaded)
    different = prepare(checkpoint, prompts=(*alike[:2], Prompt("other", "custom", "what is it?"), alike[2]))
    with pytest.raises(StrataError, match="the same under two different prompts"):
        check_prompt_dependence(loaded, different, PROBE, depends=True, pad_id=checkpoint.pad_id)
