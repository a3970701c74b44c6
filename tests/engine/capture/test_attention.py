"""Captured attention, norms and outputs against eager attention and brute force, alone, padded and in 16 bits."""

import weakref

import numpy as np
import pytest
import torch

from engine.capture.attention_rows import AttentionCall
from engine.capture.block_capture import BlockCollector
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.models.load import LoadedModel
from engine.vocabulary import ROLE_CODES, ROLES
from tests.engine.capture.attention_oracle import eager, own_rows
from tests.engine.capture.test_forward import ALL_LAYERS, BLOCKS, SHAPE, loaded_model, make_item, one_image
from tests.tiny_llava import TinyShape

QUERIES = ("last_text", "last_image", "instruction:1", "preamble:0")
EVERYTHING = Probe(
    ALL_LAYERS,
    residual=True,
    pooled=False,
    block_count=BLOCKS,
    attention=True,
    queries=QUERIES,
    blocks=tuple(range(1, BLOCKS + 1)),
    mass=True,
    attention_output=True,
    mlp_output=True,
)
SHAPES = {"grouped": SHAPE, "every head its own": TinyShape(blocks=BLOCKS, key_value_heads=4)}
TOLERANCE = {"float32": 1e-5, "float16": 5e-2, "bfloat16": 2e-1}


def biased(loaded: LoadedModel) -> LoadedModel:
    """Give values and outputs biases: the first belongs to a transformed value, the second does not."""
    generator = torch.Generator().manual_seed(5)
    for block in loaded.language.blocks:
        for projection in (block.self_attn.v_proj, block.self_attn.o_proj):
            bias = torch.randn(projection.out_features, generator=generator).to(projection.weight.dtype)
            projection.bias = torch.nn.Parameter(bias)
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_norms_mass_and_outputs_of_a_padded_batch_are_eagers_of_each_sample(dtype: str, shape: str) -> None:
    loaded = biased(loaded_model(dtype, SHAPES[shape]))
    items = [make_item(seed, length) for seed, length in enumerate((3, 11, 6))]
    captured = capture_batch(loaded, items, EVERYTHING, pad_id=0)
    assert captured.problems == (None, None, None)
    assert captured.block_rows is not None
    key, token = captured.block_rows
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for sample, item in enumerate(items):
        oracle = eager(loaded, item)
        positions = query_positions(item.layout.role, QUERIES)
        for index in range(BLOCKS):
            attention, transformed = oracle.attention[index].numpy(), oracle.transformed[index].numpy()
            rows = own_rows(key["attention"][index], items, sample)
            np.testing.assert_allclose(rows, attention[:, positions].transpose(2, 0, 1), **near)
            assert (rows[-1, :, 1] == 0).all(), "the image does not see the text after it"
            np.testing.assert_allclose(rows.sum(axis=0), 1, rtol=1e-5)

            norms = np.linalg.norm(transformed, axis=-1)
            scale = norms.max()
            np.testing.assert_allclose(
                own_rows(token["value_norm"][index], items, sample) / scale, norms.T / scale, **near
            )
            summed = np.einsum("hqk,hkd->qkd", attention[:, positions], transformed)
            np.testing.assert_allclose(
                own_rows(key["attention_norm"][index], items, sample) / scale,
                np.linalg.norm(summed, axis=-1).T / scale,
                **near,
            )

            mass = own_rows(token["attention_mass"][index], items, sample)
            for role in range(len(ROLES)):
                expected = attention[:, :, item.layout.role == role].sum(axis=2).T
                np.testing.assert_allclose(mass[:, :, role], expected, **near)
            np.testing.assert_allclose(mass.sum(axis=2), 1, rtol=1e-5)

            for name in ("attention_output", "mlp_output"):
                rows, expected = own_rows(token[name][index], items, sample), getattr(oracle, name)[index].numpy()
                assert token[name][index].dtype == getattr(torch, dtype)
                error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
                assert error.max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_are_the_same_bits_with_and_without_attention(dtype: str) -> None:
    loaded = loaded_model(dtype)
    items = [make_item(seed, length) for seed, length in enumerate((3, 11))]
    with_attention = capture_batch(loaded, items, EVERYTHING, pad_id=0)
    without = capture_batch(loaded, items, Probe(ALL_LAYERS, residual=True, pooled=False, block_count=BLOCKS), pad_id=0)
    assert without.block_rows is None
    for one, other in zip(with_attention.states, without.states, strict=True):
        assert torch.equal(one, other)
    assert loaded.attention_kernel == "sdpa", "the model is left as it was"


