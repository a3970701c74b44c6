import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster

from analyses import logit_lens
from analyses.lens_scores import VARIANTS
from analyses.lens_task import LensTask
from analyses.part_lens import PartLens, part_lens
from engine.errors import StrataError
from tests.analyses.attention_builders import Spec
from tests.analyses.lens_builders import (
    CAPTIONS,
    NORMAL,
    PIECES,
    LensModelSpec,
    analyse,
    lens_samples,
    without_share,
    write_lens,
)

GRID = ((2, 2, False),)
SPECS = [
    Spec("a", "normal-1", "spiiiinnt", GRID),
    Spec("a", "normal-2", "spiiiinnnt", GRID),
    Spec("a", "noisy-1", "spiiiint", GRID),
    Spec("b", "normal-1", "spiiiinnt", GRID, part=1),
    Spec("b", "normal-2", "spiiiinnnt", GRID, part=1),
    Spec("c", "normal-1", "spiiiinnnnt", GRID, part=2),
    Spec("c", "noisy-1", "spiiiit", GRID, part=2),
]
MODELS = {
    "rms": LensModelSpec(),
    "one added to the weight, softcap": LensModelSpec(offset=1.0, softcap=3.0),
    "layer norm with bias": LensModelSpec(kind="layer", bias=True),
    "float16": LensModelSpec(dtype="float16"),
}


@pytest.mark.parametrize("name", MODELS)
def test_pieces_and_logits_are_those_of_the_definition(tmp_path: Path, name: str) -> None:
    model, samples = MODELS[name], lens_samples(SPECS)
    table = analyse(write_lens(tmp_path / "s", SPECS, samples, model), tmp_path / "r", topk=3).words
    assert len(table) == len(SPECS) * 4 * 4 * 3
    assert table["token_id"].isin(np.flatnonzero(NORMAL)).all()
    assert (table["piece"] == np.array(PIECES, object)[table["token_id"]]).all()
    for sample_id, own in table.groupby("sample_id"):
        sample = samples[str(sample_id)]
        ids, logits = model.best(sample.states[:, 2:6], 3)
        assert own["position"].tolist() == [position for _ in range(4) for position in range(2, 6) for _ in range(3)]
        np.testing.assert_array_equal(own["token_id"], ids.ravel())
        np.testing.assert_allclose(own["logit"], logits.ravel(), rtol=1e-5, atol=1e-5)


def test_rows_that_may_not_be_decoded_would_win(tmp_path: Path) -> None:
    """Without this, masking special, byte and padding ids could be missing unnoticed."""
    states = np.concatenate([sample.states[:, 2:6] for sample in lens_samples(SPECS).values()], axis=1)
    assert (~NORMAL[LensModelSpec().logits(states).argmax(-1)]).mean() > 0.5


def test_scores_agreement_and_counts_are_those_of_python_sets(tmp_path: Path) -> None:
    model, samples = LensModelSpec(), lens_samples(SPECS)
    table = analyse(write_lens(tmp_path / "s", SPECS, samples, model), tmp_path / "r").scores
    assert table["variant"].unique().tolist() == list(VARIANTS)
    assert len(table) == len(SPECS) * 4 * 3
    clean = {"▁red": "red", "▁circle": "circle", "dog": "dog", "▁gir": "gir", "affe": "affe", "▁Blue": "blue",
             "▁square,": "square", "▁$x$": "x", "▁草": "草", "▁dogs'": "dogs"}  # fmt: skip
    spoken = {"a": {"red", "circle", "giraffe"}, "b": {"blue", "dog", "square"}, "c": {"red", "dogs"}}
    for row in table.to_dict("records"):
        states = samples[row["sample_id"]].states[:, 2:6]
        best = model.best(states, 1)[0][:, :, 0]
        pieces = [PIECES[number] for number in best[row["layer"]]]
        own, said = [clean[piece] for piece in pieces if piece in clean], spoken[row["image_id"]]
        starts = {clean[piece] for piece in pieces if piece in clean and piece.startswith("▁")}
        if row["variant"] == "token":
            decoded, correct, recalled = len(own), sum(word in said for word in own), len(set(own) & said)
        elif row["variant"] == "unique":
            decoded, correct, recalled = len(set(own)), len(set(own) & said), len(set(own) & said)
        else:
            begins = {(w, s) for w in starts for s in said if s == w or (len(w) >= 3 and s.startswith(w))}
            decoded, correct, recalled = len(starts), len({w for w, _ in begins}), len({s for _, s in begins})
        assert (row["decoded"], row["correct"], row["recalled"]) == (decoded, correct, recalled), row
        assert row["references"] == len(said)
        assert row["precision"] == pytest.approx(correct / decoded if decoded else 0)
        assert row["recall"] == pytest.approx(recalled / len(said))
        assert row["agreement"] == pytest.approx((best[row["layer"]] == best[-1]).mean())
        assert row["depth"] == row["layer"] / 3
    assert table["correct"].gt(0).any()
    assert table["decoded"].gt(table["correct"]).any()


