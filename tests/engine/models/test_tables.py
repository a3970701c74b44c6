"""Vocabulary, unembedding and final norm against the tokenizer's and the model's own."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import LoadedModel, load_model
from engine.models.tables import model_tables
from engine.models.vocabulary import TokenizerVocabulary
from engine.store import PLAN_SCHEMA, VOCABULARY_SCHEMA, create_store, open_store
from tests import tiny_gemma_llava
from tests.tiny_llava import TinyShape, save_checkpoint

DTYPES = ("float32", "bfloat16", "float16")
ROWS = 640  # of the unembedding; the tokenizer has fewer pieces, as LLaVA's has


@pytest.fixture(scope="module", params=DTYPES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, LoadedModel]:
    dtype = getattr(torch, request.param)
    folder = save_checkpoint(tmp_path_factory.mktemp(request.param) / "m", TinyShape(blocks=1), dtype=dtype)
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, load_model(checkpoint, dtype=checkpoint.dtype("auto"), device="cpu")


def as_float(values: torch.Tensor) -> np.ndarray:
    """Every float16 and bfloat16 is a float64 exactly."""
    return values.detach().double().numpy()


def test_unembedding_and_norm_are_the_models_to_the_bit(opened: tuple[Checkpoint, LoadedModel]) -> None:
    checkpoint, loaded = opened
    tables = model_tables(checkpoint, loaded, unembedding=True)
    assert tables.unembedding is not None
    assert tables.unembedding.shape == (ROWS, checkpoint.dim)
    stored = "float16" if loaded.dtype == "float16" else "float32"
    assert tables.unembedding.dtype == stored
    for start, stop in ((0, ROWS), (3, 4), (630, 640)):
        rows = tables.unembedding.rows(start, stop)
        assert rows.dtype == stored
        np.testing.assert_array_equal(rows.astype(np.float64), as_float(loaded.model.lm_head.weight[start:stop]))
    norm = loaded.model.model.language_model.norm
    np.testing.assert_array_equal(tables.final_norm_weight.astype(np.float64), as_float(norm.weight))
    assert tables.final_norm_weight.std() > 0.1, "a norm weight of ones would hide a missing norm"
    assert tables.final_norm_bias is None
    assert tables.attributes == {
        "norm_kind": "rms",
        "norm_eps": norm.variance_epsilon,
        "norm_weight_offset": 0.0,
        "logit_softcap": None,
        "tied_embeddings": False,
    }


def test_a_store_gives_back_what_the_model_holds(opened: tuple[Checkpoint, LoadedModel], tmp_path: Path) -> None:
    checkpoint, loaded = opened
    record = {"plan_sha256": "0" * 64, "model": {"blocks": 1}, "capture": {"layers": [0, 1]}}
    for unembedding in (True, False):
        tables = model_tables(checkpoint, loaded, unembedding=unembedding)
        path = tmp_path / str(unembedding)
        create_store(path, record=record, plan=PLAN_SCHEMA.empty_table(), **tables._asdict())
        model = open_store(path).model
        np.testing.assert_array_equal(
            np.asarray(model.final_norm_weight).astype(np.float64), as_float(loaded.language.final_norm.weight)
        )
        if unembedding:
            matrix = np.asarray(model.unembedding).astype(np.float64)
            np.testing.assert_array_equal(matrix, as_float(loaded.model.lm_head.weight))


def test_a_norm_of_another_kind_is_refused(opened: tuple[Checkpoint, LoadedModel]) -> None:
    checkpoint, loaded = opened
    other = replace(checkpoint, family=replace(checkpoint.family, norm_kind="layer"))
    with pytest.raises(StrataError, match="LlamaRMSNorm; strata expects a layer norm"):
        model_tables(other, loaded, unembedding=True)


def test_what_gemma_adds_to_its_norm_is_found_by_trying_it(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_gemma_llava.save_checkpoint(tmp_path / "gemma", TinyShape(blocks=1))))
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    attributes = model_tables(checkpoint, loaded, unembedding=False).attributes
    assert attributes["norm_weight_offset"] == 1.0
    assert attributes["tied_embeddings"]
    assert attributes["logit_softcap"] == loaded.language.config.final_logit_softcapping


def test_a_norm_that_computes_something_else_is_refused(opened: tuple[Checkpoint, LoadedModel]) -> None:
    checkpoint, loaded = opened

    class Doubling(type(loaded.language.final_norm)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden_states)

    norm = copy.deepcopy(loaded.language.final_norm)
    norm.__class__ = Doubling
    other = replace(loaded, language=replace(loaded.language, final_norm=norm))
    with pytest.raises(StrataError, match=r"Doubling, is off by .* with 1 added to the weight or not"):
        model_tables(checkpoint, other, unembedding=False)


def test_every_row_of_the_unembedding_has_a_piece_and_a_kind(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.processor.tokenizer
    table = TokenizerVocabulary(tokenizer).table(ROWS)
    assert table.schema.equals(VOCABULARY_SCHEMA)
    rows = table.to_pylist()
    assert [row["token_id"] for row in rows] == list(range(ROWS))
    for row in rows:
        token_id, piece, kind = row["token_id"], row["piece"], row["kind"]
        if token_id >= len(tokenizer):
            assert (piece, kind, row["word_start"]) == ("", "padding", False)
            continue
        assert tokenizer.convert_tokens_to_ids(piece) == token_id
        if piece in ("<s>", "</s>", "<unk>", "<pad>", "<image>"):
            assert kind == "special"
        elif re.fullmatch("<0x..>", piece):
            assert kind == "byte"
        else:
            assert kind == "normal"
        assert row["word_start"] == (piece[0] == "▁")
    assert {row["kind"] for row in rows} == {"normal", "special", "byte", "padding"}
    assert sum(row["kind"] == "byte" for row in rows) == 256
    assert any(row["kind"] == "normal" and not row["word_start"] for row in rows)


def test_a_vocabulary_shorter_than_the_tokenizer_is_cut(checkpoint: Checkpoint) -> None:
    vocabulary = TokenizerVocabulary(checkpoint.processor.tokenizer)
    assert vocabulary.table(100).num_rows == 100
    assert vocabulary.table(100).column("kind").to_pylist() == vocabulary.table(ROWS).column("kind").to_pylist()[:100]


def test_decoding_gives_the_text_with_its_special_tokens(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.processor.tokenizer
    ids = tokenizer("what is under the image?")["input_ids"]
    assert TokenizerVocabulary(tokenizer).decode(ids[1:]) == "what is under the image?"
    assert TokenizerVocabulary(tokenizer).decode(ids).startswith("<s>")
