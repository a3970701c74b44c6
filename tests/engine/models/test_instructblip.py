"""InstructBLIP's inputs by hand, and checkpoints of it that cannot be used."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import InstructBlipConfig, PreTrainedTokenizerFast, T5Config

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint, content_revision, open_checkpoint, template_notes
from engine.models.load import load_model
from engine.models.prepare import Preparer
from engine.models.tables import model_tables
from engine.prompts import Prompt, read_prompts
from engine.vocabulary import ROLES
from tests.tiny_instructblip import QUERIES, TinyShape, build_config, build_model, save_checkpoint

TEXT = "Briefly describe the content of the image:"
EMPTY = Prompt("empty", "empty", "")


@pytest.fixture(scope="module", params=["</s>", "<s>"])
def blip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("blip") / "tiny-instructblip"
    return open_checkpoint(str(save_checkpoint(folder, TinyShape(bos=request.param))))


@pytest.fixture(scope="module")
def saved_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("blip") / "tiny-instructblip")


@pytest.fixture
def own_blip(saved_blip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_blip, tmp_path / "tiny-instructblip"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_image_comes_first_then_bos_then_the_bare_prompt(blip: Checkpoint) -> None:
    tokenizer = blip.processor.tokenizer
    prepared = Preparer(blip, [Prompt("p", "custom", TEXT), EMPTY], share_prefix=False).prepare(noise(30, 20))
    own = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(own) > 3
    with_prompt, without = prepared.layouts
    assert with_prompt.token_id.tolist() == [blip.image_token_id] * QUERIES + [tokenizer.bos_token_id] + own
    assert without.token_id.tolist() == [blip.image_token_id] * QUERIES + [tokenizer.bos_token_id]
    roles = [ROLES[code] for code in with_prompt.role]
    assert roles == ["image"] * QUERIES + ["special"] + ["instruction"] * len(own)
    assert [ROLES[code] for code in without.role] == ["image"] * QUERIES + ["special"]
    for layout in prepared.layouts:
        assert {*layout.grid, *layout.patch_row, *layout.patch_col} == {-1}
        for values in (layout.token_id, layout.role, layout.grid, layout.patch_row, layout.patch_col):
            assert values.dtype == np.int32
    assert prepared.grids == ()
    assert prepared.pixel_values.shape == (1, 3, 16, 16)


def test_the_q_former_reads_the_prompt_between_cls_and_sep(blip: Checkpoint) -> None:
    prepared = Preparer(blip, [Prompt("p", "custom", TEXT), EMPTY], share_prefix=False).prepare(noise(30, 20))
    pieces = blip.processor.qformer_tokenizer.convert_ids_to_tokens(prepared.side_texts[0]["qformer_input_ids"])
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    words = "".join(piece.removeprefix("##") for piece in pieces[1:-1])
    assert words == TEXT.lower().replace(" ", "")
    cls, sep = blip.processor.qformer_tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    assert prepared.side_texts[1]["qformer_input_ids"].tolist() == [cls, sep]
    for side in prepared.side_texts:
        assert side["qformer_attention_mask"].tolist() == [1] * len(side["qformer_input_ids"])
        assert {values.dtype for values in side.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("size", [(20, 20), (31, 17), (3, 5)])
def test_everything_is_the_processors_for_one_sample(blip: Checkpoint, size: tuple[int, int]) -> None:
    prompts = read_prompts(["normal", "question", "empty"], family="instructblip", vocabulary=None, seed=0)
    prepared = Preparer(blip, prompts, share_prefix=True).prepare(noise(*size))
    assert prepared.layouts[0].token_id.tolist() != prepared.layouts[1].token_id.tolist()
    for number, prompt in enumerate(prompts):
        whole = blip.processor(images=noise(*size), text=prompt.text, return_tensors="pt")
        assert prepared.layouts[number].token_id.tolist() == whole["input_ids"][0].tolist()
        for name, values in prepared.side_texts[number].items():
            assert values.tolist() == whole[name][0].tolist()
        torch.testing.assert_close(prepared.pixel_values, whole["pixel_values"], rtol=0, atol=0)


def test_a_second_bos_is_refused(blip: Checkpoint) -> None:
    bos = blip.processor.tokenizer.bos_token
    preparer = Preparer(blip, [Prompt("mine", "custom", f"What {bos} is it?")], share_prefix=False)
    with pytest.raises(StrataError, match=r"BOS .* stands 2 times"):
        preparer.prepare(noise(20, 20))


def test_a_missing_bos_is_refused(own_blip: Path) -> None:
    checkpoint = open_checkpoint(str(own_blip))
    inner = checkpoint.processor.tokenizer.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(StrataError, match=r"BOS \(id 2\) stands 0 times"):
        Preparer(checkpoint, [EMPTY], share_prefix=False).prepare(noise(20, 20))


def test_an_image_placeholder_in_a_prompt_is_refused(blip: Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"prompt 'mine' contains the image placeholder '<image>'"):
        Preparer(blip, [Prompt("mine", "custom", "Look at <image> again.")], share_prefix=False)


def test_a_prompt_too_long_for_the_q_former_is_refused(blip: Checkpoint) -> None:
    longest = Preparer(blip, [Prompt("fits", "custom", "the " * 62)], share_prefix=False).prepare(noise(20, 20))
    assert len(longest.side_texts[0]["qformer_input_ids"]) == 64
    with pytest.raises(
        UsageError,
        match=r"prompt 'long' has 65 tokens in the vocabulary of qformer_tokenizer, whose encoder takes at most 64",
    ):
        Preparer(blip, [Prompt("long", "custom", "the " * 63)], share_prefix=False).prepare(noise(20, 20))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tables_are_the_language_models(blip: Checkpoint, dtype: str) -> None:
    loaded = load_model(blip, dtype=dtype, device="cpu")
    assert len(loaded.language.blocks) == blip.block_count
    tables = model_tables(blip, loaded, unembedding=True)
    language = build_model().to(getattr(torch, dtype)).language_model
    assert tables.unembedding is not None
    np.testing.assert_array_equal(
        tables.unembedding.rows(0, 640).astype(np.float64), language.lm_head.weight.detach().double().numpy()
    )
    np.testing.assert_array_equal(
        tables.final_norm_weight.astype(np.float64), language.model.norm.weight.detach().double().numpy()
    )
    assert tables.attributes["tied_embeddings"] is False
    assert tables.attributes["norm_kind"] == "rms"


def test_tied_embeddings_are_seen(tmp_path: Path) -> None:
    model = build_model()
    folder = save_checkpoint(tmp_path / "tied")
    model.config.text_config.tie_word_embeddings = True
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    assert model_tables(checkpoint, loaded, unembedding=True).attributes["tied_embeddings"] is True


@pytest.mark.parametrize("name", ["tokenizer.json", "qformer_tokenizer/tokenizer.json", "model.safetensors"])
def test_a_revision_changes_with_either_tokenizer(own_blip: Path, name: str) -> None:
    checkpoint = open_checkpoint(str(own_blip))
    before = checkpoint.revision()
    content = bytearray((own_blip / name).read_bytes())
    content[-2] ^= 1
    (own_blip / name).write_bytes(content)
    assert checkpoint.revision() != before


def test_a_revision_tells_the_two_tokenizers_apart(saved_blip: Path, own_blip: Path) -> None:
    for name in ("tokenizer.json", "qformer_tokenizer/tokenizer.json"):
        other = "tokenizer.json" if "/" in name else "qformer_tokenizer/tokenizer.json"
        shutil.copy(saved_blip / other, own_blip / name)
    folders = ("qformer_tokenizer",)
    assert content_revision(own_blip, folders) != content_revision(saved_blip, folders)
    files = sorted(path for path in saved_blip.rglob("*") if path.is_file())
    names = [str(path.relative_to(saved_blip)) for path in files]
    assert "qformer_tokenizer/tokenizer.json" in names
    lines = [f"{sha256(path.read_bytes()).hexdigest()}  {name}\n" for path, name in zip(files, names, strict=True)]
    assert content_revision(saved_blip, folders) == f"sha256:{sha256(''.join(lines).encode()).hexdigest()}"


def test_any_chat_template_leaves_the_bare_prompt_alone(own_blip: Path) -> None:
    (own_blip / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert template_notes(open_checkpoint(str(own_blip))) == ()


def test_an_encoder_decoder_is_refused_before_its_processor_is_read(tmp_path: Path) -> None:
    own = build_config()
    text = T5Config(vocab_size=640, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    config = InstructBlipConfig(
        vision_config=own.vision_config, qformer_config=own.qformer_config, text_config=text, image_token_index=3
    )
    config.save_pretrained(tmp_path / "instructblip-flan-t5-xl")
    with pytest.raises(
        UsageError,
        match=r"the text model of instructblip-flan-t5-xl is 't5', an encoder–decoder; .*residual stream of a "
        r"decoder-only language model\. Choose such a variant \(InstructBLIP with Vicuna\)",
    ):
        open_checkpoint(str(tmp_path / "instructblip-flan-t5-xl"))


def test_a_configuration_without_image_token_is_refused(own_blip: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config.pop("image_token_index", None)
        config.pop("image_token_id", None)

    edit(own_blip / "config.json", change)
    with pytest.raises(UsageError, match=r"config\.json of tiny-instructblip has no image_token_index"):
        open_checkpoint(str(own_blip))


def test_an_image_token_without_embedding_is_refused(own_blip: Path) -> None:
    edit(own_blip / "config.json", lambda config: config["text_config"].update(vocab_size=480))
    with pytest.raises(UsageError, match=r"image_token_index of tiny-instructblip is 481, .* has 480 embeddings"):
        open_checkpoint(str(own_blip))


def test_an_image_token_that_the_processor_had_to_add_is_not_the_models(own_blip: Path) -> None:
    """transformers adds ``<image>`` to a tokenizer that lacks it, at whatever id is free."""

    def drop(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]

    edit(own_blip / "tokenizer.json", drop)
    edit(own_blip / "config.json", lambda config: config.update(image_token_index=600))
    with pytest.raises(UsageError, match=r"image token '<image>' has id \d+, the model expects 600: check"):
        open_checkpoint(str(own_blip))


def test_a_processor_that_does_not_know_its_queries_is_refused(own_blip: Path) -> None:
    edit(own_blip / "processor_config.json", lambda config: config.pop("num_query_tokens"))
    with pytest.raises(
        UsageError, match=r"how many tokens an image takes: set num_query_tokens in processor_config\.json"
    ):
        open_checkpoint(str(own_blip))


def test_a_processor_with_other_queries_than_the_model_is_refused(own_blip: Path) -> None:
    edit(own_blip / "processor_config.json", lambda config: config.update(num_query_tokens=32))
    with pytest.raises(UsageError, match=rf"makes 32 image tokens, the model has {QUERIES} queries: set num_query"):
        open_checkpoint(str(own_blip))


def test_a_missing_q_former_tokenizer_is_refused(own_blip: Path) -> None:
    """transformers would take the language model's in its place."""
    shutil.rmtree(own_blip / "qformer_tokenizer")
    with pytest.raises(UsageError, match=r"tiny-instructblip has no folder qformer_tokenizer"):
        open_checkpoint(str(own_blip))


