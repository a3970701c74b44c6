"""Rows, masks and norms of one attention call against float64 arithmetic, key by key."""

import itertools
import math

import numpy as np
import pytest
import torch

from engine.capture.attention_rows import (
    AttentionCall,
    blocked_attention,
    output_projection,
    query_blocks,
    softmax_rows,
    summed_norms,
    value_norms,
    visible_keys,
)
from engine.errors import StrataError

SAMPLES, HEADS, KEY_HEADS, LENGTH, WIDTH, DIM = 2, 4, 2, 11, 6, 20
PADDING = 3  # of the first sample
POSITIONS = torch.tensor([[10, 4, 7], [10, 0, 5]])


class Attention(torch.nn.Module):
    def __init__(self, dtype: torch.dtype, dim: int = DIM) -> None:
        super().__init__()
        self.o_proj = torch.nn.Linear(HEADS * WIDTH, dim, bias=True, dtype=dtype).requires_grad_(False)


def make_call(dtype: torch.dtype = torch.float32, **choices: object) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(SAMPLES, heads, LENGTH, WIDTH, generator=generator).to(dtype)

    query, key, value = draw(HEADS), draw(KEY_HEADS), draw(KEY_HEADS)
    plain = AttentionCall(1, Attention(dtype), query, key, value, None, 0.4, None, causal=True, window=None)
    return plain._replace(**choices)


def padded(window: int | None = None) -> torch.Tensor:
    """(sample, 1, query, key) bool of a causal model with left padding, and a window of so many keys."""
    place = torch.arange(LENGTH)
    seen = place[:, None] >= place
    if window is not None:
        seen &= place[:, None] - place < window
    return torch.stack([seen & (place >= PADDING), seen])[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


PREFIX = padded() | (torch.arange(LENGTH) < 5)[None, None, None] & padded()[..., -1:, :]
"""Everything sees the first positions, as a model does that reads its prompt in both directions."""

SLOPES = torch.linspace(-1, 0.5, HEADS)[None, :, None, None] * (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH))

CALLS = {
    "causal without a mask": make_call(),
    "no mask and not causal": make_call(causal=False),
    "softcap": make_call(softcap=0.7),
    "padding": make_call(mask=padded()),
    "padding, sliding": make_call(mask=padded(window=4)),
    "prefix seen by all": make_call(mask=PREFIX),
    "one mask for all samples": make_call(mask=padded()[1:]),
    "added mask": make_call(mask=additive(padded(), torch.float32)),
    "added mask in bfloat16": make_call(torch.bfloat16, mask=additive(padded(), torch.bfloat16)),
    "added mask in float16, softcap": make_call(torch.float16, mask=additive(padded(), torch.float16), softcap=1.3),
    "added bias of every head": make_call(mask=SLOPES + additive(padded(), torch.float32)),
    "padding of two dimensions": make_call(mask=padded()[:, 0, -1]),
    "padding of two dimensions, sliding": make_call(mask=padded()[:, 0, -1], window=4),
    "sliding without a mask": make_call(window=3),
    "float16": make_call(torch.float16, mask=padded()),
}


