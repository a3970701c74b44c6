import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from analyses import state_sums
from analyses.contextualization import Contextualization, analyze_store
from analyses.resources import Resources
from engine.errors import StrataError, UsageError
from engine.store import Part, layout, open_store
from engine.store.manifest import hash_file, seal_json
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import TinySample, TinyStore, tiny_store
from tests.engine.store.tiny_norm import NORM_EPS

WrittenStore = Callable[..., TinyStore]


def oracle(
    states: NDArray[np.floating], roles: NDArray[np.integer], pair: str, text_roles: list[str], self_pairs: bool
) -> float:
    """Mean over the full pair matrix of one sample and layer, in float64."""
    sets = {"image": roles == ROLE_CODES["image"], "text": np.isin(roles, [ROLE_CODES[role] for role in text_roles])}
    a, b = pair.split("-")
    exact = states.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    matrix = exact[sets[a]] @ exact[sets[b]].T
    if a == b and not self_pairs:
        matrix = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(matrix.mean()) if matrix.size else float("nan")


def normed_states(tiny: TinyStore, sample: TinySample) -> NDArray[np.float64]:
    last = sample.states[-1].astype(np.float64)
    return last / np.sqrt(np.mean(last**2, axis=1, keepdims=True) + NORM_EPS) * tiny.norm_weight


def check_against_oracle(tiny: TinyStore, result: Contextualization, text_roles: list[str]) -> None:
    for s, sample_id in enumerate(result.samples["sample_id"]):
        sample = tiny.samples[sample_id]
        for r, (pair, self_pairs) in enumerate(result.rows):
            for layer in range(len(tiny.layers)):
                expected = oracle(sample.states[layer], sample.roles, pair, text_roles, self_pairs)
                np.testing.assert_allclose(result.cosine[s, layer, r], expected, atol=2e-6)
            assert result.normed is not None
            expected = oracle(normed_states(tiny, sample), sample.roles, pair, text_roles, self_pairs)
            np.testing.assert_allclose(result.normed[s, r], expected, atol=2e-6)


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16", "empty_parts": 1}, {"dtype": "float32", "shared_prefix": False}]
)
@pytest.mark.parametrize("source", ["pooled", "hidden_states"])
def test_every_pair_equals_the_full_matrix(written_store: WrittenStore, options: dict, source: str) -> None:
    tiny = written_store(**options)
    result = analyze_store(open_store(tiny.path), source=source, self_pairs=True)
    assert result.source == source
    assert sorted(result.samples["sample_id"]) == sorted(tiny.samples)
    check_against_oracle(tiny, result, ["instruction", "template"])


@pytest.mark.parametrize("source", ["pooled", "hidden_states"])
def test_text_roles_choose_the_text_set(written_store: WrittenStore, source: str) -> None:
    tiny = written_store()
    roles = ["special", "preamble", "instruction"]
    check_against_oracle(tiny, analyze_store(open_store(tiny.path), source=source, text_roles=roles), roles)
    one = analyze_store(open_store(tiny.path), source=source, text_roles=["preamble"])
    assert np.isnan(one.cosine[:, :, 2]).all()  # one token has no pair
    assert np.isfinite(one.cosine[:, :, :2]).all()
    none = analyze_store(open_store(tiny.path), source=source, text_roles=["target"])
    assert np.isnan(none.cosine[:, :, [0, 2]]).all()
    assert none.counts[:, 1].tolist() == [0] * len(tiny.samples)


def test_small_chunks_change_nothing_but_rounding(
    written_store: WrittenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = written_store()
    whole = {source: analyze_store(open_store(tiny.path), source=source) for source in ("pooled", "hidden_states")}
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 1)  # one token, one sample
    cut = tiny_store(tmp_path / "cut").path
    for source, expected in whole.items():
        got = analyze_store(open_store(cut), source=source)
        np.testing.assert_allclose(got.cosine, expected.cosine, atol=1e-6)
        assert got.normed is not None
        np.testing.assert_allclose(got.normed, expected.normed, atol=1e-6)


