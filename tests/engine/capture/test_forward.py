"""Captured states against Hugging Face's own hidden states, batched against single, in every dtype."""

import numpy as np
import pytest
import torch

from engine.capture.batch import BatchItem
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.models.load import LoadedModel, find_language_model
from engine.models.tokens import TokenLayout
from engine.vocabulary import ROLE_CODES, ROLES
from tests.tiny_llava import TinyShape, build_model

BLOCKS = 4
SHAPE = TinyShape(blocks=BLOCKS)
ALL_LAYERS = tuple(range(BLOCKS + 1))
IMAGE_ID = build_model().config.image_token_id


def loaded_model(dtype: str = "float32", shape: TinyShape = SHAPE) -> LoadedModel:
    model = build_model(shape).to(getattr(torch, dtype))
    return LoadedModel(model, find_language_model(model), torch.device("cpu"), dtype)


def make_item(seed: int, text_tokens: int) -> BatchItem:
    """BOS, a preamble, 16 image tokens, then text."""
    rng = np.random.default_rng(seed)
    token_id = np.concatenate([[1, 7], np.full(16, IMAGE_ID), rng.integers(10, 300, text_tokens)]).astype(np.int32)
    role = np.full(len(token_id), ROLE_CODES["instruction"], dtype=np.int32)
    role[0], role[1], role[2:18], role[-1] = (ROLE_CODES[name] for name in ("special", "preamble", "image", "template"))
    nothing = np.full(len(token_id), -1, dtype=np.int32)
    layout = TokenLayout(token_id, role, nothing, nothing, nothing)
    pixels = torch.from_numpy(rng.normal(size=(1, 3, 16, 16)).astype(np.float32))
    return BatchItem(f"sample-{seed}", seed, layout, pixels, {}, np.ones(len(token_id), dtype=bool), prefix=0)


def probe(*, residual: bool = True, pooled: bool = True, layers: tuple[int, ...] = ALL_LAYERS) -> Probe:
    return Probe(layers, residual=residual, pooled=pooled, block_count=BLOCKS)


def hugging_face_states(loaded: LoadedModel, item: BatchItem) -> list[torch.Tensor]:
    """hidden_states of a single unpadded pass; the last one is final-normed."""
    with torch.inference_mode():
        output = loaded.model(
            input_ids=torch.from_numpy(item.layout.token_id.astype(np.int64))[None],
            pixel_values=item.pixel_values.to(loaded.model.dtype),
            output_hidden_states=True,
            use_cache=False,
        )
    return [states[0] for states in output.hidden_states]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [TinyShape(blocks=BLOCKS), TinyShape(blocks=BLOCKS, key_value_heads=4)])
def test_states_are_hugging_faces_and_the_last_layer_is_before_the_norm(dtype: str, shape: TinyShape) -> None:
    loaded = loaded_model(dtype, shape)
    item = make_item(0, 5)
    expected = hugging_face_states(loaded, item)
    captured = capture_batch(loaded, [item], probe(pooled=False), pad_id=0)
    assert captured.problems == (None,)
    for layer in range(BLOCKS):
        assert captured.states[layer].dtype == loaded.model.dtype
        torch.testing.assert_close(captured.states[layer], expected[layer], rtol=0, atol=0)
    with torch.inference_mode():
        normed = loaded.language.final_norm(captured.states[BLOCKS])
    torch.testing.assert_close(normed, expected[BLOCKS], rtol=0, atol=0)
    assert not torch.allclose(captured.states[BLOCKS].float(), expected[BLOCKS].float(), rtol=0.05)


@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 1 - 1e-6), ("bfloat16", 1 - 5e-2), ("float16", 1 - 1e-3)])
def test_padded_batch_equals_single_samples(dtype: str, cosine: float) -> None:
    loaded = loaded_model(dtype)
    items = [make_item(seed, length) for seed, length in enumerate((3, 11, 6))]
    batched = capture_batch(loaded, items, probe(pooled=False), pad_id=0)
    single = [capture_batch(loaded, [item], probe(pooled=False), pad_id=0).states for item in items]
    for layer in ALL_LAYERS:
        expected = torch.cat([states[layer] for states in single]).float()
        assert batched.states[layer].shape == expected.shape, "padding must not reach the store"
        similarity = torch.cosine_similarity(batched.states[layer].float(), expected, dim=-1)
        assert similarity.min() >= cosine
        if dtype == "float32":
            torch.testing.assert_close(batched.states[layer], expected, rtol=1e-4, atol=1e-4)