def brute_force(call: AttentionCall, sample: int, head: int, place: int) -> np.ndarray:
    """One row of weights, (key,) float64, score by score."""
    query = call.query[sample, head, place].double().tolist()
    scores = []
    for key in range(LENGTH):
        row = call.key[sample, head // (HEADS // KEY_HEADS), key].double().tolist()
        score = sum(a * b for a, b in zip(query, row, strict=True)) * call.scaling
        score = score if call.softcap is None else call.softcap * math.tanh(score / call.softcap)
        seen = True
        if call.mask is not None and call.mask.dim() == 4:
            entry = call.mask[sample % len(call.mask), head % call.mask.shape[1], place, key]
            if entry.dtype == torch.bool:
                seen = bool(entry)
            else:
                score += float(entry)
                seen = float(entry) > torch.finfo(call.mask.dtype).min
        else:
            seen = call.mask is None or bool(call.mask[sample, key])
            seen &= not call.causal or key <= place
            seen &= call.window is None or abs(place - key) < call.window
        scores.append(score if seen else -math.inf)
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


@pytest.mark.parametrize("name", CALLS)
def test_rows_are_the_softmax_of_the_models_own_scores(name: str) -> None:
    call = CALLS[name]
    rows = softmax_rows(call, POSITIONS)
    seen = visible_keys(call, POSITIONS)
    assert rows.dtype == torch.float32
    for sample, head, query in itertools.product(range(SAMPLES), range(HEADS), range(POSITIONS.shape[1])):
        expected = brute_force(call, sample, head, int(POSITIONS[sample, query]))
        np.testing.assert_allclose(rows[sample, head, query], expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(seen[sample, query], expected > 0)


@pytest.mark.parametrize("name", CALLS)
def test_blocked_attention_mixes_values_by_those_rows(name: str) -> None:
    call = CALLS[name]
    output = blocked_attention(call)
    assert output.dtype == call.query.dtype
    assert output.shape == (SAMPLES, LENGTH, HEADS, WIDTH)
    near = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[call.value.dtype]
    for sample, head, place in itertools.product(range(SAMPLES), range(HEADS), range(PADDING, LENGTH)):
        values = call.value[sample, head // (HEADS // KEY_HEADS)].double().numpy()
        expected = brute_force(call, sample, head, place) @ values
        np.testing.assert_allclose(output[sample, place, head].float(), expected, rtol=near, atol=near)
    assert output.isfinite().all(), "padding sees nothing, and must not become NaN"


def test_a_single_query_sees_every_key_without_a_mask() -> None:
    call = make_call()
    one = call._replace(query=call.query[:, :, :1])
    torch.testing.assert_close(
        softmax_rows(one, torch.zeros(SAMPLES, 1, dtype=torch.long))[0, 0, 0].sum(), torch.tensor(1.0)
    )
    assert visible_keys(one, torch.zeros(SAMPLES, 1, dtype=torch.long)).all()


def test_blocks_of_queries_cover_every_position_once() -> None:
    call = make_call()
    long = call._replace(query=call.query.new_empty(SAMPLES, HEADS, 300, WIDTH), key=call.key.new_empty(1, 1, 300, 1))
    blocks = list(query_blocks(long))
    assert len(blocks) > 1
    assert torch.equal(torch.cat(blocks, dim=1), torch.arange(300).expand(SAMPLES, -1))
    huge = call._replace(key=call.key.new_empty(1, 1, 2**22, 1).expand(1, 1, -1, WIDTH))
    assert next(query_blocks(huge)).shape == (SAMPLES, 1)


def transformed(module: Attention, values: torch.Tensor) -> np.ndarray:
    """(row, head, dim) float64: each head's value times its slice of the output projection."""
    weight = module.o_proj.weight.double().numpy()
    rows = np.zeros((len(values), HEADS, len(weight)))
    for row, head in itertools.product(range(len(values)), range(HEADS)):
        value = values[row, head // (HEADS // KEY_HEADS)].double().numpy()
        rows[row, head] = weight[:, head * WIDTH : (head + 1) * WIDTH] @ value
    return rows


@pytest.mark.parametrize("dim", [DIM, 4], ids=["wide", "narrower than a head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_norms_are_those_of_the_transformed_values(dtype: torch.dtype, dim: int) -> None:
    module = Attention(dtype, dim)
    rows = 1500  # more than one chunk
    values = torch.randn(rows, KEY_HEADS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    norms = value_norms(module, values, HEADS)
    assert norms.dtype == torch.float32
    assert norms.shape == (rows, HEADS)
    few = [0, 5, 1023, 1024, 1499]
    np.testing.assert_allclose(norms[few], np.linalg.norm(transformed(module, values[few]), axis=2), rtol=1e-5)


def test_value_norms_near_the_null_space_keep_their_digits() -> None:
    module = Attention(torch.float32)
    with torch.no_grad():
        left, scale, right = torch.linalg.svd(module.o_proj.weight[:, :WIDTH], full_matrices=False)
        scale[-1] = 1e-5 * scale[0]
        module.o_proj.weight[:, :WIDTH] = left @ torch.diag(scale) @ right
    values = torch.zeros(1, KEY_HEADS, WIDTH)
    values[0, 0] = right[-1]
    expected = np.linalg.norm(transformed(module, values), axis=2)
    np.testing.assert_allclose(value_norms(module, values, HEADS)[0, 0], expected[0, 0], rtol=2e-2)


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)
def test_summed_norms_are_those_of_the_weighted_sum_over_heads(dtype: torch.dtype, near: float) -> None:
    module = Attention(dtype)
    generator = torch.Generator().manual_seed(2)
    rows = 5000  # more than one chunk
    values = torch.randn(rows, KEY_HEADS, WIDTH, generator=generator).to(dtype)
    # As far apart as in a long row, where float16 would call most weights 0.
    weights = torch.rand(rows, HEADS, generator=generator) * 10.0 ** -torch.randint(
        0, 12, (rows, 1), generator=generator
    )
    chosen = torch.arange(0, rows, 2)
    norms = summed_norms(module, values, weights, chosen)
    few = torch.arange(0, rows, 499)
    mixed = np.einsum("rh,rhd->rd", weights[few].double().numpy(), transformed(module, values[few]))
    expected = np.where(few % 2 == 0, np.linalg.norm(mixed, axis=1), 0.0)
    np.testing.assert_allclose(norms[few], expected, rtol=near)


def test_weights_of_zero_have_norm_zero() -> None:
    module = Attention(torch.float32)
    values = torch.ones(3, KEY_HEADS, WIDTH)
    assert summed_norms(module, values, torch.zeros(3, HEADS), torch.arange(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_module_without_an_output_projection_is_refused() -> None:
    with pytest.raises(StrataError, match=r"Identity has no linear output projection .*o_proj, out_proj"):
        output_projection(torch.nn.Identity())
