"""Every tensor of the format against a fresh part of one sample: what agrees, what is named and where."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.audit.stored import StoredSample
from engine.audit.tensors import ComparedSample, compare_sample, name_place, rounding_allowance
from engine.audit.verdict import find_worst
from engine.store import PartContent, open_store
from engine.store.dtypes import round_mantissa, round_to_dtype
from tests.engine.store.builders import TinySample, TinyStore, tiny_part, tiny_store
from tests.engine.store.kept_roles import keep_roles
from tests.engine.store.tiny_norm import TinyNorm

CAPTURE = ("attention", "attention-mass", "attention-output", "mlp-output")
QUERIES = ("last_text", "last_image", "instruction:9")
TENSORS = {
    "token/hidden_states": ("layer", "token", "dim"),
    "sample/unit_mean": ("layer", "role", "sample", "dim"),
    "sample/normed_unit_mean": ("role", "sample", "dim"),
    "key/attention": ("block", "query", "head", "key"),
    "key/attention_norm": ("block", "query", "key"),
    "token/value_norm": ("block", "token", "head"),
    "token/attention_mass": ("block", "head", "token", "source_role"),
    "token/mlp_output": ("block", "token", "dim"),
}


def written(path: Path, roles: Sequence[str] | None = None) -> TinyStore:
    return tiny_store(path, dtype="float32", capture=CAPTURE, queries=QUERIES, roles=roles)


def single(store: TinyStore, sample: TinySample, roles: Sequence[str] | None = None) -> PartContent:
    """What a fresh pass over one sample gives, if it gives what was stored."""
    content = tiny_part(
        0,
        [sample],
        layers=store.layers,
        dim=sample.states.shape[-1],
        dtype="float32",
        norm=TinyNorm(store.norm_weight),
        capture=CAPTURE,
        like=sample.blocks,
    )
    return content if roles is None else keep_roles(content, roles)


def stored_samples(store: TinyStore) -> dict[str, StoredSample]:
    parts = open_store(store.path).parts
    return {
        row.sample_id: StoredSample(part, number)
        for part in parts
        for number, row in enumerate(part.samples.itertuples())
    }


@pytest.mark.parametrize("roles", [None, ("image", "instruction"), ("template",)])
def test_every_tensor_of_every_sample_agrees_with_itself(tmp_path: Path, roles: Sequence[str] | None) -> None:
    store = written(tmp_path / "store", roles)
    for sample_id, stored in stored_samples(store).items():
        fresh = single(store, store.samples[sample_id], roles)
        compared = compare_sample(stored, fresh, [fresh])
        assert compared.mismatches == ()
        assert compared.same_tokens
        assert {path: compared.dims[path] for path in TENSORS} == TENSORS
        for path, deviations in compared.deviations.items():
            assert deviations.difference.ndim == len(compared.dims[path]) - 1
            assert deviations.difference.max() == 0
            assert deviations.angle.max() == 0


def spoil(content: PartContent, path: str, index: tuple[int, ...], by: float = 0.5) -> PartContent:
    """Change one value of a fresh part."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index[1:]] += by
        return values

    arrays = [
        replace(one, slab=lambda at, one=one: change(one.slab(at)) if at == index[0] else one.slab(at))
        if one.path == path
        else one
        for one in content.arrays
    ]
    return replace(content, arrays=tuple(arrays))


@pytest.mark.parametrize(
    ("path", "index", "place"),
    [
        ("token/hidden_states", (3, 7, 2), "layer 3, position 7 (instruction), dim 2"),
        ("sample/mean", (1, 2, 0, 5), "layer 1, role image, dim 5"),
        ("sample/normed_unit_mean", (4, 0, 1), "role template, dim 1"),
        ("key/attention", (1, 1, 0, 3), "block 2, query last_image, head 0, key position 3"),
        ("key/attention_norm", (0, 0, 6), "block 1, query last_text, key position 6"),
        ("token/value_norm", (3, 1, 4), "block 4, position 4 (image), head 1"),
        ("token/attention_mass", (2, 1, 5, 2), "block 3, head 1, position 5 (image), source role image"),
        ("token/attention_output", (0, 1, 9), "block 1, position 1 (preamble), dim 9"),
    ],
)
def test_one_other_value_is_found_and_named(tmp_path: Path, path: str, index: tuple[int, ...], place: str) -> None:
    store = written(tmp_path / "store")
    sample_id, stored = list(stored_samples(store).items())[1]
    fresh = single(store, store.samples[sample_id])
    compared = compare_sample(stored, spoil(fresh, path, index), [spoil(fresh, path, index)])
    assert compared.mismatches == ()
    for name, deviations in compared.deviations.items():
        worst = find_worst([deviations], 1e-6)
        assert worst is not None
        assert worst.passed is (name != path)
        if name == path:
            assert name_place(path, compared.dims[path], (*worst.index, worst.at), compared) == place


