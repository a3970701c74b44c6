"""What `run` writes, what it refuses, and how it stands beside the other analyses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from numpy.typing import NDArray

from analyses.lens_layers import choose_layers, spread_layers
from analyses.logit_lens_notes import certified_percent
from analyses.logit_lens_words_table import WORDS
from analyses.memory import PROCESS_BYTES
from analyses.registry import ANALYSES, options_of, run
from engine.errors import StrataError, UsageError
from tests.analyses.attention_builders import Spec
from tests.analyses.lens_builders import (
    CAPTIONS,
    PIECES,
    SHARE,
    WORD_NAMES,
    LensModelSpec,
    analyse,
    lens_samples,
    without_share,
    write_lens,
)
from tests.engine.store.builders import TinyStore, tiny_store

WrittenStore = Callable[..., TinyStore]
USE: dict[str, Any] = {"workers": 1, "memory": 2 * 2**30, "bootstraps": 5}
GRID = ((2, 2, False),)
SPECS = [
    Spec("a", "normal-1", "spiiiinnt", GRID),
    Spec("a", "noisy-1", "spiiiint", GRID),
    Spec("b", "normal-1", "spiiiinnt", GRID, part=1),
]


def figures(name: str) -> set[str]:
    return {f"{name}.png", f"{name}.svg"}


TABLES = {"logit-lens.zarr", "logit-lens.parquet", "logit-lens-words.parquet"}
NAMES = TABLES | figures("logit-lens") | figures("logit-lens-patches")
TRAJECTORY = {"logit-lens-trajectory.parquet"} | figures("logit-lens-trajectory")


def lens(store: Path, out: Path, **options: Any) -> set[str]:
    return {path.name for path in run("logit-lens", [str(store)], out, **{**USE, **options})}


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    store, out = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS)), tmp_path / "r"
    assert lens(store, out, trajectory=True) == NAMES | TRAJECTORY
    found = analyse(store, tmp_path / "kept", trajectory=True)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "logit-lens.parquet"), found.scores)
    words = pd.read_parquet(out / "logit-lens-words.parquet").astype(dict.fromkeys(WORD_NAMES, str))
    pd.testing.assert_frame_equal(words, found.words, check_categorical=False)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "logit-lens-trajectory.parquet"), found.trajectory)
    stored = xr.open_zarr(out / "logit-lens.zarr").load()
    for name in found.dataset.data_vars:
        if not str(name).endswith(("_low", "_high")):  # other bootstraps
            np.testing.assert_array_equal(stored[name], found.dataset[name])
    assert stored.attrs["analysis"] == "logit-lens"
    columns = ["store", "model", "source", "prompt_kind", "prompt_id"]
    for path in out.glob("*.parquet"):
        assert pq.read_schema(path).names[:5] == columns


def test_without_captions_words_stay_and_scores_are_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), captions={"a": CAPTIONS["a"]})
    assert lens(store, tmp_path / "r", notify=notes.append) == NAMES
    assert without_share(notes) == ["s, normal: 1 of 2 samples have no captions, so no precision and no recall"]
    table = pd.read_parquet(tmp_path / "r" / "logit-lens.parquet")
    missing = table["image_id"] == "b"
    for name in ("precision", "recall", "decoded", "correct", "recalled", "references"):
        assert table[name].isna().eq(missing).all()
    assert not table["agreement"].isna().any()
    words = pd.read_parquet(tmp_path / "r" / "logit-lens-words.parquet")
    assert words.groupby("sample_id", observed=True).size().nunique() == 1
    images = {name: [1, 1] for name in ("precision", "recall")} | {"agreement": [2, 1]}
    assert images_of(tmp_path / "r") == images
    none = write_lens(tmp_path / "n", SPECS, lens_samples(SPECS), captions={})
    assert lens(none, tmp_path / "q") == NAMES
    assert images_of(tmp_path / "q") == {"precision": [0, 0], "recall": [0, 0], "agreement": [2, 1]}
    means = xr.open_zarr(tmp_path / "q" / "logit-lens.zarr")
    assert means["precision_mean"].isnull().all()
    assert means["agreement_mean"].notnull().all()


def images_of(results: Path) -> dict[str, list[int]]:
    dataset = xr.open_zarr(results / "logit-lens.zarr")
    return {name: dataset[f"{name}_images"].values.tolist() for name in ("precision", "recall", "agreement")}


def test_how_many_tokens_the_screen_decided_is_told_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.lens_unembedding.fast_int8_products", lambda: None)
    samples = lens_samples(SPECS)
    samples["b/normal-1"].states[1, 2:6] = 0  # of zeros all logits are equal, which takes no product to know
    notes: list[str] = []
    plain = write_lens(tmp_path / "s", SPECS, samples)
    stored = write_lens(tmp_path / "t", SPECS, samples, stored_pieces=2)
    run("logit-lens", [str(plain), str(stored)], tmp_path / "r", **USE, topk=2, notify=notes.append)
    assert [note for note in notes if SHARE in note] == [
        "s: certified: the screen decided 8.3 % of image tokens and layers, the others took the exact path; the pieces "
        "are the same"
    ]
    attributes = xr.open_zarr(tmp_path / "r" / "logit-lens.zarr").attrs
    assert json.loads(attributes["certified_share"]) == {"s": pytest.approx(4 / (3 * 4 * 4)), "t": None}


@pytest.mark.parametrize(("share", "shown"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.5, "50 %"), (0.0, "0 %")])
def test_a_share_below_one_is_never_shown_as_all(share: float, shown: str) -> None:
    assert certified_percent(share) == shown


def test_a_store_without_what_it_needs_is_refused_and_all_leaves_it_out(tmp_path: Path) -> None:
    plain = tiny_store(tmp_path / "plain", layers=9, unembedding=False).path
    with pytest.raises(UsageError, match=r"no unembedding.*--no-unembedding.*--capture lens --lens-topk 5"):
        lens(plain, tmp_path / "r")
    notes: list[str] = []
    written = {path.name for path in run("all", [str(plain)], tmp_path / "all", notify=notes.append, **USE)}
    assert "contextualization.zarr" in written
    assert not written & NAMES
    assert any(
        note == f"logit-lens is left out: {plain} holds no token/lens_token_id and no token/hidden_states with "
        "model/unembedding"
        for note in notes
    )
    pooled = tiny_store(tmp_path / "pooled", residual=False).path
    with pytest.raises(UsageError, match=r"neither pieces nor hidden states, it captured pooled.*--capture residual"):
        lens(pooled, tmp_path / "r")
    text = tiny_store(tmp_path / "text", roles=("instruction", "template")).path
    with pytest.raises(UsageError, match=r"no image tokens, only tokens of instruction, template"):
        lens(text, tmp_path / "r")


def test_wrong_choices_are_refused_with_what_there_is(tmp_path: Path) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), stored_pieces=2)
    plain = write_lens(tmp_path / "plain", SPECS, lens_samples(SPECS))
    alone = write_lens(tmp_path / "alone", SPECS, lens_samples(SPECS), stored_pieces=2, residual=False)
    first = write_lens(tmp_path / "first", SPECS, lens_samples(SPECS), blocks=7)
    for path, options, message in (
        (store, {"topk": 0}, "--topk 0: at least one"),
        (store, {"topk": 5, "source": "lens"}, "holds 2 pieces per token, --topk 5.*lower --topk to 2"),
        (alone, {"topk": 5}, r"2 pieces per token \(leave --source out, --topk at most 2\), but no hidden states"),
        (plain, {"source": "lens"}, "holds no token/lens_token_id: leave --source out"),
        (plain, {"source": "pooled"}, "--source pooled: choose from auto, lens, hidden_states"),
        (plain, {"words": "most"}, "--words most: choose from all, top1, none"),
        (plain, {"bootstraps": 0}, "--bootstraps 0: at least 1"),
        (plain, {"layers": ("9",)}, "--layers 9: no such layer is there; there are 0, 1, 2, 3"),
        (plain, {"layers": ("x",)}, "--layers 'x' is neither a layer nor a range"),
        (plain, {"layers": ("0:2",), "figure_layers": ("3",)}, "--figure-layers 3: no such layer .* are 0, 1"),
        (plain, {"image": "z"}, "--image z: no committed sample"),
        (alone, {"topk": 2, "trajectory": True}, "--trajectory needs all logits"),
        (first, {"trajectory": True}, "does not hold layer 7, the last, from which --trajectory measures"),
        (plain, {"memory": PROCESS_BYTES}, r"--memory .* is too small: .* for the unembedding.*Raise --memory to"),
    ):
        with pytest.raises(UsageError, match=message):
            lens(path, tmp_path / "r", **options)  # type: ignore[arg-type]
    assert not list((tmp_path / "r").glob("*"))


def test_tables_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    fewer = write_lens(tmp_path / "fewer", SPECS, lens_samples(SPECS), pieces=PIECES[:-2])
    with pytest.raises(StrataError, match=r"unembedding of 19 rows of 12 numbers, a vocabulary of 17 pieces.*verify"):
        lens(fewer, tmp_path / "r")
    none = write_lens(tmp_path / "none", SPECS, lens_samples(SPECS), pieces=["<s>"] * len(PIECES))
    with pytest.raises(StrataError, match=r"none of the 19 pieces of the vocabulary .* is a normal one"):
        lens(none, tmp_path / "r")


def test_a_state_that_is_not_finite_is_named(tmp_path: Path) -> None:
    samples = lens_samples(SPECS)
    samples["b/normal-1"].states[2, 4, 3] = np.nan
    store = write_lens(tmp_path / "s", SPECS, samples)
    with pytest.raises(StrataError, match=r"b/normal-1, layer 2, position 4 is not finite, it holds nan.*verify"):
        lens(store, tmp_path / "r")


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_state_too_large_for_the_norm_is_named_with_its_norm_and_not_decoded_as_zeros(
    tmp_path: Path, kind: str
) -> None:
    samples = lens_samples(SPECS)
    samples["b/normal-1"].states[2, 4, :2] = (1.9e19, -1e19)
    store = write_lens(tmp_path / "s", SPECS, samples, LensModelSpec(kind))
    place = r"sample b/normal-1, layer 2, position 4 is too large for the final norm: its norm is 2\.147e\+19, "
    with pytest.raises(StrataError, match=place + r"float32 takes 1\.84e\+19 at most.*`strata verify`"):
        lens(store, tmp_path / "r")
    samples["b/normal-1"].states[2, 4, :2] = (1.8e19, 0)
    lens(write_lens(tmp_path / "t", SPECS, samples, LensModelSpec(kind)), tmp_path / "q")
    words = pd.read_parquet(tmp_path / "q" / "logit-lens-words.parquet")
    own = words[(words["sample_id"] == "b/normal-1") & (words["layer"] == 2) & (words["position"] == 4)]
    ids, logits = LensModelSpec(kind).best(samples["b/normal-1"].states[2, 4], len(own))
    assert own["token_id"].tolist() == ids.tolist()
    np.testing.assert_allclose(own["logit"], logits, rtol=1e-4)


def test_words_may_be_limited_or_left_out(tmp_path: Path) -> None:
    assert tuple(WORDS) == next(option.choices for option in ANALYSES["logit-lens"].options if option.name == "words")
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS))
    tables = {}
    for words in ("all", "top1"):
        assert lens(store, tmp_path / words, words=words) == NAMES
        tables[words] = pd.read_parquet(tmp_path / words / "logit-lens-words.parquet")
    best = tables["all"][tables["all"]["rank"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(tables["top1"], best, check_categorical=False)
    assert lens(store, tmp_path / "none", words="none") == NAMES - {"logit-lens-words.parquet"}


class _HugeNorm(LensModelSpec):
    @property
    def weight(self) -> NDArray[np.float32]:
        return super().weight * np.float32(1e37)


def test_a_state_whose_logits_overflow_is_named(tmp_path: Path) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), _HugeNorm())
    place = r"part (00000000, sample a|00000001, sample b)/normal-1, layer 0, position 2 is so large"
    with pytest.raises(StrataError, match=place + r".*`strata verify`"):
        lens(store, tmp_path / "r")


class _HugeLogits(_HugeNorm):
    @property
    def unembedding(self) -> NDArray[np.floating]:
        return super().unembedding * np.float32(1e4)

    def best(self, states: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids, _ = super().best(states, k)
        return ids, np.zeros(ids.shape)


def test_a_state_that_has_no_distribution_is_named(tmp_path: Path) -> None:
    """Pieces are read, so that the trajectory is the first to meet the logits that overflow."""
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), _HugeLogits(), stored_pieces=2)
    place = (
        r"part (00000000, sample a|00000001, sample b)/normal-1, layer \d, position \d has logits that are not finite"
    )
    with pytest.raises(StrataError, match=place + r".*`strata verify`"):
        lens(store, tmp_path / "r", topk=2, trajectory=True)


def test_a_store_of_too_few_pieces_says_what_to_ask_for(tmp_path: Path) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), stored_pieces=2)
    notes: list[str] = []
    lens(store, tmp_path / "r", topk=3, notify=notes.append)
    assert [note for note in without_share(notes) if "pieces" in note] == [
        "s: its stored pieces are too few (2 pieces per token where --topk 3 are asked for), so pieces are decoded "
        "from hidden states; --topk 2 takes the stored ones"
    ]
    notes.clear()
    lens(store, tmp_path / "r", topk=3, source="hidden_states", notify=notes.append)
    assert not [note for note in without_share(notes) if "pieces" in note]


def test_pieces_that_were_not_stored_for_image_tokens_are_refused(tmp_path: Path) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), stored_pieces=2, pieces_of="instruction")
    with pytest.raises(StrataError, match=r"lens_token_id of part 0000000\d .* lacks pieces of image tokens"):
        lens(store, tmp_path / "r", topk=2)


def test_samples_without_image_tokens_decode_nothing_and_are_counted(tmp_path: Path) -> None:
    specs = [*SPECS, Spec("c", "normal-1", "snnt", part=1)]
    notes: list[str] = []
    table, words, *_ = analyse(
        write_lens(tmp_path / "s", specs, lens_samples(specs)), tmp_path / "r", notify=notes.append
    )
    assert without_share(notes) == [
        "s: 1 of 4 samples have no image token and decode nothing",
        "s, normal: at 1 of 4 layers some samples decode no word, most at layer 1 (1 of 3 samples); their precision "
        "counts as 0 there",
    ]
    best = words[words["rank"] == 1].groupby(["layer", "sample_id"], observed=True)["piece"].agg(set)
    ((layer, sample),) = [place for place, pieces in best.items() if pieces <= {"▁a", "▁the", "\t", "▁"}]
    assert (layer, sample.partition("/")[2]) == (1, "normal-1")
    own = table[table["image_id"] == "c"]
    assert own["decoded"].eq(0).all()
    assert own["precision"].eq(0).all()
    assert own["agreement"].isna().all()
    assert not words["sample_id"].eq("c/normal-1").any()


def test_more_pieces_than_the_vocabulary_has_are_all_of_them(tmp_path: Path) -> None:
    notes: list[str] = []
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS))
    _, words, *_ = analyse(store, tmp_path / "r", topk=99, notify=notes.append)
    assert words["rank"].max() == 14
    assert "s: its vocabulary has 14 pieces, so --topk 99 is all" in notes


def test_last_text_is_unknown_where_roles_were_left_out(written_store: WrittenStore, tmp_path: Path) -> None:
    store = written_store(roles=("image", "instruction"), prompts=1).path
    notes: list[str] = []
    table = analyse(store, tmp_path, trajectory=True, notify=notes.append).trajectory
    assert table.loc[table["what"] == "last_text", ["entropy", "kl"]].isna().all(axis=None)
    assert not table.loc[table["what"] == "image", ["entropy", "kl"]].isna().any(axis=None)
    assert "store: the last text token of 3 of 3 samples is not stored, so its trajectory is NaN" in notes


def test_all_runs_it_and_takes_a_source_that_any_analysis_knows(written_store: WrittenStore, tmp_path: Path) -> None:
    store = str(written_store(layers=9).path)
    (source,) = (option for option in options_of("all") if option.name == "source")
    assert source.choices == ("auto", "pooled", "hidden_states", "lens")
    written = {path.name for path in run("all", [store], tmp_path / "r", source="pooled", **USE)}
    assert written >= NAMES | {"phases.zarr"}
    with pytest.raises(UsageError, match="source"):
        run("all", [store], tmp_path / "q", source="fast", **USE)
    assert list(ANALYSES)[-1] == "logit-lens"


def test_an_image_that_has_tiles_alone_is_not_drawn(tmp_path: Path) -> None:
    specs = [*SPECS, Spec("c", "normal-1", "spiiiinnt", ((1, 2, False), (1, 2, False)), part=1)]
    notes: list[str] = []
    store = write_lens(tmp_path / "s", specs, lens_samples(specs))
    assert lens(store, tmp_path / "r", image="c", notify=notes.append) == TABLES | figures("logit-lens")
    assert "no grid shows the whole of image c, so its patches are not drawn: choose another --image" in notes


def test_layers_are_numbers_and_ranges_of_what_is_stored() -> None:
    stored = (0, 4, 8, 9, 12)
    assert choose_layers(stored, (), "--layers") == stored
    assert choose_layers(stored, ("8", "0:5", "4"), "--layers") == (0, 4, 8)
    assert choose_layers(stored, ("::4",), "--layers") == (0, 4, 8, 12)
    assert choose_layers(stored, ("9:",), "--layers") == (9, 12)
    for wrong in ("", "a", "1:2:3:4", "0:9:0", "5"):
        with pytest.raises(UsageError, match="--layers"):
            choose_layers(stored, (wrong,), "--layers")
    assert spread_layers(range(33), 6) == (0, 6, 13, 19, 26, 32)
    assert spread_layers(stored, 9) == stored
