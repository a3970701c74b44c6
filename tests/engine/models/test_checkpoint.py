"""What a checkpoint says of itself, and every folder that is none or not the right one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, CLIPImageProcessorPil, LlamaConfig, LlamaForCausalLM, LlavaProcessor

from engine.errors import UsageError
from engine.models.checkpoint import DTYPES, Checkpoint, content_revision, open_checkpoint, template_notes
from tests.tiny_llava import TinyShape, build_model, build_processor


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_local_folder_says_what_it_is(saved: Path, checkpoint: Checkpoint) -> None:
    shape = TinyShape()
    assert checkpoint.model_id == "tiny-llava"
    assert (checkpoint.block_count, checkpoint.dim) == (shape.blocks, shape.dim)
    assert checkpoint.family.name == "llava"
    assert checkpoint.commit is None
    assert checkpoint.image_token == "<image>"
    assert checkpoint.image_token_id == checkpoint.processor.tokenizer.convert_tokens_to_ids("<image>")
    assert checkpoint.processor.image_processor.backend == "pil"
    assert checkpoint.revision() == content_revision(saved)


def test_the_same_folder_by_another_path_is_the_same_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert open_checkpoint(".").model_id == "tiny-llava"


def test_a_revision_follows_the_files_and_not_their_place(saved: Path, own_copy: Path) -> None:
    revision = content_revision(saved)
    assert revision.startswith("sha256:")
    assert len(revision) == len("sha256:") + 64
    assert content_revision(own_copy) == revision
    (own_copy / "README.md").write_text("about this model")
    (own_copy / "runs").mkdir()
    assert content_revision(own_copy) == revision


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
def test_a_revision_changes_with_one_byte(saved: Path, own_copy: Path, name: str) -> None:
    content = bytearray((own_copy / name).read_bytes())
    content[-2] ^= 1
    (own_copy / name).write_bytes(content)
    assert content_revision(own_copy) != content_revision(saved)


def test_a_revision_changes_with_a_files_name(saved: Path, own_copy: Path) -> None:
    (own_copy / "model.safetensors").rename(own_copy / "other.safetensors")
    assert content_revision(own_copy) != content_revision(saved)


@pytest.mark.parametrize("name", DTYPES)
def test_auto_is_the_dtype_of_the_checkpoint(saved: Path, own_copy: Path, name: str) -> None:
    edit(own_copy / "config.json", lambda config: config.update(dtype=name))
    checkpoint = open_checkpoint(str(own_copy))
    assert checkpoint.dtype("auto") == name
    assert [checkpoint.dtype(choice) for choice in DTYPES] == list(DTYPES)


def test_a_dtype_that_is_not_captured_is_refused(own_copy: Path) -> None:
    edit(own_copy / "config.json", lambda config: config.update(dtype="float64"))
    with pytest.raises(UsageError, match=r"stored as float64; strata captures float16, bfloat16, float32"):
        open_checkpoint(str(own_copy)).dtype("auto")


def test_a_folder_without_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json, so it is no model folder"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "no-such-model"}', "{}", "[]"])
def test_a_configuration_that_says_nothing_is_refused(own_copy: Path, content: str) -> None:
    (own_copy / "config.json").write_text(content)
    with pytest.raises(UsageError, match="cannot read a model configuration from"):
        open_checkpoint(str(own_copy))


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"the folder /no/such/folder does not exist, and a hub id has the form"):
        open_checkpoint("/no/such/folder")


def test_a_text_model_is_no_vllm(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "words")
    with pytest.raises(UsageError, match=r"words is a 'llama' model; strata reads vision large language models"):
        open_checkpoint(str(tmp_path / "words"))


@pytest.mark.parametrize("missing", [["processor_config.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_missing_processor_names_the_files_it_needs(own_copy: Path, missing: list[str]) -> None:
    for name in missing:
        (own_copy / name).unlink()
    with pytest.raises(UsageError, match=r"needs processor_config\.json and the tokenizer's files"):
        open_checkpoint(str(own_copy))


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    build_model(TinyShape(blocks=1)).save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="cannot load the processor of"):
        open_checkpoint(str(tmp_path / "bare"))


def test_a_tokenizer_that_exists_in_python_alone_has_no_offsets(own_copy: Path) -> None:
    for path in [*own_copy.glob("tokenizer*"), own_copy / "processor_config.json"]:
        path.unlink()
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    LlavaProcessor(CLIPImageProcessorPil(), tokenizer, patch_size=4).save_pretrained(own_copy)
    with pytest.raises(UsageError, match="tokenizer"):
        open_checkpoint(str(own_copy))


def test_a_processor_that_cannot_count_image_tokens_is_refused(own_copy: Path) -> None:
    edit(own_copy / "processor_config.json", lambda config: config.pop("patch_size"))
    with pytest.raises(UsageError, match="does not know how many tokens an image takes: set patch_size"):
        open_checkpoint(str(own_copy))


def test_another_image_token_than_the_models_is_refused(own_copy: Path) -> None:
    def change(config: dict[str, object]) -> None:
        config.pop("image_token_index", None)
        config["image_token_id"] = 7

    edit(own_copy / "config.json", change)
    image_id = build_processor().image_token_id
    with pytest.raises(UsageError, match=rf"image token '<image>' has id {image_id}, the model expects 7"):
        open_checkpoint(str(own_copy))


def test_the_older_name_of_the_image_token_is_read(own_copy: Path) -> None:
    def change(config: dict[str, object]) -> None:
        config["image_token_index"] = config.pop("image_token_id", config.get("image_token_index"))

    edit(own_copy / "config.json", change)
    assert open_checkpoint(str(own_copy)).image_token_id == build_processor().image_token_id


def test_code_beside_a_checkpoint_is_never_run(own_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    (own_copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n\nclass Config: pass\n\nclass Processor: pass\n")
    edit(own_copy / "config.json", lambda config: config.update(auto_map={"AutoConfig": "evil.Config"}))
    edit(own_copy / "processor_config.json", lambda c: c.update(auto_map={"AutoProcessor": "evil.Processor"}))
    assert open_checkpoint(str(own_copy)).family.name == "llava"
    assert not marker.exists()


def test_a_checkpoint_of_an_unknown_class_with_code_of_its_own_is_refused(own_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    (own_copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n\nclass Config: pass\n")
    edit(
        own_copy / "config.json",
        lambda config: config.update(model_type="evil", auto_map={"AutoConfig": "evil.Config"}),
    )
    with pytest.raises(UsageError, match="cannot read a model configuration"):
        open_checkpoint(str(own_copy))
    assert not marker.exists()


def test_pixels_do_not_depend_on_the_processors_back_end(own_copy: Path) -> None:
    """A checkpoint may ask for torchvision's processor; resized pixels would differ between machines."""
    edit(
        own_copy / "processor_config.json",
        lambda config: config["image_processor"].update(image_processor_type="CLIPImageProcessor"),  # type: ignore[attr-defined]
    )
    assert open_checkpoint(str(own_copy)).processor.image_processor.backend == "pil"