def compare_two(store: TinyStore, stored: str, fresh: str) -> ComparedSample:
    content = single(store, store.samples[fresh])
    return compare_sample(stored_samples(store)[stored], content, [content])


def test_another_sample_differs_in_tokens_queries_and_prompt(tmp_path: Path) -> None:
    store = written(tmp_path / "store")
    compared = compare_two(store, "000/normal-1", "000/normal-2")
    assert not compared.same_tokens
    said = "\n".join(compared.mismatches)
    assert "token/token_id: 9 tokens stored, 10 in a fresh pass" in said
    assert "key/token: 9 positions stored, 10 in a fresh pass" in said
    assert "query_positions: the sample table says [8, 5, -1], a fresh pass [9, 5, -1]" in said
    assert "prompt: the sample table says 'Describe normal-1.'" in said
    assert set(compared.deviations) == {"sample/unit_mean", "sample/mean", "sample/normed_unit_mean"}


def test_tensors_that_only_one_side_has_are_named(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", dtype="float32")
    sample_id, stored = next(iter(stored_samples(store).items()))
    fresh = single(store, store.samples[sample_id])
    said = compare_sample(stored, fresh, [fresh]).mismatches
    assert "key/attention: is not stored" in said
    assert "key/token is not stored" in said
    layers = replace(store, layers=store.layers[:3])
    fewer = replace(store.samples[sample_id], states=store.samples[sample_id].states[:3])
    short = single(layers, fewer)
    said = compare_sample(stored, short, [short]).mismatches
    assert any(text.startswith("token/hidden_states: stored as {'layer': 5,") for text in said)
    assert "token/layer: 5 entries stored, 3 in a fresh pass" in said


def test_rounding_allows_the_smaller_of_both_recorded_errors() -> None:
    attributes = {"rounding_max_relative_error": 0.25, "rounding_max_absolute_error": 1.0, "mantissa_bits": 1}
    entry = {"dtype": "float32", "attributes": attributes}
    np.testing.assert_allclose(rounding_allowance(entry, np.array([0.0, 2.0, 100.0])), [0.0, 0.5, 1.0], atol=1e-30)
    assert rounding_allowance({"dtype": "float32", "attributes": {"units": "1"}}, np.ones(3)) == 0.0


@pytest.mark.parametrize("bits", [None, 3])
def test_rounding_of_numbers_too_small_for_float16_excuses_no_others(bits: int | None) -> None:
    captured = np.array([1e-9, 3e-8, 1e-6, 5e-5, 1e-3, 0.3, 700.0], np.float32)
    rounded = round_to_dtype(captured, "float16", "token/x")
    roundings = [rounded, *([] if bits is None else [round_mantissa(rounded.values, bits)])]
    attributes = {
        "rounding_max_relative_error": sum(rounding.max_relative_error for rounding in roundings),
        "rounding_max_absolute_error": sum(rounding.max_absolute_error for rounding in roundings),
        **({} if bits is None else {"mantissa_bits": bits}),
    }
    assert attributes["rounding_max_relative_error"] >= 1
    allowed = rounding_allowance({"dtype": "float16", "attributes": attributes}, captured.astype(np.float64))
    assert (np.abs(roundings[-1].values.astype(np.float64) - captured) <= allowed).all()
    assert (allowed[4:] <= captured[4:] * (2**-10 if bits is None else 2**-3)).all()