def test_without_its_mask_function_a_padded_batch_would_differ() -> None:
    loaded = loaded_model()
    items = [make_item(seed, length) for seed, length in enumerate((3, 11))]
    alone = [capture_batch(loaded, [item], EVERYTHING, pad_id=0).block_rows for item in items]
    batched = capture_batch(loaded, items, EVERYTHING, pad_id=0).block_rows
    assert batched is not None
    for group, singles in (("key", alone), ("token", alone)):
        for name, blocks in getattr(batched, group).items():
            for index, rows in enumerate(blocks):
                expected = torch.cat([getattr(single, group)[name][index] for single in singles])
                torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_the_norm_of_a_sum_is_accurate_where_small_weights_would_leave_the_range_of_float16() -> None:
    loaded = loaded_model("float16")
    item = make_item(0, 40)
    with torch.no_grad():
        for block in loaded.language.blocks:
            block.self_attn.q_proj.weight.mul_(4)
    probe = EVERYTHING._replace(queries=("last_text",))
    captured = capture_batch(loaded, [item], probe, pad_id=0).block_rows
    assert captured is not None
    for index in range(BLOCKS):
        weights = captured.key["attention"][index][..., 0].double()
        assert weights.sum(dim=1).min() < 1e-6
        oracle = eager(loaded, item).transformed[index].double()
        if index:
            continue  # later values differ by the noise of 16 bits before them
        expected = torch.linalg.vector_norm(torch.einsum("kh,hkd->kd", weights, oracle), dim=-1)
        made = captured.key["attention_norm"][index][:, 0].double()
        assert ((made - expected) / expected).abs().max() < 5e-3


def test_a_query_that_a_sample_lacks_is_nan_in_its_rows_alone() -> None:
    loaded = loaded_model()
    items = [make_item(0, 3), make_item(1, 7)]
    items[1].layout.role[-2] = ROLE_CODES["target"]
    probe = EVERYTHING._replace(queries=("last_text", "target:0"))
    captured = capture_batch(loaded, items, probe, pad_id=0)
    assert captured.problems == (None, None)
    assert captured.block_rows is not None
    length = len(items[0].layout)
    for index in range(BLOCKS):
        for name in ("attention", "attention_norm"):
            rows = captured.block_rows.key[name][index]
            assert rows[:length, ..., 1].isnan().all()
            assert rows[:length, ..., 0].isfinite().all()
            assert rows[length:].isfinite().all()


def test_key_rows_come_with_every_sample_and_token_rows_once_for_a_shared_prefix() -> None:
    loaded = loaded_model()
    items = one_image(4, 7, 5)
    captured = capture_batch(loaded, items, EVERYTHING, pad_id=0)
    assert captured.block_rows is not None
    total = sum(len(item.layout) for item in items)
    key, token = captured.block_rows
    assert all(len(rows) == total for blocks in key.values() for rows in blocks)
    assert all(len(rows) == total - 2 * 18 for blocks in token.values() for rows in blocks)
    alone = capture_batch(loaded, [items[2]], EVERYTHING, pad_id=0).block_rows
    assert alone is not None
    np.testing.assert_allclose(own_rows(key["attention"][2], items, 2), alone.key["attention"][2], rtol=0, atol=1e-5)
    torch.testing.assert_close(token["value_norm"][2][-5:], alone.token["value_norm"][2][-5:], rtol=1e-4, atol=1e-5)


def test_only_chosen_blocks_tensors_and_roles_are_kept() -> None:
    loaded = loaded_model()
    item = make_item(0, 5)
    image = item.layout.role == ROLE_CODES["image"]
    probe = EVERYTHING._replace(blocks=(2, 4), mass=False, mlp_output=False)
    captured = capture_batch(loaded, [item._replace(wanted=image)], probe, pad_id=0).block_rows
    whole = capture_batch(loaded, [item], EVERYTHING, pad_id=0).block_rows
    assert captured is not None
    assert whole is not None
    assert set(captured.key) == {"attention", "attention_norm"}
    assert set(captured.token) == {"value_norm", "attention_output"}
    for index, block in enumerate((2, 4)):
        assert torch.equal(captured.key["attention"][index], whole.key["attention"][block - 1])
        for name in captured.token:
            assert torch.equal(captured.token[name][index], whole.token[name][block - 1][torch.from_numpy(image)])