def test_a_foreign_chat_template_is_noted_and_never_run(saved: Path, own_copy: Path) -> None:
    assert template_notes(open_checkpoint(str(saved))) == ()
    template = own_copy / "chat_template.jinja"
    template.write_text(
        "{{ raise_exception('run') }}{% for m in messages %}USER: {{ m.content }} {% endfor %}ASSISTANT:"
    )
    assert template_notes(open_checkpoint(str(own_copy))) == ()
    template.write_text("{{ raise_exception('run') }}{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    (note,) = template_notes(open_checkpoint(str(own_copy)))
    assert "has no 'ASSISTANT:', so it is not that of LLaVA-1.5" in note


def test_a_revision_of_a_folder_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="--revision main is for hub ids"):
        open_checkpoint(str(saved), revision="main")


def test_a_hub_id_is_pinned_to_its_commit(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--team--tiny-llava"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True, raising=False)
    checkpoint = open_checkpoint("team/tiny-llava")
    assert (checkpoint.model_id, checkpoint.commit, checkpoint.revision()) == ("team/tiny-llava", commit, commit)


def test_a_tokenizer_without_the_image_token_is_refused(own_copy: Path) -> None:
    def drop(tokenizer: dict[str, object]) -> None:
        tokens = tokenizer["added_tokens"]
        assert isinstance(tokens, list)
        tokenizer["added_tokens"] = [token for token in tokens if token["content"] != "<image>"]

    edit(own_copy / "tokenizer.json", drop)
    image_id = build_processor().image_token_id
    with pytest.raises(
        UsageError, match=rf"tokenizer of tiny-llava has no token '<image>' .*add it as a special.* the id {image_id} "
    ):
        open_checkpoint(str(own_copy))


def test_an_image_token_beyond_the_embeddings_is_refused(own_copy: Path) -> None:
    edit(own_copy / "config.json", lambda config: config["text_config"].update(vocab_size=300))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"image_token_index of tiny-llava is \d+, but its text model has 300 embedd"):
        open_checkpoint(str(own_copy))
