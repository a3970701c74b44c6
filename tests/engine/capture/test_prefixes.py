"""Prompts behind a prefix that was run once: what is kept is what a full pass over each sample alone gives."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.capture.batch import BatchCapture, BatchItem
from engine.capture.forward import capture_batch
from engine.capture.prefixes import capture_prefixes, prefix_runs
from engine.capture.probe import Probe
from engine.models.load import LoadedModel
from engine.vocabulary import ROLE_CODES
from tests.engine.capture.test_attention import EVERYTHING, SHAPES, biased
from tests.engine.capture.test_forward import ALL_LAYERS, loaded_model, make_item
from tests.engine.capture.test_lens import lens_of

QUERIES = ("last_text", "last_image", "preamble:0", "instruction:1", "instruction:-1", "target:0")
ALL = EVERYTHING._replace(queries=QUERIES, pooled=True, lens_layers=ALL_LAYERS)
TOLERANCE = {"float32": 2e-5, "float16": 3e-2, "bfloat16": 2e-1}
NAN = 500


def samples() -> list[BatchItem]:
    """Seven samples of three images, whose prefixes are of two lengths; one sample has nothing behind its own."""
    items = []
    for image, (prefix, lengths) in enumerate(((18, (4, 7, 5)), (21, (6, 9)), (21, (3, 8)))):
        first = make_item(image, lengths[0])
        for number, length in enumerate(lengths):
            item = make_item(10 * image + number, length)
            item.layout.token_id[:prefix] = first.layout.token_id[:prefix]
            item.layout.role[18:prefix] = ROLE_CODES["instruction"]
            items.append(item._replace(image=image, prefix=prefix, pixel_values=first.pixel_values))
    return items


def two_stages(
    loaded: LoadedModel, items: Sequence[BatchItem], probe: Probe, size: int
) -> tuple[list[BatchCapture], tuple[str | None, ...]]:
    prefixes = capture_prefixes(loaded, items, probe, pad_id=0)
    assert prefixes is not None
    lens = lens_of(loaded) if probe.lens_layers else None
    captured: list[BatchCapture] = []
    images_kept: set[int] = set()
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        options = {"pad_id": 0, "lens": lens, "images_kept": images_kept, "prefixes": prefixes}
        captured.append(capture_batch(loaded, batch, probe, **options))
        images_kept |= {
            item.image for item, problem in zip(batch, captured[-1].problems, strict=True) if problem is None
        }
    return captured, tuple(problem for capture in captured for problem in capture.problems)


def alone(loaded: LoadedModel, item: BatchItem, probe: Probe) -> BatchCapture:
    lens = lens_of(loaded) if probe.lens_layers else None
    return capture_batch(loaded, [item._replace(prefix=0)], probe, pad_id=0, lens=lens)


def check_same(
    captured: Sequence[BatchCapture], singles: Sequence[BatchCapture], tolerance: float, probe: Probe
) -> None:
    """All kept rows, against those of usable samples that were run alone."""
    kept = [tokens for capture in captured for tokens in capture.kept]
    usable = [(single, torch.from_numpy(tokens)) for single, tokens in zip(singles, kept, strict=True) if tokens.any()]

    def check(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], name: str) -> None:
        one, other = torch.cat(list(mine)).float(), torch.cat(list(theirs)).float()
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.isfinite(one).any(), name
        scale = other.nan_to_num().abs().max()
        assert float((one - other).nan_to_num().abs().max() / scale) <= tolerance, name

    for layer in range(len(probe.token_layers)):
        check([c.states[layer] for c in captured], [s.states[layer][rows] for s, rows in usable], f"layer {layer}")
        logits = [s.pieces[layer].logit[rows] for s, rows in usable]
        check([c.pieces[layer].logit for c in captured], logits, f"lens of layer {layer}")
    for name in ("attention", "attention_norm", "value_norm", "attention_mass", "attention_output", "mlp_output"):
        group = "key" if name in ("attention", "attention_norm") else "token"
        for index in range(len(probe.blocks)):
            mine = [getattr(c.block_rows, group)[name][index] for c in captured]
            theirs = [(getattr(s.block_rows, group)[name][index], rows) for s, rows in usable]
            check(mine, [own if group == "key" else own[rows] for own, rows in theirs], f"{name} {index}")
    for name in ("unit_mean", "mean", "normed_unit_mean"):
        arrays = ([getattr(c.pooled, name) for c in of] for of in (captured, [single for single, _ in usable]))
        mine, theirs = ([torch.from_numpy(np.moveaxis(a, -2, 0)) for a in found] for found in arrays)
        check(mine, theirs, name)
    counts = ([c.pooled.token_count for c in of] for of in (captured, [single for single, _ in usable]))
    np.testing.assert_array_equal(*(np.concatenate(list(found), axis=1) for found in counts))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "size"), [("sdpa", 3), ("eager", 2)])
def test_every_capture_is_that_of_full_passes(kernel: str, size: int, shape: str, dtype: str) -> None:
    loaded = biased(loaded_model(dtype, SHAPES[shape]))
    loaded.model.set_attn_implementation(kernel)
    items = samples()
    captured, problems = two_stages(loaded, items, ALL, size)
    assert problems == (None,) * len(items)
    check_same(captured, [alone(loaded, item, ALL) for item in items], TOLERANCE[dtype], ALL)
    kept = [int(tokens.sum()) for capture in captured for tokens in capture.kept]
    first = [items[index - 1].image != item.image for index, item in enumerate(items)]
    assert kept == [
        len(item.layout) - (0 if is_first else item.prefix) for item, is_first in zip(items, first, strict=True)
    ]


def test_a_prefix_goes_through_the_model_once() -> None:
    loaded = loaded_model()
    items = samples()
    positions: list[tuple[int, ...]] = []
    pixels: list[int] = []
    loaded.language.blocks[0].register_forward_hook(lambda _m, arguments, _o: positions.append(arguments[0].shape[:2]))
    loaded.model.model.vision_tower.register_forward_pre_hook(
        lambda _m, arguments, keywords: pixels.append(len((*arguments, *keywords.values())[0])), with_kwargs=True
    )
    two_stages(loaded, items, ALL, 4)
    # Three prefixes padded to 21; then up to 7 tokens of the first four samples, and up to 6 of the others.
    assert positions == [(3, 21), (4, 7), (3, 6)]
    assert pixels == [3]


@pytest.mark.parametrize("size", [2, 7])
def test_what_is_not_finite_in_a_prompt_spares_the_prefix_and_the_other_prompts(size: int) -> None:
    loaded = loaded_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[NAN] = torch.nan
    items = samples()
    for index in (0, 3):  # the first sample of two images
        items[index].layout.token_id[-1] = NAN
    captured, problems = two_stages(loaded, items, ALL, size)
    assert [problem is None for problem in problems] == [False, True, True, False, True, True, True]
    place = len(items[0].layout) - 1
    assert problems[0] == f"layer 0, position {place} holds NaN or Inf"
    check_same(captured, [alone(loaded, item, ALL) for item in items], 2e-5, ALL)
    kept = [int(tokens.sum()) for capture in captured for tokens in capture.kept]
    assert kept == [0, 25, 5, 0, 27, 21, 5]


@pytest.mark.parametrize("size", [3, 7])
def test_what_is_not_finite_in_a_prefix_makes_all_samples_of_its_image_bad(size: int) -> None:
    loaded = loaded_model()
    items = samples()
    spoiled = items[0].pixel_values.clone()
    spoiled[0, 0, 0, 0] = torch.nan
    items = [item._replace(pixel_values=spoiled) if item.image == 0 else item for item in items]
    captured, problems = two_stages(loaded, items, ALL, size)
    assert [problem is None for problem in problems] == [item.image != 0 for item in items]
    assert set(problems[:3]) == {"layer 0, position 2 holds NaN or Inf"}
    usable = [capture for capture in captured if any(problem is None for problem in capture.problems)]
    kept = [tokens for capture in usable for tokens in capture.kept if tokens.any()]
    singles = [alone(loaded, item, ALL) for item in items if item.image != 0]
    check_same(
        [replace(capture, kept=()) for capture in usable[:-1]] + [replace(usable[-1], kept=tuple(kept))],
        singles,
        2e-5,
        ALL,
    )


def test_fewer_layers_roles_and_blocks_are_kept_as_in_a_full_pass() -> None:
    loaded = loaded_model()
    items = [item._replace(wanted=item.layout.role != ROLE_CODES["special"]) for item in samples()]
    probe = ALL._replace(
        layers=(1, 3, 4),
        residual_layers=(3, 4),
        lens_layers=(4,),
        tensor_roles={"residual": ("image",), "lens": ("instruction",), "attention-mass": ("image", "template")},
        tensor_blocks={"attention": (2,), "mlp-output": (1, 4)},
    )
    full = capture_batch(loaded, items, probe, pad_id=0, lens=lens_of(loaded))
    (mine,), problems = two_stages(loaded, items, probe, len(items))
    assert problems == full.problems
    pairs = [*zip(mine.states, full.states, strict=True)]
    pairs += [(one.logit, other.logit) for one, other in zip(mine.pieces, full.pieces, strict=True)]
    for group in ("key", "token"):
        for name, blocks in getattr(full.block_rows, group).items():
            pairs += zip(getattr(mine.block_rows, group)[name], blocks, strict=True)
    assert len(pairs) == 2 + 1 + 3 + 4 + 4 + 2
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_queries_behind_the_prefix_alone_are_captured_too() -> None:
    loaded = loaded_model()
    probe = ALL._replace(queries=("last_text",), lens_layers=())
    full = capture_batch(loaded, samples(), probe, pad_id=0)
    (mine,), _ = two_stages(loaded, samples(), probe, 7)
    assert mine.block_rows is not None
    assert full.block_rows is not None
    for one, other in zip(mine.block_rows.key["attention"], full.block_rows.key["attention"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_image_that_is_not_all_within_its_prefix_is_run_in_full() -> None:
    items = samples()
    assert [run.stop for run in prefix_runs(items) or ()] == [18, 21, 20]
    assert prefix_runs([item._replace(prefix=17) for item in items]) is None
    assert prefix_runs([item._replace(prefix=0) for item in items]) is None