def test_the_final_norm_takes_a_chunk_in_pieces(written_store: WrittenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = written_store()
    monkeypatch.setattr(state_sums, "NORMED_AT_ONCE", 3)
    result = analyze_store(open_store(tiny.path), source="hidden_states", self_pairs=True)
    check_against_oracle(tiny, result, ["instruction", "template"])


def test_the_normed_row_needs_the_last_layer(written_store: WrittenStore) -> None:
    tiny = written_store(layers=(0, 2, 3), parts=1)
    assert analyze_store(open_store(tiny.path)).normed is not None
    store = open_store(tiny.path)
    store.record["model"]["blocks"] = 4
    assert analyze_store(store).normed is None


def test_the_source_is_chosen_by_what_is_there(written_store: WrittenStore) -> None:
    both, states, pooled = (
        open_store(written_store(**options).path) for options in ({}, {"pooled": False}, {"residual": False})
    )
    assert [analyze_store(store).source for store in (both, states, pooled)] == ["pooled", "hidden_states", "pooled"]
    np.testing.assert_allclose(analyze_store(states).cosine, analyze_store(pooled).cosine, atol=2e-6)
    with pytest.raises(UsageError, match="holds pooled, --source asks for hidden_states"):
        analyze_store(pooled, source="hidden_states")


def test_wrong_requests_name_the_choices(written_store: WrittenStore) -> None:
    store = open_store(written_store().path)
    with pytest.raises(UsageError, match="'image' is no role of text; choose from special, preamble"):
        analyze_store(store, text_roles=["image"])
    with pytest.raises(UsageError, match="--text-roles is empty"):
        analyze_store(store, text_roles=[])
    with pytest.raises(UsageError, match="--source fast: expected one of auto, pooled, hidden_states"):
        analyze_store(store, source="fast")


def test_a_store_without_samples_is_refused(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[])
    with pytest.raises(StrataError, match="holds no committed sample"):
        analyze_store(open_store(tiny.path))


def list_anew(part: Part) -> None:
    """Make a manifest true again after its arrays were changed."""
    parts = Path(part.url) / "parts"
    files = {name: hash_file(parts / name) for name in part.manifest["files"]}
    unsealed = {key: entry for key, entry in part.manifest.items() if key != "sha256"}
    (parts / f"{part.name}.json").write_bytes(seal_json({**unsealed, "files": files}))


@pytest.mark.parametrize(("value", "reason"), [(0.0, "a zero vector"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_state_without_direction_names_sample_layer_and_position(
    tmp_path: Path, written_store: WrittenStore, value: float, reason: str
) -> None:
    path = tmp_path / "store"
    shutil.copytree(written_store(parts=1).path, path)
    part = open_store(path).parts[0]
    where = path / "parts" / "00000000.zarr"
    states = zarr.open_group(where / "token", mode="r+", use_consolidated=False)["hidden_states"]
    segments = part.samples["segments"].iloc[3]
    states[2, segments[1]["start"] + 1] = value
    list_anew(part)
    expected = rf"sample 001/normal-2, layer 2, position 7 is {reason}"
    with pytest.raises(StrataError, match=expected):
        analyze_store(open_store(path), source="hidden_states")
    if not np.isfinite(value):
        pooled = zarr.open_group(where / "sample", mode="r+", use_consolidated=False)["unit_mean"]
        pooled[1, ROLE_CODES["image"], 2] = value
        list_anew(part)
        with pytest.raises(
            StrataError, match=r"sample 001/normal-1, layer 1: the pooled states of image are not finite"
        ):
            analyze_store(open_store(path), source="pooled")


def test_progress_counts_parts(written_store: WrittenStore) -> None:
    seen: list[tuple[int, int]] = []
    analyze_store(
        open_store(written_store(images=8, parts=8).path), resources=Resources(progress=lambda *now: seen.append(now))
    )
    assert seen == [(done, 8) for done in range(9)]


def test_workers_do_not_change_a_bit(written_store: WrittenStore) -> None:
    store = open_store(written_store(images=8, parts=8).path)
    one, four = (analyze_store(store, resources=Resources(workers=n), source="hidden_states") for n in (1, 4))
    np.testing.assert_array_equal(one.cosine, four.cosine)
    pd.testing.assert_frame_equal(one.samples, four.samples)
    assert one.rows == four.rows
