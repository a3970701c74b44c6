"""LogitLens of extracted stores against transformers' own forward pass: final norm and lm_head, top-k by torch."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from analyses.stop_words import STOP_WORDS
from engine.cli.main import main
from engine.models.checkpoint import open_checkpoint
from engine.models.load import load_model
from engine.store import Store, open_store
from engine.vocabulary import ROLE_CODES
from tests import tiny_gemma_llava, tiny_instructblip, tiny_llava
from tests.analyses.lens_builders import Found, analyse

FAMILIES: dict[str, Any] = {"llava": tiny_llava, "gemma": tiny_gemma_llava, "instructblip": tiny_instructblip}
"""Gemma 2's norm adds 1 to its weight, its logits have a softcap, its embeddings are tied."""
BLOCKS, TOP = 3, 3
TEXTS = {
    "llava": {"normal-1": "USER: <image>\nBriefly describe the content of the image. ASSISTANT:",
              "empty": "USER: <image>\nASSISTANT:"},
    "gemma": {"normal-1": "USER: <image>\nBriefly describe the content of the image. ASSISTANT:",
              "empty": "USER: <image>\nASSISTANT:"},
    "instructblip": {"normal-1": "Briefly describe the content of the image:", "empty": ""},
}  # fmt: skip
CAPTIONS = {"0": " ".join(tiny_llava.TEXT[:2]), "1": " ".join(tiny_llava.TEXT[2:])}
"""What the tokenizers were trained on, so that some pieces are words of it."""