def test_pooled_states_are_the_brute_force_means() -> None:
    loaded = loaded_model()
    items = [make_item(seed, length) for seed, length in enumerate((3, 9))]
    captured = capture_batch(loaded, items, probe(), pad_id=0)
    assert captured.pooled is not None
    assert captured.pooled.normed_unit_mean is not None
    for sample, item in enumerate(items):
        states = hugging_face_states(loaded, item)[:BLOCKS]
        own = capture_batch(loaded, [item], probe(pooled=False), pad_id=0).states[BLOCKS]
        for role, name in enumerate(ROLES):
            chosen = np.flatnonzero(item.layout.role == role)
            assert captured.pooled.token_count[role, sample] == len(chosen)
            for layer, rows in enumerate([*states, own]):
                mean = captured.pooled.mean[layer, role, sample]
                unit_mean = captured.pooled.unit_mean[layer, role, sample]
                if not len(chosen):
                    assert np.isnan(mean).all()
                    assert np.isnan(unit_mean).all(), name
                    continue
                wanted = rows[chosen].double().numpy()
                np.testing.assert_allclose(mean, wanted.mean(axis=0), rtol=1e-4, atol=1e-5)
                units = np.stack([row / np.sqrt((row * row).sum()) for row in wanted])
                np.testing.assert_allclose(unit_mean, units.mean(axis=0), rtol=1e-4, atol=1e-5)
            if len(chosen):
                normed = hugging_face_states(loaded, item)[BLOCKS][chosen].double().numpy()
                units = np.stack([row / np.sqrt((row * row).sum()) for row in normed])
                np.testing.assert_allclose(
                    captured.pooled.normed_unit_mean[role, sample], units.mean(axis=0), rtol=1e-4, atol=1e-5
                )


def test_only_chosen_layers_and_kept_rows_leave_the_device() -> None:
    loaded = loaded_model()
    item = make_item(0, 5)
    kept = item.layout.role == ROLE_CODES["image"]
    captured = capture_batch(loaded, [item._replace(wanted=kept)], probe(layers=(0, 3), pooled=False), pad_id=0)
    whole = capture_batch(loaded, [item], probe(pooled=False), pad_id=0)
    assert len(captured.states) == 2
    torch.testing.assert_close(captured.states[1], whole.states[3][torch.from_numpy(kept)])


def test_without_residual_no_state_is_kept_and_without_the_last_layer_nothing_is_normed() -> None:
    captured = capture_batch(loaded_model(), [make_item(0, 4)], probe(residual=False, layers=(0, 2)), pad_id=0)
    assert captured.states == []
    assert captured.pooled is not None
    assert captured.pooled.unit_mean.shape[0] == 2
    assert captured.pooled.normed_unit_mean is None


def test_overflow_names_layer_and_position_of_the_sample_and_spares_the_others() -> None:
    loaded = loaded_model("float16")
    with torch.no_grad():
        embedding = loaded.model.get_input_embeddings().weight
        embedding[500] = 6e4
    items = [make_item(0, 4), make_item(1, 7)]
    items[1].layout.token_id[20] = 500
    with torch.no_grad():
        loaded.language.blocks[1].mlp.down_proj.weight.mul_(3000)
    problems = capture_batch(loaded, items, probe(), pad_id=0).problems
    assert problems[1] is not None
    assert "holds Inf" in problems[1]
    first_bad = next(
        (layer, int(position))
        for layer, states in enumerate(hugging_face_states(loaded, items[1])[:BLOCKS])
        for position in torch.nonzero(~torch.isfinite(states).all(dim=-1)).flatten()
    )
    assert f"layer {first_bad[0]}, position {first_bad[1]} " in problems[1]