def test_curves_are_over_images_and_cases_without_words_are_counted(tmp_path: Path) -> None:
    captions = {**CAPTIONS, "b": ("the a of",)}
    notes: list[str] = []
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), captions=captions)
    table, _, _, dataset = analyse(store, tmp_path / "r", notify=notes.append)
    assert without_share(notes) == [
        "s, normal: the captions of 2 of 5 samples hold stop words only; their recall counts as 0"
    ]
    assert dataset["curve_prompt_kind"].values.tolist() == ["normal", "noisy"]
    assert dataset["nothing_referred"].values.tolist() == [2, 0]
    for curve, kind in enumerate(("normal", "noisy")):
        own = table[table["prompt_kind"] == kind]
        for name in ("precision", "recall", "agreement"):
            images = own.groupby(["variant", "layer", "image_id"])[name].mean().unstack()
            mean, std = dataset[f"{name}_mean"].isel(curve=curve), dataset[f"{name}_std"].isel(curve=curve)
            for variant in VARIANTS:
                at = {} if name == "agreement" else {"variant": variant}
                np.testing.assert_allclose(mean.sel(at), images.loc[variant].mean(axis=1), rtol=1e-6)
                np.testing.assert_allclose(std.sel(at), images.loc[variant].std(axis=1), rtol=1e-5, atol=1e-8)
        nothing = own["decoded"].eq(0).groupby([own["variant"], own["layer"]]).sum().unstack()
        np.testing.assert_array_equal(dataset["nothing_decoded"].isel(curve=curve), nothing.loc[list(VARIANTS)])
        low, high = dataset["precision_low"].isel(curve=curve), dataset["precision_high"].isel(curve=curve)
        assert (low <= dataset["precision_mean"].isel(curve=curve) + 1e-9).all()
        assert (dataset["precision_mean"].isel(curve=curve) <= high + 1e-9).all()
    for name in ("precision", "recall"):
        np.testing.assert_array_equal(
            dataset[name].transpose("sample", "variant", "layer").values.ravel(), table[name].to_numpy()
        )
    assert "NLTK English" in dataset.attrs["stop_words"]


def test_a_shared_prefix_is_decoded_once_and_scored_for_every_sample(tmp_path: Path) -> None:
    samples = lens_samples(SPECS)
    shared, apart = (
        analyse(write_lens(tmp_path / str(flag) / "s", SPECS, samples, shared_prefix=flag), tmp_path / f"r{flag}")
        for flag in (True, False)
    )
    pd.testing.assert_frame_equal(shared.scores, apart.scores, check_exact=True)
    first = apart.words[apart.words["sample_id"].isin([f"{image}/normal-1" for image in "abc"])]
    columns = ["sample_id", "layer", "position", "rank", "token_id", "piece", "logit"]
    pd.testing.assert_frame_equal(shared.words[columns], first[columns].reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize("workers", [2, 4])
def test_threads_change_nothing(tmp_path: Path, workers: int) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS))
    one, many = (analyse(store, tmp_path / f"r{number}", workers=number) for number in (1, workers))
    pd.testing.assert_frame_equal(one.scores, many.scores, check_exact=True)
    pd.testing.assert_frame_equal(one.words, many.words, check_exact=True)


def test_two_processes_of_a_cluster_change_nothing(tmp_path: Path) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS), stored_pieces=3)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        for source in ("hidden_states", "lens"):
            threads, processes = (
                analyse(
                    store,
                    tmp_path / f"{source} {name}",
                    topk=3,
                    source=source,
                    trajectory=source == "hidden_states",
                    workers=2,
                    scheduler=scheduler,
                )
                for name, scheduler in (("threads", None), ("cluster", cluster.scheduler_address))
            )
            for one, other in zip(threads[:3], processes[:3], strict=True):
                pd.testing.assert_frame_equal(one, other, check_exact=True)
            assert threads.dataset.identical(processes.dataset)


def test_pieces_that_were_stored_are_taken_and_said_so(tmp_path: Path) -> None:
    samples, notes = lens_samples(SPECS), []
    store = write_lens(tmp_path / "s", SPECS, samples, stored_pieces=4)
    stored = analyse(store, tmp_path / "stored", topk=3, notify=notes.append)
    assert notes == ["s: pieces are those that extraction stored; no logit was computed for them"]
    found = analyse(store, tmp_path / "found", topk=3, source="hidden_states")
    pd.testing.assert_frame_equal(stored.scores, found.scores)
    pd.testing.assert_frame_equal(stored.words, found.words, check_exact=False, rtol=1e-5)
    for one, source in ((stored, "lens"), (found, "hidden_states")):
        (described,) = json.loads(one.dataset.attrs["stores"])
        assert (described["pieces_from"], described["topk"]) == (source, 3)
        assert (described["certified"] is None) == (source == "lens")
    more = analyse(store, tmp_path / "more", topk=5)  # more than are stored: from states
    assert more.words["rank"].max() == 5


