"""Other language models than Llama: softcaps, windows, flash attention's masks, and what cannot be wrapped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    Gemma2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.capture.attention_calls import attention_calls
from engine.capture.attention_rows import AttentionCall
from engine.capture.batch import BatchItem
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.errors import StrataError
from engine.models.load import LoadedModel, find_language_model
from tests.engine.capture.attention_oracle import eager, own_rows
from tests.engine.capture.test_forward import IMAGE_ID, loaded_model, make_item

BLOCKS = 2
QUERIES = ("last_text", "last_image", "instruction:0")
PROBE = Probe(
    tuple(range(BLOCKS + 1)),
    residual=True,
    pooled=False,
    block_count=BLOCKS,
    attention=True,
    queries=QUERIES,
    blocks=(1, 2),
    mass=True,
)
SIZES = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
TEXTS = {
    "softcap and every second block sliding": Gemma2Config(
        **SIZES, attn_logit_softcapping=2.0, query_pre_attn_scalar=8, sliding_window=7
    ),
    "sliding": MistralConfig(**SIZES, sliding_window=5),
    "heads wider than the stream": MistralConfig(**{**SIZES, "head_dim": 16}, sliding_window=None),
}


def build(text: str, dtype: str = "float32", **choices: object) -> LoadedModel:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=16,
    )
    config = LlavaConfig(vision_config=vision, text_config=TEXTS[text], image_token_index=IMAGE_ID, image_seq_length=16)
    model = LlavaForConditionalGeneration._from_config(config, **choices).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.4, 1.8)
    return LoadedModel(model, find_language_model(model), torch.device("cpu"), dtype)


def assert_rows_are_eagers(loaded: LoadedModel, items: list[BatchItem]) -> None:
    captured = capture_batch(loaded, items, PROBE, pad_id=0)
    assert captured.problems == (None,) * len(items)
    assert captured.block_rows is not None
    key, token = captured.block_rows
    for sample, item in enumerate(items):
        oracle = eager(loaded, item)
        positions = query_positions(item.layout.role, QUERIES)
        for index in range(BLOCKS):
            attention = oracle.attention[index].numpy()
            rows = own_rows(key["attention"][index], items, sample)
            np.testing.assert_allclose(rows, attention[:, positions].transpose(2, 0, 1), rtol=1e-4, atol=1e-5)
            summed = np.einsum("hqk,hkd->qkd", attention[:, positions], oracle.transformed[index].numpy())
            norms = own_rows(key["attention_norm"][index], items, sample)
            np.testing.assert_allclose(norms, np.linalg.norm(summed, axis=-1).T, rtol=1e-3, atol=1e-5)
            image = item.layout.role == 2
            mass = own_rows(token["attention_mass"][index], items, sample)
            np.testing.assert_allclose(mass[:, :, 2], attention[:, :, image].sum(axis=2).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_rows_of_other_language_models_are_eagers(text: str) -> None:
    loaded = build(text)
    assert_rows_are_eagers(loaded, [make_item(seed, length) for seed, length in enumerate((3, 11))])
    assert_rows_are_eagers(loaded, [make_item(0, 6)])


def test_a_softcap_that_sdpa_does_not_know_is_attended_in_blocks() -> None:
    """Gemma 2 asked to run under SDPA fails in transformers; rows and states are eager's all the same."""
    loaded = build("softcap and every second block sliding")
    assert loaded.attention_kernel == "eager", "transformers' own choice for a softcap"
    items = [make_item(seed, length) for seed, length in enumerate((3, 11))]
    under_eager = capture_batch(loaded, items, PROBE, pad_id=0)
    plain = capture_batch(loaded, items, PROBE._replace(attention=False, mass=False), pad_id=0)
    for one, other in zip(under_eager.states, plain.states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    loaded.language.config._attn_implementation = "sdpa"
    under_sdpa = capture_batch(loaded, items, PROBE, pad_id=0)
    for one, other in zip(under_sdpa.states, under_eager.states, strict=True):
        assert torch.equal(one, other)


@contextmanager
def registered(name: str, attend: Any) -> Iterator[None]:
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, flash_attention_mask)
    try:
        yield
    finally:
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


