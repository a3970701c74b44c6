"""From images to phases on a model whose similarity curve is known: every stage has to be right."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from analyses.registry import run
from engine.cli.main import main
from tests.planted import BLOCKS, BOUNDARIES, HEIGHTS, known_heights, save_planted

IMAGES = 8
PROMPTS = {
    "normal-1": "Briefly describe the content of the image.",
    "normal-2": "Provide a quick summary of what the image depicts.",
}
PAIRS = ("image-text", "image-image", "text-text")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the images and the store that was extracted from them."""
    folder = tmp_path_factory.mktemp("planted")
    save_planted(folder / "planted-llava")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        contrast = 40 + 20 * number
        pixels = (128 + contrast * rng.uniform(-1, 1, (24, 24, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    arguments = ["extract", "--model", folder / "planted-llava", "--source", "folder", "--images", folder / "images"]
    arguments += ["--out", folder / "store", "--prompts", "normal:2", "--samples-per-part", "6", "--device", "cpu"]
    result = CliRunner().invoke(main, ["--debug", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module", params=["pooled", "hidden_states"])
def results(request: pytest.FixtureRequest, planted: Path) -> Path:
    folder = planted / request.param
    run("phases", [str(planted / "store")], folder, workers=1, memory=2**31, source=request.param, bootstraps=200)
    return folder


def inter_cosines(heights: np.ndarray, squares: np.ndarray, is_image: np.ndarray, is_text: np.ndarray) -> np.ndarray:
    """The formula of the planted model: s_i s_j / √((A_i + s_i²)(A_j + s_j²)), averaged over pairs, per layer."""
    cosine_with_z = heights / np.sqrt(squares + heights**2)
    return cosine_with_z[:, is_image].mean(axis=1) * cosine_with_z[:, is_text].mean(axis=1)


def mean_cosines(states: np.ndarray, is_image: np.ndarray, is_text: np.ndarray) -> dict[str, np.ndarray]:
    """Mean cosine of all pairs, pair by pair, per layer; states are (layer, token, dim)."""
    units = states / np.linalg.norm(states, axis=-1, keepdims=True)
    cosine = np.einsum("lid,ljd->lij", units, units)
    sets = {"image": np.flatnonzero(is_image), "text": np.flatnonzero(is_text)}
    curves = {}
    for pair in PAIRS:
        first, second = (sets[name] for name in pair.split("-"))
        pairs = [(i, j) for i, j in itertools.product(first, second) if i != j]
        curves[pair] = np.mean([cosine[:, i, j] for i, j in pairs], axis=0)
    return curves


@pytest.fixture(scope="module")
def expected(planted: Path) -> pd.DataFrame:
    """The known curves: layer 0 is taken from transformers, every other layer follows from it."""
    model = LlavaForConditionalGeneration.from_pretrained(planted / "planted-llava").eval()
    processor = LlavaProcessor.from_pretrained(planted / "planted-llava")
    norm_weight = model.model.language_model.norm.weight.detach().double().numpy()
    rows = []
    for number, (prompt_id, text) in itertools.product(range(IMAGES), PROMPTS.items()):
        image = Image.open(planted / "images" / f"{number}.png")
        inputs = processor(images=image, text=f"USER: <image>\n{text} ASSISTANT:", return_tensors="pt")
        with torch.inference_mode():
            embedded = model(**inputs, output_hidden_states=True).hidden_states[0][0].double().numpy()
        squares = (embedded**2).sum(-1)
        heights = known_heights(squares, model.config.text_config.rms_norm_eps)
        states = np.repeat(embedded[None], BLOCKS + 1, axis=0)
        states[..., 0] += heights
        is_image = inputs["input_ids"][0].numpy() == model.config.image_token_id
        # Everything behind the image is text that can see it.
        is_text = np.arange(len(is_image)) > np.flatnonzero(is_image)[-1]
        analytic = inter_cosines(heights, squares, is_image, is_text)
        for normed, layers in ((False, states), (True, states[-1:] * norm_weight)):
            curves = mean_cosines(layers, is_image, is_text)
            for pair, curve in (curves if normed else {**curves, "image-text": analytic}).items():
                for layer, cosine in enumerate(curve, start=BLOCKS if normed else 0):
                    rows.append((f"{number}/{prompt_id}", layer, normed, pair, cosine))
    return pd.DataFrame(rows, columns=["sample_id", "layer", "normed", "pair", "cosine"])


def test_the_curves_are_the_analytic_ones_at_every_layer(results: Path, expected: pd.DataFrame) -> None:
    found = pd.read_parquet(results / "contextualization.parquet")
    assert not found["self_pairs"].any()
    keys = ["sample_id", "layer", "normed", "pair"]
    both = found.merge(expected, on=keys, suffixes=("", "_known"), validate="one_to_one")
    assert len(both) == len(found) == len(expected) == IMAGES * len(PROMPTS) * (BLOCKS + 2) * len(PAIRS)
    np.testing.assert_allclose(both["cosine"], both["cosine_known"], atol=2e-5)


def test_the_planted_curve_turns_where_it_was_planted(expected: pd.DataFrame) -> None:
    """The case itself: each image's curve is different, and each turns at 3, 10 and 35."""
    inter = expected[(expected["pair"] == "image-text") & ~expected["normed"]]
    curves = inter.pivot(index="sample_id", columns="layer", values="cosine").to_numpy()
    up, down = np.diff(curves[:, 1:]) > 0, np.diff(curves[:, 1:]) < 0
    signs = np.sign(np.diff(HEIGHTS))[1:]
    assert (np.where(signs > 0, up, down)).all()
    assert [layer + 1 for layer in range(1, BLOCKS - 1) if signs[layer] != signs[layer - 1]] == list(BOUNDARIES)
    assert curves.std(axis=0)[1:].min() > 1e-4


def test_the_phases_are_the_planted_ones(results: Path) -> None:
    phases = pd.read_parquet(results / "phases.parquet").query("pair == 'image-text'")
    assert len(phases) == 4
    assert phases["start"].tolist() == [1, *BOUNDARIES]
    assert phases["end"].tolist() == [*BOUNDARIES, BLOCKS]
    for low, high, value in (("start_low", "start_high", "start"), ("end_low", "end_high", "end")):
        assert (phases[low] == phases[value]).all()
        assert (phases[high] == phases[value]).all()
    assert np.sign(phases["change"]).tolist() == [1, -1, 1, -1]
    assert phases["supported"].all()
    assert [name.split()[0] for name in phases["name"]] == ["I", "II", "III", "IV"]


def test_the_change_of_a_phase_is_the_analytic_curves(results: Path, expected: pd.DataFrame) -> None:
    phases = pd.read_parquet(results / "phases.parquet").query("pair == 'image-text'")
    inter = expected[(expected["pair"] == "image-text") & ~expected["normed"]]
    mean = inter.groupby("layer")["cosine"].mean()
    for row in phases.itertuples():
        assert row.change == pytest.approx(mean[row.end] - mean[row.start], abs=2e-5)
        assert row.change_low <= row.change <= row.change_high


def test_every_image_alone_has_the_planted_boundaries(results: Path) -> None:
    images = pd.read_parquet(results / "phases-images.parquet")
    for _, own in images.groupby("sample_id"):
        assert own["end"].tolist()[:3] == list(BOUNDARIES)


@pytest.mark.parametrize("adjustment", ["anisotropy", "mean-centred"])
def test_adjustments_take_the_planted_direction_out(planted: Path, results: Path, adjustment: str) -> None:
    """All tokens get the same height along one direction: what rises and falls is what all states share."""
    folder = planted / adjustment
    if not folder.exists():
        run("contextualization", [str(planted / "store")], folder, workers=1, memory=2**31, adjustment=adjustment)
    swing = {}
    for name, path in (("none", results), (adjustment, folder)):
        table = pd.read_parquet(path / "contextualization.parquet").query("pair == 'image-text' and not normed")
        swing[name] = np.ptp(table.groupby("layer")["cosine"].mean())
    assert swing["none"] > 0.5
    assert swing[adjustment] < 0.02 * swing["none"]