class Case(NamedTuple):
    """A model, the store it made, and what LogitLens found there."""

    family: str
    model: Path
    images: Path
    store: Store
    found: Found


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "images").mkdir()
    rng = np.random.default_rng(5)
    for name in CAPTIONS:
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    lines = [json.dumps({"file_name": f"{name}.png", "caption": text}) for name, text in CAPTIONS.items()]
    (folder / "images" / "captions.jsonl").write_text("\n".join(lines))
    family = FAMILIES[request.param]
    model = family.save_checkpoint(folder / "model", family.TinyShape(blocks=BLOCKS))
    arguments = ["extract", "--model", model, "--source", "folder", "--images", folder / "images", "--device", "cpu",
                 "--prompts", "normal:1", "--prompts", "empty", "--batch-size", "1",
                 "--samples-per-part", "2", "--out", folder / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return Case(request.param, model, folder / "images", open_store(folder / "store"),
                analyse(folder / "store", folder / "kept", topk=TOP))  # fmt: skip


def logits(case: Case) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every sample's logits (layer, image token, vocab), float64, from transformers' hidden states."""
    checkpoint = open_checkpoint(str(case.model))
    model = load_model(checkpoint, dtype="float32", device="cpu").model
    decoder = model.language_model.model if case.family == "instructblip" else model.model.language_model
    head, norm = model.get_output_embeddings().double(), decoder.norm
    softcap = getattr(decoder.config, "final_logit_softcapping", None)
    for image in CAPTIONS:
        for prompt, text in TEXTS[case.family].items():
            picture = Image.open(case.images / f"{image}.png")
            inputs = checkpoint.processor(images=picture, text=text, return_tensors="pt")
            with torch.inference_mode():
                head.float()
                output = model(**inputs, output_hidden_states=True, use_cache=False)
                states = (output.language_model_outputs if case.family == "instructblip" else output).hidden_states
                # The last of these is after the final norm already.
                normed = torch.cat([*(norm(state) for state in states[:-1]), states[-1]])
                is_image = (inputs["input_ids"] == checkpoint.config.image_token_index)[0]
                plain = head.double()(normed[:, is_image].double())
                yield f"{image}/{prompt}", plain if softcap is None else softcap * torch.tanh(plain / softcap)


def words_of(case: Case, sample_id: str) -> Any:
    """The rows of a sample; those of the first sample of its image, where image states are stored once."""
    words = case.found.words
    own = words[words["sample_id"] == sample_id]
    if len(own) == 0:
        assert case.family != "instructblip"
        own = words[words["sample_id"] == f"{sample_id.partition('/')[0]}/normal-1"]
    return own


def test_pieces_are_the_top_of_the_models_own_logits(case: Case) -> None:
    vocabulary = case.store.model.vocabulary
    refused = torch.from_numpy((vocabulary["kind"] != "normal").to_numpy().copy())
    assert refused[-5:].all(), "the unembedding has more rows than the tokenizer has pieces"
    masked_would_win = compared = 0
    for sample_id, values in logits(case):
        masked_would_win += int(refused[values.argmax(-1)].sum())
        own = words_of(case, sample_id)
        best = values.masked_fill(refused, -torch.inf).topk(TOP + 1)
        shape = (BLOCKS + 1, values.shape[1], TOP)
        assert own["layer"].to_numpy().reshape(shape)[:, 0, 0].tolist() == list(range(BLOCKS + 1))
        np.testing.assert_allclose(own["logit"].to_numpy().reshape(shape), best.values[..., :TOP], rtol=1e-4, atol=1e-4)
        apart = (best.values[..., :-1] - best.values[..., 1:] > 1e-4).all(-1).numpy()
        found = own["token_id"].to_numpy().reshape(shape)
        np.testing.assert_array_equal(found[apart], best.indices[..., :TOP].numpy()[apart])
        compared += int(apart.sum())
        assert apart.mean() > 0.95
    assert compared > 0
    assert masked_would_win > 0


def test_a_norm_left_out_or_applied_twice_would_be_seen(case: Case) -> None:
    """Norm weights are random here: with weights of one, neither would change a best piece."""
    _, values = next(logits(case))
    norm = case.store.model.final_norm_weight.astype(np.float64)
    assert norm.std() > 0.2
    sample = case.store.sample(str(case.store.samples["sample_id"].iloc[0]))
    states = sample["hidden_states"].values[:, sample["role"].values == ROLE_CODES["image"]].astype(np.float64)
    assert case.store.model.unembedding is not None
    plain = (states @ case.store.model.unembedding.compute().astype(np.float64).T).argmax(-1)
    assert (plain != values.argmax(-1).numpy()).mean() > 0.2


def spoken(text: str) -> set[str]:
    """Words of a text whose words are separated by blanks."""
    words = {word.strip(string.punctuation).lower() for word in text.split()}
    return {word for word in words if word and word not in STOP_WORDS}


def test_scores_are_those_of_python_sets(case: Case) -> None:
    vocabulary = case.store.model.vocabulary
    pieces, refused = vocabulary["piece"].to_numpy(), torch.tensor((vocabulary["kind"] != "normal").tolist())
    table = case.found.scores[case.found.scores["variant"] == "unique"].set_index(["sample_id", "layer"])
    correct = 0
    for sample_id, values in logits(case):
        best = values.masked_fill(refused, -torch.inf).argmax(-1).numpy()
        said = spoken(CAPTIONS[sample_id.partition("/")[0]])
        for layer in range(BLOCKS + 1):
            decoded = {word for number in best[layer] for word in spoken(pieces[number].replace("▁", " "))}
            row = table.loc[(sample_id, layer)]
            assert (row["decoded"], row["correct"]) == (len(decoded), len(decoded & said))
            assert row["precision"] == len(decoded & said) / max(1, len(decoded))
            assert row["recall"] == len(decoded & said) / len(said)
            assert row["agreement"] == np.float32((best[layer] == best[-1]).mean())
            correct += len(decoded & said)
    assert correct > 0


def test_a_shared_prefix_has_one_set_of_words_per_image(case: Case) -> None:
    samples = case.found.words["sample_id"].unique().tolist()
    every = [f"{image}/{prompt}" for image in CAPTIONS for prompt in ("normal-1", "empty")]
    first = [f"{image}/normal-1" for image in CAPTIONS]
    assert sorted(samples) == sorted(first if case.family != "instructblip" else every)
    curves = case.found.dataset["precision_mean"].values
    assert np.array_equal(curves[0], curves[1]) == (case.family != "instructblip")