@pytest.mark.parametrize("text", ["sliding", "heads wider than the stream"])
def test_masks_as_flash_attention_gets_them_give_the_same_rows(text: str) -> None:
    """A stand-in kernel that computes what flash attention computes from padding, causality and window."""
    loaded = build(text)
    names: list[str] = []

    def flash(
        module: Any, query: Any, key: Any, value: Any, mask: Any, sliding_window: Any = None, **others: Any
    ) -> Any:
        names.append(module.config._attn_implementation)
        place = torch.arange(query.shape[2])
        seen = place[:, None] >= place
        if sliding_window is not None:
            seen = seen & (place[:, None] - place < sliding_window)
        seen = seen[None, None] if mask is None else seen & mask[:, None, None].bool()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, seen, **others)

    with registered("flash_attention_test", flash):
        loaded.language.config._attn_implementation = "flash_attention_test"
        assert_rows_are_eagers(loaded, [make_item(seed, length) for seed, length in enumerate((3, 11))])
        assert_rows_are_eagers(loaded, [make_item(0, 6)])
    assert set(names) == {"flash_attention_test"}, "flash attention finds its library by this name"


@pytest.mark.parametrize("kernel", ["my_kernel", "flex_attention", "paged|eager", "flash_attention_of_mine", None])
def test_an_implementation_that_cannot_be_wrapped_is_refused_by_name(kernel: str | None) -> None:
    loaded = loaded_model()
    loaded.language.config._attn_implementation = kernel
    probe = PROBE._replace(layers=(0,), block_count=4)
    with pytest.raises(
        StrataError, match=r"runs the attention implementation .*whose rows cannot be recomputed"
    ) as error:
        capture_batch(loaded, [make_item(0, 3)], probe, pad_id=0)
    assert repr(kernel) in str(error.value)


def test_only_chosen_blocks_of_the_language_model_are_heard_and_its_kernel_comes_back_after_an_error() -> None:
    loaded = loaded_model()
    heard: list[AttentionCall] = []

    def fail(call: AttentionCall) -> None:
        heard.append(call)
        if len(heard) == 2:
            raise RuntimeError("stop")

    item = make_item(0, 3)
    inputs = {
        "input_ids": torch.from_numpy(item.layout.token_id.astype(np.int64))[None],
        "pixel_values": item.pixel_values,
    }
    with pytest.raises(RuntimeError, match="stop"), attention_calls(loaded.language, (2, 4), fail):
        loaded.model(**inputs)
    assert [call.block for call in heard] == [2, 4]
    assert loaded.attention_kernel == "sdpa"
    assert loaded.model.config.vision_config._attn_implementation == "sdpa"
    loaded.model(**inputs)
    assert len(heard) == 2


class Largest(TorchDispatchMode):
    """Largest number of floating-point values that any operation put out."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.values = max(self.values, tensor.numel())
        return output


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("text", TEXTS)
def test_nothing_of_tokens_squared_and_nothing_of_head_query_key_dim_is_made(text: str, kernel: str) -> None:
    """Not even under eager attention. Masks of bool that a model with windows makes for SDPA are its own."""
    loaded = build(text)
    loaded.language.config._attn_implementation = kernel
    item = make_item(0, 1500)
    length = len(item.layout)
    probe = PROBE._replace(queries=tuple(f"instruction:{index}" for index in range(8)))
    with Largest() as largest:
        captured = capture_batch(loaded, [item], probe, pad_id=0)
    assert captured.problems == (None,)
    heads, dim = loaded.language.heads, loaded.model.config.text_config.hidden_size
    assert largest.values < length * length
    assert largest.values < heads * len(probe.queries) * length * dim