def test_a_store_of_pieces_alone_needs_no_unembedding(tmp_path: Path) -> None:
    samples = lens_samples(SPECS)
    alone = write_lens(tmp_path / "x" / "s", SPECS, samples, residual=False, unembedding=False, stored_pieces=2)
    whole = write_lens(tmp_path / "y" / "s", SPECS, samples)
    found, expected = (analyse(store, tmp_path / "r", topk=2) for store in (alone, whole))
    pd.testing.assert_frame_equal(found.scores, expected.scores)


def test_chosen_layers_are_those_layers(tmp_path: Path) -> None:
    store, notes = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS)), []
    whole = analyse(store, tmp_path / "whole").scores
    some = analyse(store, tmp_path / "some", layers=("0", "2:9")).scores
    assert some["layer"].unique().tolist() == [0, 2, 3]
    pd.testing.assert_frame_equal(some, whole[whole["layer"] != 1].reset_index(drop=True))
    first = analyse(store, tmp_path / "first", layers=("1",), notify=notes.append).scores
    assert first["agreement"].isna().all()
    assert without_share(notes) == ["s: layer 3, the last, is not among the layers, so agreement with it is NaN"]


def test_the_trajectory_is_entropy_and_divergence_of_the_whole_softmax(tmp_path: Path) -> None:
    model, samples = LensModelSpec(offset=1.0, softcap=4.0), lens_samples(SPECS)
    store = write_lens(tmp_path / "s", SPECS, samples, model, shared_prefix=True)
    _, _, table, dataset = analyse(store, tmp_path / "r", trajectory=True)
    assert len(table) == len(SPECS) * 2 * 4
    for row in table.to_dict("records"):
        sample = samples[row["sample_id"]]
        own = sample.states[:, 2:6] if row["what"] == "image" else sample.states[:, -1:]
        z = model.logits(own)
        log = z - np.log(np.exp(z).sum(-1, keepdims=True))
        p = np.exp(log)
        entropy = -(p * log).sum(-1).mean(-1)[row["layer"]]
        kl = (p[-1] * (log[-1] - log)).sum(-1).mean(-1)[row["layer"]]
        np.testing.assert_allclose([row["entropy"], row["kl"]], [entropy, kl], rtol=2e-5, atol=2e-6)
    means = table[table["prompt_kind"] == "noisy"].groupby(["what", "layer"])[["entropy", "kl"]].mean().unstack()
    for name in ("entropy", "kl"):
        curve = dataset[f"{name}_mean"].isel(curve=1).sel(what=["image", "last_text"])
        np.testing.assert_allclose(curve, means[name], rtol=1e-5, atol=1e-7)


def test_stores_of_other_layers_stack(tmp_path: Path) -> None:
    stores = [
        write_lens(tmp_path / name, SPECS, lens_samples(SPECS, layers=layers), plan_sha256=name[0] * 64)
        for name, layers in (("x", 4), ("y", 6))
    ]
    table, _, _, dataset = analyse(stores, tmp_path / "r")
    assert table.groupby("store")["layer"].max().tolist() == [3, 5]
    assert dataset["precision"].sizes == {"variant": 3, "sample": 14, "layer": 6}
    assert dataset["precision"].isel(sample=slice(7)).sel(layer=[4, 5]).isnull().all()
    assert int(dataset["precision"].notnull().sum()) == len(table)
    alone = analyse(stores[1], tmp_path / "alone").scores
    pd.testing.assert_frame_equal(table[table["store"] == "y"].reset_index(drop=True), alone)


def test_a_broken_off_analysis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_lens(tmp_path / "s", SPECS, lens_samples(SPECS))
    computed: list[str] = []

    def break_off_at_the_third(task: LensTask) -> PartLens:
        computed.append(task.name)
        if len(computed) == 3:
            raise StrataError("the cluster went away")
        return part_lens(task)

    monkeypatch.setattr(logit_lens, "_WORK", logit_lens._WORK._replace(function=break_off_at_the_third))
    with pytest.raises(StrataError, match="went away"):
        analyse(store, tmp_path / "r")
    found = analyse(store, tmp_path / "r")
    assert sorted(computed) == sorted([*set(computed), computed[2]])  # each once but the one that failed
    before = len(computed)
    whole = analyse(store, tmp_path / "whole")
    pd.testing.assert_frame_equal(found.scores, whole.scores)
    pd.testing.assert_frame_equal(found.words, whole.words)
    for changed in ({"topk": 2}, {"layers": ("1:4",)}, {"trajectory": True}):
        analyse(store, tmp_path / "r", **changed)
    assert len(computed) == before + 3 + 3 * 3  # other settings begin anew
