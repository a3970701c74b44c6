"""What is checked of a model's attention at load time, on models that pass and models that are made to fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine.capture.attention_checks import check_attention
from engine.capture.checks import FURTHER_PROMPTS
from engine.capture.probe import Probe
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import LoadedModel, load_model
from engine.models.prepare import PreparedImage, Preparer
from engine.prompts import Prompt
from tests import tiny_instructblip, tiny_llava

BLOCKS = 3
PROBE = Probe(
    (0,),
    residual=False,
    pooled=False,
    block_count=BLOCKS,
    attention=True,
    queries=("last_text", "last_image", "target:0"),
    blocks=(1, 2, 3),
)
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: tiny_llava.save_checkpoint(folder, tiny_llava.TinyShape(blocks=BLOCKS)),
    "instructblip": lambda folder: tiny_instructblip.save_checkpoint(
        folder, tiny_instructblip.TinyShape(blocks=BLOCKS)
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("m")
    return {name: open_checkpoint(str(save(folder / name))) for name, save in FAMILIES.items()}


def prepared(checkpoint: Checkpoint) -> PreparedImage:
    image = Image.effect_noise((30, 24), 90).convert("RGB")
    prompts = (Prompt("a", "custom", "What is it?"), *FURTHER_PROMPTS)
    return Preparer(checkpoint, prompts, share_prefix=False).prepare(image)


def load(checkpoint: Checkpoint, dtype: str = "float32") -> LoadedModel:
    return load_model(checkpoint, dtype=dtype, device="cpu")


def each_attention(loaded: LoadedModel) -> list[Any]:
    return [block.self_attn for block in loaded.language.blocks]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_attend_by_softmax_pass(
    checkpoints: dict[str, Checkpoint], family: str, dtype: str, kernel: str
) -> None:
    loaded = load(checkpoints[family], dtype)
    loaded.language.config._attn_implementation = kernel
    check_attention(loaded, prepared(checkpoints[family]), PROBE, pad_id=0)
    check_attention(loaded, prepared(checkpoints[family]), PROBE._replace(attention=False, queries=()), pad_id=0)
    assert loaded.attention_kernel == kernel
    assert not any(attention.o_proj._forward_hooks for attention in each_attention(loaded))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attention_that_is_changed_before_its_projection_is_refused_with_block_and_numbers(
    checkpoints: dict[str, Checkpoint], dtype: str
) -> None:
    """A gate between attention and projection, as some models have: what is multiplied is not what rows give."""
    loaded = load(checkpoints["llava"], dtype)
    gate = loaded.language.blocks[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (args[0] * 0.7,))
    with pytest.raises(
        StrataError,
        match=r"does not get what the model's attention puts out \(block 2: relative difference (2.9|3.0)[0-9]e-01",
    ):
        check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)
    check_attention(loaded, prepared(checkpoints["llava"]), PROBE._replace(blocks=(1, 3)), pad_id=0)
    gate.remove()
    check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)


def test_a_bias_of_the_projection_is_no_difference_and_a_silent_attention_neither(
    checkpoints: dict[str, Checkpoint],
) -> None:
    loaded = load(checkpoints["llava"])
    for attention in each_attention(loaded):
        attention.o_proj.bias = torch.nn.Parameter(torch.randn(attention.o_proj.out_features))
    check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)
    with torch.no_grad():
        for attention in each_attention(loaded):
            attention.o_proj.weight.zero_()
    check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_projection_that_does_more_than_a_product_is_refused(checkpoints: dict[str, Checkpoint], dtype: str) -> None:
    loaded = load(checkpoints["llava"], dtype)
    loaded.language.blocks[2].self_attn.o_proj.register_forward_hook(lambda _m, _a, output: output * 1.05)
    with pytest.raises(
        StrataError, match=r"does not multiply with its weight \(block 3: relative difference [45].*at most"
    ):
        check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)


def test_one_prompt_is_padded_even_where_those_of_the_run_are_equally_long(checkpoints: dict[str, Checkpoint]) -> None:
    loaded = load(checkpoints["llava"])
    equally_long = (Prompt("a", "custom", "What is it?"), Prompt("b", "custom", "What is red?"))
    image = Image.effect_noise((30, 24), 90).convert("RGB")
    both = Preparer(checkpoints["llava"], (*equally_long, *FURTHER_PROMPTS), share_prefix=False).prepare(image)
    padding: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: padding.append(int((keywords["attention_mask"] == 0).sum())),
        with_kwargs=True,
    )
    check_attention(loaded, both, PROBE, pad_id=0)
    assert padding
    assert min(padding) > 0


@pytest.mark.parametrize("prompts", [(), (Prompt("a", "custom", "Colours?"),)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompts_of_the_checks_differ_in_length(
    checkpoints: dict[str, Checkpoint], family: str, prompts: tuple[Prompt, ...]
) -> None:
    image = Image.effect_noise((30, 24), 90).convert("RGB")
    ready = Preparer(checkpoints[family], (*prompts, *FURTHER_PROMPTS), share_prefix=False).prepare(image)
    assert len({len(layout) for layout in ready.layouts}) == 2


def test_logits_that_change_while_listening_are_refused(checkpoints: dict[str, Checkpoint]) -> None:
    """A block that looks at the name of its attention implementation, and computes something else for a new one."""
    loaded = load(checkpoints["llava"])
    config = loaded.language.config

    def hook(_module: Any, _arguments: Any, output: Any) -> Any:
        return output if config._attn_implementation == "sdpa" else output * 1.5

    loaded.language.blocks[2].mlp.register_forward_hook(hook)
    with pytest.raises(StrataError, match=r"logits change while strata listens .*relative difference .*under sdpa"):
        check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)


def test_a_block_that_does_not_attend_through_the_interface_is_refused(checkpoints: dict[str, Checkpoint]) -> None:
    loaded = load(checkpoints["llava"])
    attention = loaded.language.blocks[1].self_attn

    def own_forward(hidden_states: torch.Tensor, **_others: Any) -> tuple[torch.Tensor, None]:
        return attention.o_proj(hidden_states), None

    attention.forward = own_forward
    with pytest.raises(StrataError, match="block 2 of LlavaForConditionalGeneration does not attend through"):
        check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)


def test_logits_that_are_not_finite_show_nothing(checkpoints: dict[str, Checkpoint]) -> None:
    loaded = load(checkpoints["llava"], "float16")
    with torch.no_grad():
        loaded.language.final_norm.weight.fill_(torch.inf)
    with pytest.raises(StrataError, match=r"hold NaN or Inf in float16.*try --dtype bfloat16 or float32"):
        check_attention(loaded, prepared(checkpoints["llava"]), PROBE, pad_id=0)