def test_ids_that_the_q_former_does_not_have_are_refused(own_blip: Path) -> None:
    edit(own_blip / "config.json", lambda config: config["qformer_config"].update(vocab_size=40))
    checkpoint = open_checkpoint(str(own_blip))
    Preparer(checkpoint, [EMPTY], share_prefix=False).prepare(noise(20, 20))
    with pytest.raises(
        UsageError, match=r"qformer_tokenizer of tiny-instructblip gives prompt 'p' the id \d+, .* has 40 embeddings"
    ):
        Preparer(checkpoint, [Prompt("p", "custom", TEXT)], share_prefix=False).prepare(noise(20, 20))


def test_the_video_models_processor_is_not_taken(own_blip: Path, saved_blip: Path) -> None:
    """The files of the published 7B model name it, and have the image processor's settings on their own."""
    settings = json.loads((own_blip / "processor_config.json").read_text())
    (own_blip / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    published = {"num_query_tokens": QUERIES, "processor_class": "InstructBlipVideoProcessor"}
    (own_blip / "processor_config.json").write_text(json.dumps(published))
    own, expected = (
        Preparer(open_checkpoint(str(folder)), [EMPTY], share_prefix=False).prepare(noise(20, 20))
        for folder in (own_blip, saved_blip)
    )
    assert own.layouts[0].token_id.tolist() == expected.layouts[0].token_id.tolist()
    torch.testing.assert_close(own.pixel_values, expected.pixel_values, rtol=0, atol=0)


def test_the_published_class_of_tokenizer_has_one_bos(own_blip: Path) -> None:
    edit(own_blip / "tokenizer_config.json", lambda config: config.update(tokenizer_class="LlamaTokenizer"))
    checkpoint = open_checkpoint(str(own_blip))
    assert type(checkpoint.processor.tokenizer).__name__.startswith("LlamaTokenizer")
    prepared = Preparer(checkpoint, [Prompt("p", "custom", TEXT)], share_prefix=False).prepare(noise(20, 20))
    token_id = prepared.layouts[0].token_id
    assert np.flatnonzero(token_id == 2).tolist() == [QUERIES]
    assert checkpoint.processor.tokenizer.decode(token_id[QUERIES + 1 :]) == TEXT


def test_a_slow_tokenizer_has_no_offsets(own_blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    with pytest.raises(UsageError, match="tiny-instructblip has no fast tokenizer, and roles need the character"):
        open_checkpoint(str(own_blip))


def test_padding_is_never_the_image_token(blip: Checkpoint) -> None:
    assert blip.pad_id != blip.image_token_id
    blip.config.image_token_index, own = 0, blip.config.image_token_index
    try:
        assert blip.pad_id != blip.image_token_id
    finally:
        blip.config.image_token_index = own