def test_zero_vectors_are_refused_where_directions_are_pooled() -> None:
    loaded = loaded_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = 0.0
    item = make_item(0, 4)
    item.layout.token_id[19] = 500
    problem = capture_batch(loaded, [item], probe(), pad_id=0).problems[0]
    assert problem is not None
    assert "layer 0, position 19 is a zero vector" in problem
    assert capture_batch(loaded, [item], probe(pooled=False), pad_id=0).problems == (None,)


@pytest.mark.parametrize("spoiled", ["not finite", "zero"])
def test_an_unusable_sample_leaves_the_others_of_its_batch_as_they_are(spoiled: str) -> None:
    loaded = loaded_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = torch.inf if spoiled == "not finite" else 0.0
    items = [make_item(seed, length) for seed, length in enumerate((4, 7, 5))]
    items[1].layout.token_id[20] = 500
    captured = capture_batch(loaded, items, probe(), pad_id=0)
    assert [problem is None for problem in captured.problems] == [True, False, True]
    assert captured.pooled is not None
    alone = [capture_batch(loaded, [items[sample]], probe(), pad_id=0) for sample in (0, 2)]
    for layer in ALL_LAYERS:
        expected = torch.cat([single.states[layer] for single in alone])
        torch.testing.assert_close(captured.states[layer], expected, rtol=1e-3, atol=1e-4)
    assert [kept.sum() for kept in captured.kept] == [len(items[0].layout), 0, len(items[2].layout)]
    for sample, single in enumerate(alone):
        for name in ("unit_mean", "mean", "normed_unit_mean"):
            values, expected = getattr(captured.pooled, name)[..., sample, :], getattr(single.pooled, name)[..., 0, :]
            np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
        assert single.pooled is not None
        np.testing.assert_array_equal(captured.pooled.token_count[:, sample], single.pooled.token_count[:, 0])


@pytest.mark.parametrize(("dtype", "hinted"), [("float16", True), ("float32", False)])
def test_a_wider_dtype_is_advised_where_there_is_one(dtype: str, hinted: bool) -> None:
    loaded = loaded_model(dtype)
    item = make_item(0, 4)
    item.layout.token_id[19] = 500
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = torch.nan
    problem = capture_batch(loaded, [item], probe(), pad_id=0).problems[0]
    assert problem is not None
    assert problem.startswith("layer 0, position 19 holds NaN or Inf")
    assert ("try --dtype bfloat16 or float32" in problem) == hinted


def one_image(*lengths: int) -> list[BatchItem]:
    """Samples of one image whose first 18 tokens are the same."""
    items = [make_item(seed, length) for seed, length in enumerate(lengths)]
    return [item._replace(image=5, prefix=18, pixel_values=items[0].pixel_values) for item in items]


@pytest.mark.parametrize("bad", [(), (0,), (0, 1), (1,), (0, 1, 2)])
def test_a_prefix_comes_once_with_the_first_usable_sample_of_its_image(bad: tuple[int, ...]) -> None:
    loaded = loaded_model()
    items = one_image(4, 7, 5)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = torch.nan
    for sample in bad:
        items[sample].layout.token_id[19] = 500
    captured = capture_batch(loaded, items, probe(), pad_id=0)
    good = [sample for sample in range(3) if sample not in bad]
    assert [problem is None for problem in captured.problems] == [sample in good for sample in range(3)]
    for sample, kept in enumerate(captured.kept):
        expected = np.arange(len(kept)) >= 18 if sample in good[1:] else np.full(len(kept), sample in good)
        np.testing.assert_array_equal(kept, expected)
    assert all(len(states) == sum(kept.sum() for kept in captured.kept) for states in captured.states)
    assert all(bool(torch.isfinite(states).all()) for states in captured.states)
    later = capture_batch(loaded, [items[2]], probe(), pad_id=0, images_kept={5})
    assert later.kept[0].sum() == (0 if 2 in bad else 5)
    other = capture_batch(loaded, [items[2]], probe(), pad_id=0, images_kept={4})
    assert other.kept[0].sum() == (0 if 2 in bad else 23)