def test_rows_that_a_tensor_does_not_keep_never_reach_the_host() -> None:
    loaded = loaded_model()
    items = one_image(4, 7)
    chosen = EVERYTHING._replace(
        tensor_roles={"residual": ("instruction",), "attention": ("special",), "mlp-output": ("image", "instruction")},
        tensor_blocks={"attention": (2,), "attention-output": (1, 4), "mlp-output": ()},
    )
    captured, whole = (capture_batch(loaded, items, probe, pad_id=0) for probe in (chosen, EVERYTHING))
    assert captured.block_rows is not None
    assert whole.block_rows is not None
    stored = zip(items, whole.kept, strict=True)
    role = torch.from_numpy(np.concatenate([item.layout.role[kept] for item, kept in stored]))
    for one, other in zip(captured.states, whole.states, strict=True):
        assert torch.equal(one, other[role == ROLE_CODES["instruction"]])
    for name, rows, blocks in (
        ("value_norm", role == ROLE_CODES["special"], (2,)),
        ("attention_mass", role >= 0, EVERYTHING.blocks),
        ("attention_output", role >= 0, (1, 4)),
        ("mlp_output", role >= 0, ()),
    ):
        own = captured.block_rows.token[name]
        assert len(own) == len(blocks)
        for values, block in zip(own, blocks, strict=True):
            assert torch.equal(values, whole.block_rows.token[name][block - 1][rows])
    for name, values in captured.block_rows.key.items():
        assert torch.equal(*values, whole.block_rows.key[name][1])


def test_blocks_are_listened_to_only_for_what_is_kept_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    attended: list[int] = []

    def listen(self: BlockCollector, call: AttentionCall) -> None:
        attended.append(call.block)
        attend(self, call)

    attend = BlockCollector._attend
    monkeypatch.setattr(BlockCollector, "_attend", listen)
    probe = EVERYTHING._replace(tensor_blocks={"attention": (2,), "attention-mass": (2, 4)})
    assert capture_batch(loaded_model(), [make_item(0, 5)], probe, pad_id=0).problems == (None,)
    assert (attended, probe.attended_blocks) == ([2, 4], (2, 4))


def test_a_mask_of_each_blocks_own_changes_nothing_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate gives one to every block that is not on the first GPU."""
    blocks = tuple(range(1, 9))
    probe = EVERYTHING._replace(layers=(), residual=False, block_count=len(blocks), blocks=blocks, mass=False)
    loaded = loaded_model("float32", TinyShape(blocks=len(blocks)))
    items = [make_item(seed, length) for seed, length in enumerate((3, 11, 6))]
    shared = capture_batch(loaded, items, probe, pad_id=0).block_rows
    masks: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def listen(self: BlockCollector, call: AttentionCall) -> None:
        assert call.mask is not None
        mask = call.mask.clone()
        masks.append(weakref.ref(mask))
        attend(self, call._replace(mask=mask))
        del mask
        alive.append(sum(mask() is not None for mask in masks))

    attend = BlockCollector._attend
    monkeypatch.setattr(BlockCollector, "_attend", listen)
    own = capture_batch(loaded, items, probe, pad_id=0).block_rows
    assert alive == [1, 2, 3, 4, 4, 4, 4, 4]
    assert shared is not None
    assert own is not None
    for name, values in shared.key.items():
        assert all(torch.equal(*pair) for pair in zip(values, own.key[name], strict=True)), name


@pytest.mark.parametrize("where", ["attention", "attention_mass", "attention_output", "mlp_output"])
def test_values_that_are_not_finite_are_a_problem_of_their_sample_and_spare_the_others(where: str) -> None:
    loaded = loaded_model()
    items = [make_item(seed, length) for seed, length in enumerate((4, 7, 5))]
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = torch.nan
    items[1].layout.token_id[20] = 500
    probe = EVERYTHING._replace(
        layers=(),
        residual=False,
        blocks=(2, 3),
        attention=where == "attention",
        mass=where == "attention_mass",
        attention_output=where == "attention_output",
        mlp_output=where == "mlp_output",
    )
    captured = capture_batch(loaded, items, probe, pad_id=0)
    assert captured.problems[0] is None
    assert captured.problems[2] is None
    assert captured.problems[1] is not None
    assert f"{where} of block 2, position 0 holds NaN or Inf" in captured.problems[1]
    assert captured.block_rows is not None
    alone = [capture_batch(loaded, [items[sample]], probe, pad_id=0).block_rows for sample in (0, 2)]
    for group in ("key", "token"):
        for name, blocks in getattr(captured.block_rows, group).items():
            expected = torch.cat([getattr(single, group)[name][1] for single in alone])
            torch.testing.assert_close(blocks[1], expected, rtol=1e-3, atol=1e-4)
