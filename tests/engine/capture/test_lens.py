"""Pieces of captured states against Hugging Face's own norm and head, in every dtype and for every kind of norm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.capture import lens as lens_module
from engine.capture.batch import BatchCapture
from engine.capture.forward import capture_batch
from engine.capture.lens import Lens, Pieces
from engine.capture.probe import Probe
from engine.models.final_norm import normed_states
from engine.models.load import LanguageModel, LoadedModel, find_language_model
from engine.models.vocabulary import TokenizerVocabulary
from engine.store import LARGEST_NORM
from engine.vocabulary import ROLE_CODES
from tests import tiny_gemma_llava
from tests.engine.capture.lens_oracle import all_logits, allowed_ids, check_pieces
from tests.engine.capture.test_forward import ALL_LAYERS, BLOCKS, SHAPE, loaded_model, make_item, one_image
from tests.tiny_llava import build_tokenizer

TOPK = 6
TOKENIZER = build_tokenizer()
PROBE = Probe(ALL_LAYERS, residual=True, pooled=False, block_count=BLOCKS, lens_layers=ALL_LAYERS)


def gemma(dtype: str) -> LoadedModel:
    """Gemma 2: 1 + weight in the norm, a softcap, and the embeddings as unembedding."""
    model = tiny_gemma_llava.build_model(SHAPE).to(getattr(torch, dtype))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return LoadedModel(model, find_language_model(model), torch.device("cpu"), dtype)


def lens_of(loaded: LoadedModel, topk: int = TOPK) -> Lens:
    candidates = TokenizerVocabulary(TOKENIZER).candidates(len(loaded.language.unembedding))
    softcap = getattr(loaded.language.config, "final_logit_softcapping", None)
    return Lens(loaded.language, candidates, topk=topk, softcap=softcap)


def capture(loaded: LoadedModel, items: list[Any], probe: Probe = PROBE, **options: Any) -> BatchCapture:
    return capture_batch(loaded, items, probe, pad_id=0, lens=lens_of(loaded), **options)


def check_capture(captured: BatchCapture, loaded: LoadedModel) -> None:
    allowed = allowed_ids(TOKENIZER, len(loaded.language.unembedding))
    assert 0 < allowed.sum() < len(TOKENIZER) < len(allowed)
    for states, pieces in zip(captured.states, captured.pieces, strict=True):
        assert (pieces.token_id.dtype, pieces.logit.dtype) == (torch.int32, torch.float32)
        check_pieces(pieces.token_id.numpy(), pieces.logit.numpy(), all_logits(loaded.model, states, allowed))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("build", [loaded_model, gemma])
def test_pieces_are_those_of_hugging_faces_norm_and_head(build: Callable[[str], LoadedModel], dtype: str) -> None:
    loaded = build(dtype)
    captured = capture(loaded, [make_item(seed, length) for seed, length in enumerate((5, 9))])
    assert captured.problems == (None, None)
    check_capture(captured, loaded)


def test_the_softcap_bounds_what_is_shown_and_changes_no_id() -> None:
    loaded = gemma("float32")
    with torch.no_grad():
        loaded.language.unembedding.mul_(20)
    (states,) = capture(loaded, [make_item(0, 5)], PROBE._replace(layers=(2,), lens_layers=(2,))).states
    lens = lens_of(loaded)
    capped = lens.top(states)
    lens._softcap = None
    plain = lens.top(states)
    assert plain.logit.max() > 60
    assert capped.logit.max() <= 30
    assert torch.equal(capped.token_id, plain.token_id)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_norm_is_computed_in_float32_whatever_its_weights(kind: str, dtype: str) -> None:
    loaded = loaded_model(dtype)
    norm: torch.nn.Module = loaded.language.final_norm
    if kind == "layer":
        norm = torch.nn.LayerNorm(SHAPE.dim).to(loaded.model.dtype)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    states = (3 * torch.randn(7, SHAPE.dim) + 1).to(loaded.model.dtype)
    with torch.inference_mode():
        found = normed_states(norm, states)
    wide = states.double()
    centred = wide - wide.mean(dim=1, keepdim=True) if kind == "layer" else wide
    scale = (centred.square().mean(dim=1, keepdim=True) + (1e-5 if kind == "layer" else norm.variance_epsilon)).sqrt()
    expected = centred / scale * norm.weight.double() + (norm.bias.double() if kind == "layer" else 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.detach(), rtol=2e-6, atol=2e-6)


def test_special_byte_and_padding_ids_are_never_chosen_however_large() -> None:
    loaded = loaded_model()
    allowed = allowed_ids(TOKENIZER, len(loaded.language.unembedding))
    with torch.no_grad():
        loaded.language.unembedding[~allowed] *= 100
    (pieces,) = capture(loaded, [make_item(0, 5)], PROBE._replace(layers=(4,), lens_layers=(4,))).pieces
    assert allowed[pieces.token_id.long()].all()
    everything = lens_of(loaded, topk=10**6)
    assert everything.topk == allowed.sum()
    ids = everything.top(torch.randn(3, SHAPE.dim)).token_id
    assert ids.sort(dim=1).values.tolist() == [allowed.nonzero()[:, 0].tolist()] * 3


def plain_lens(weights: torch.Tensor, topk: int, *, excluded: tuple[int, ...] = ()) -> Lens:
    """A lens without a norm that changes anything but lengths."""
    norm = torch.nn.RMSNorm(weights.shape[1], eps=1e-9)
    candidates = np.ones(len(weights), bool)
    candidates[list(excluded)] = False
    return Lens(LanguageModel((), norm, weights, None), candidates, topk=topk, softcap=None)


@pytest.mark.parametrize("topk", [1, 3, 7, 19])
@torch.inference_mode()
def test_of_equal_logits_the_smaller_id_comes_first(topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # Small integers, which the norm leaves as they are: their products are exact, so that equal rows have equal logits.
    weights = torch.randint(-2, 3, (6, 8)).float().repeat(4, 1)[torch.randperm(24)]
    states = 2.0 * torch.randint(0, 2, (40, 8)) - 1
    states[3] = 0
    lens = plain_lens(weights, topk, excluded=(0, 5, 11, 23, 2))
    found = lens.top(states)
    logits = (states @ weights.T).tolist()
    allowed = [token_id for token_id in range(24) if token_id not in (0, 5, 11, 23, 2)]
    expected = [sorted(allowed, key=lambda token_id, row=row: (-row[token_id], token_id))[:topk] for row in logits]
    assert found.token_id.tolist() == expected
    monkeypatch.setattr(lens_module, "_LOGIT_BYTES", 4 * 24 * 7)
    logits_of, held = lens._logits, []
    monkeypatch.setattr(lens, "_logits", lambda rows: held.append(logits_of(rows)) or held[-1])
    in_chunks = lens.top(states)
    assert max(logits.nbytes for logits in held) <= 4 * 24 * 7
    assert torch.equal(in_chunks.token_id, found.token_id)
    assert torch.equal(in_chunks.logit, found.logit)


@torch.inference_mode()
def test_no_state_has_no_pieces() -> None:
    assert [rows.shape for rows in plain_lens(torch.randn(5, 4), 2).top(torch.empty(0, 4))] == [(0, 2)] * 2


@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
@torch.inference_mode()
def test_two_products_of_16_bits_are_as_near_as_their_bound_says(
    dtype: str, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weights = torch.randn(300, 64).to(getattr(torch, dtype))
    lens, states = plain_lens(weights, 20), torch.randn(50, 64).to(weights.dtype)
    assert not lens_module._multiplies_into_float32(weights), "on the CPU the product is in float32"
    calls = []

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.dtype == right.dtype == weights.dtype
        calls.append(left)
        return left.float() @ right.float().T

    monkeypatch.setattr(lens_module, "_multiplies_into_float32", lambda _weights: True)
    monkeypatch.setattr(lens_module, "_product_into_float32", product)
    normed = normed_states(lens._language.final_norm, states)
    two = lens._logits(normed)
    assert len(calls) == 2
    exact = normed.double() @ weights.double().T
    sizes = normed.double().abs() @ weights.double().abs().T
    assert ((two - exact).abs() <= (unit**2 + 64 * 2.0**-24) * sizes).all()
    leading = product(normed.to(weights.dtype), weights)
    assert (leading - exact).abs().max() > 20 * (two - exact).abs().max()


def test_a_prefix_and_roles_of_their_own_are_decoded_where_they_are_kept() -> None:
    loaded = loaded_model()
    items = one_image(4, 7, 5)
    probe = PROBE._replace(lens_layers=(1, 3), tensor_roles={"lens": ("image",), "residual": ("instruction",)})
    whole, captured = capture(loaded, items), capture(loaded, items, probe)
    role = np.concatenate([item.layout.role[kept] for item, kept in zip(items, whole.kept, strict=True)])
    assert (role == ROLE_CODES["image"]).sum() == 16
    for layer, pieces in zip((1, 3), captured.pieces, strict=True):
        of_image = torch.from_numpy(role == ROLE_CODES["image"])
        for name in Pieces._fields:
            assert torch.equal(getattr(pieces, name), getattr(whole.pieces[layer], name)[of_image])
    assert [len(states) for states in captured.states] == [(role == ROLE_CODES["instruction"]).sum()] * len(ALL_LAYERS)
    later = capture(loaded, items[2:], images_kept={5})
    assert [len(pieces.token_id) for pieces in later.pieces] == [5] * len(ALL_LAYERS)


def test_without_hidden_states_the_pieces_are_the_same() -> None:
    loaded = loaded_model()
    items = [make_item(0, 4), make_item(1, 6)]
    whole = capture(loaded, items)
    alone = capture(loaded, items, PROBE._replace(layers=(0, 3), residual=False, lens_layers=(0, 3)))
    assert alone.states == []
    for layer, pieces in zip((0, 3), alone.pieces, strict=True):
        assert torch.equal(pieces.token_id, whole.pieces[layer].token_id)
        assert torch.equal(pieces.logit, whole.pieces[layer].logit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_padded_batch_gives_the_pieces_of_its_states(dtype: str) -> None:
    loaded = loaded_model(dtype)
    items = [make_item(seed, length) for seed, length in enumerate((3, 11, 6))]
    batched = capture(loaded, items)
    check_capture(batched, loaded)
    if dtype == "float32":
        single = [capture(loaded, [item]) for item in items]
        for layer in ALL_LAYERS:
            expected = torch.cat([captured.pieces[layer].logit for captured in single])
            torch.testing.assert_close(batched.pieces[layer].logit, expected, rtol=1e-4, atol=1e-4)
            ids = torch.cat([captured.pieces[layer].token_id for captured in single])
            assert (ids == batched.pieces[layer].token_id).float().mean() > 0.99


def no_finite_logits(loaded: LoadedModel) -> None:
    """Let token 500 have a state of zeros, which the final norm turns into NaN and the blocks do not."""
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = 0.0
    loaded.language.final_norm.variance_epsilon = 0.0


def test_logits_that_are_not_finite_are_named_and_spare_the_other_samples() -> None:
    loaded = loaded_model()
    no_finite_logits(loaded)
    items = one_image(4, 7, 5)
    items[0].layout.token_id[20] = 500
    captured = capture(loaded, items)
    assert captured.problems == ("lens_logit of layer 0, position 20 holds NaN or Inf", None, None)
    assert [kept.sum() for kept in captured.kept] == [0, len(items[1].layout), 5]
    assert {len(rows) for pieces in captured.pieces for rows in pieces} == {len(items[1].layout) + 5}
    check_capture(captured, loaded)
    without = capture(loaded, items, PROBE._replace(lens_layers=()))
    assert without.problems == (None, None, None)


@pytest.mark.parametrize("lens_layers", [(0, 2), ()])
def test_a_finite_state_too_large_for_the_norm_is_named_and_spares_the_other_samples(
    lens_layers: tuple[int, ...],
) -> None:
    """Its square sum overflows within the norm, which would give zeros; with lens or without, as stores have norms."""
    loaded = loaded_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] = LARGEST_NORM / SHAPE.dim**0.5
    items = one_image(4, 7, 5)
    items[0].layout.token_id[20] = 500
    probe = PROBE._replace(layers=(0, 2), residual=bool(lens_layers), pooled=True, lens_layers=lens_layers)
    at_the_limit = capture(loaded, items, probe)
    assert "layer 0" not in (at_the_limit.problems[0] or ""), "a norm of this size still goes through"
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[500] *= 1.001
    captured = capture(loaded, items, probe)
    assert captured.problems == (
        "layer 0, position 20 holds Inf, or values too large: their norm exceeds 1.84e+19, whose square float32 cannot "
        "hold",
        None,
        None,
    )
    assert captured.pooled is not None
    assert np.isfinite(captured.pooled.unit_mean[:, captured.pooled.token_count > 0]).all()
    if lens_layers:
        check_capture(captured, loaded)


@torch.inference_mode()
def test_the_lens_decodes_no_state_of_zeros_in_place_of_one_that_overflows() -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 8)
    states[1, 2] = 1.9e19
    found = plain_lens(torch.randn(20, 8), 4).top(states)
    assert found.logit.isnan().any(dim=1).tolist() == [False, True, False]


def test_a_prefix_whose_logits_are_not_finite_spoils_all_samples_of_its_image() -> None:
    loaded = loaded_model()
    no_finite_logits(loaded)
    items = [*one_image(4, 7), make_item(9, 3)]
    for item in items[:2]:
        item.layout.token_id[1] = 500
    captured = capture(loaded, items)
    assert [problem and problem.split(" holds")[0] for problem in captured.problems] == [
        "lens_logit of layer 0, position 1",
        "lens_logit of layer 0, position 1",
        None,
    ]
    assert {len(pieces.token_id) for pieces in captured.pieces} == {len(items[2].layout)}
