"""Rows that are wrong in one small way are refused at load time, in 16 bits as in float32."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from engine.capture import attention_calls, attention_checks
from engine.capture.attention_checks import check_attention
from engine.capture.attention_rows import AttentionCall, softmax_rows
from engine.capture.checks import FURTHER_PROMPTS
from engine.capture.probe import Probe
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import LoadedModel, load_model
from engine.models.prepare import PreparedImage, Preparer
from engine.prompts import Prompt
from tests import tiny_gemma_llava, tiny_llava

BLOCKS = 2
PROBE = Probe((), residual=False, pooled=False, block_count=BLOCKS, attention=True, queries=(), blocks=(1, 2))
DTYPES = ["float32", "bfloat16", "float16"]
KERNELS = ["sdpa", "eager", "softcap"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder, shape = tmp_path_factory.mktemp("m"), tiny_llava.TinyShape(blocks=BLOCKS)
    llava = open_checkpoint(str(tiny_llava.save_checkpoint(folder / "llava", shape)))
    gemma = open_checkpoint(str(tiny_gemma_llava.save_checkpoint(folder / "gemma", shape, softcap=50.0)))
    return {"sdpa": llava, "eager": llava, "softcap": gemma}


def prepared(checkpoint: Checkpoint) -> PreparedImage:
    image = Image.effect_noise((30, 24), 90).convert("RGB")
    prompts = (Prompt("a", "custom", "What is it?"), *FURTHER_PROMPTS)
    return Preparer(checkpoint, prompts, share_prefix=False).prepare(image)


def load(checkpoints: dict[str, Checkpoint], kernel: str, dtype: str) -> LoadedModel:
    loaded = load_model(checkpoints[kernel], dtype=dtype, device="cpu")
    if kernel == "eager":
        loaded.language.config._attn_implementation = "eager"
    return loaded


def in_tiled_order(call: AttentionCall) -> AttentionCall:
    """Let head h attend with key head h modulo their number, in place of h divided by the group's size."""
    times = call.query.shape[1] // call.key.shape[1]
    return call._replace(key=call.key.repeat(1, times, 1, 1))


WRONG: dict[str, Callable[[AttentionCall], AttentionCall]] = {
    "scaling off by two per cent": lambda call: call._replace(scaling=1.02 * call.scaling),
    "no softcap": lambda call: call._replace(softcap=None),
    "key heads repeated in another order": in_tiled_order,
    "no mask": lambda call: call._replace(mask=None),
}
CASES = [(kernel, wrong) for kernel in KERNELS for wrong in WRONG if kernel == "softcap" or wrong != "no softcap"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_right_rows_pass(checkpoints: dict[str, Checkpoint], kernel: str, dtype: str) -> None:
    check_attention(load(checkpoints, kernel, dtype), prepared(checkpoints[kernel]), PROBE, pad_id=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "wrong"), CASES)
def test_wrong_rows_are_refused_with_block_and_numbers(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, kernel: str, wrong: str, dtype: str
) -> None:
    def wrong_rows(call: AttentionCall, positions: torch.Tensor) -> torch.Tensor:
        return softmax_rows(WRONG[wrong](call), positions)

    monkeypatch.setattr(attention_checks, "softmax_rows", wrong_rows)
    with pytest.raises(
        StrataError,
        match=r"rows do not give the output of the model's attention, in float32 \(block [12]: relative difference "
        rf"\d.*e[-+]\d\d, at most 1e-04, model in {dtype} under",
    ):
        check_attention(load(checkpoints, kernel, dtype), prepared(checkpoints[kernel]), PROBE, pad_id=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_that_the_listener_misses_is_refused(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, kernel: str, dtype: str
) -> None:
    """As if no mask function were registered beside the attention function."""
    none = {name: lambda **_choices: None for name in ("sdpa", "eager")}
    monkeypatch.setattr(attention_calls, "ALL_MASK_ATTENTION_FUNCTIONS", none)
    with pytest.raises(StrataError, match=r"keys that a query sees change .*\(block 1: \d+ of \d+ are another"):
        check_attention(load(checkpoints, kernel, dtype), prepared(checkpoints[kernel]), PROBE, pad_id=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", WRONG)
def test_eager_attention_in_blocks_that_is_not_the_models_is_refused(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, wrong: str, dtype: str
) -> None:
    """Extraction would run it in place of the model's own; the norm behind it hides from logits how long it is."""
    blocked = attention_checks.blocked_attention
    monkeypatch.setattr(attention_checks, "blocked_attention", lambda call: blocked(WRONG[wrong](call)))
    with pytest.raises(StrataError, match=r"in blocks of queries does not give the output .* \(block [12]: relative"):
        check_attention(load(checkpoints, "softcap", dtype), prepared(checkpoints["softcap"]), PROBE, pad_id=0)


def test_rows_agree_in_16_bits_as_well_as_in_float32(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is a hundred times what was measured, so it can neither fail by chance nor hide a softcap."""
    for kernel in KERNELS:
        for dtype in DTYPES:
            with monkeypatch.context() as patched:
                patched.setattr(attention_checks, "_SAME_ROWS", 2e-6)
                check_attention(load(checkpoints, kernel, dtype), prepared(checkpoints[kernel]), PROBE, pad_id=0)
