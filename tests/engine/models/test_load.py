"""Loading weights: the bytes of the file, and nothing but safetensors."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import choose_device, find_language_model, load_model
from tests.tiny_llava import TinyShape, build_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_has_the_weights_of_the_file_in_the_dtype_asked_for(checkpoint: Checkpoint, dtype: str) -> None:
    loaded = load_model(checkpoint, dtype=dtype, device="cpu")
    expected = build_model().to(getattr(torch, dtype)).state_dict()
    weights = loaded.model.state_dict()
    assert set(weights) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=0, atol=0)
    assert not loaded.model.training
    assert loaded.attention_kernel == "sdpa"
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), dtype)


def test_all_devices_of_a_model_are_named(checkpoint: Checkpoint) -> None:
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    assert loaded.devices == "cpu"
    loaded.language.blocks[1].to("meta")
    assert loaded.devices == "cpu, meta"


def test_numbers_do_not_depend_on_what_a_gpu_would_choose(checkpoint: Checkpoint) -> None:
    """float32 is not rounded to TF32, and SDPA never takes the kernel in which padding becomes NaN."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_model(checkpoint, dtype="float32", device="cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_the_language_models_parts_are_found(checkpoint: Checkpoint) -> None:
    model = build_model()
    language = find_language_model(model)
    assert len(language.blocks) == checkpoint.block_count
    assert language.blocks[0] is model.model.language_model.layers[0]
    assert language.final_norm is model.model.language_model.norm
    assert language.unembedding is model.lm_head.weight


def test_a_model_without_an_output_embedding_is_refused() -> None:
    with pytest.raises(StrataError, match="this architecture is not supported"):
        find_language_model(build_model(TinyShape(blocks=1)).model)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_pickled_weights_are_refused_and_never_unpickled(own_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    (own_copy / "model.safetensors").unlink()
    torch.save({"bomb": Bomb(marker), **build_model().state_dict()}, own_copy / "pytorch_model.bin")
    with pytest.raises(StrataError, match=r"cannot load the weights of .* strata reads \*\.safetensors only"):
        load_model(open_checkpoint(str(own_copy)), dtype="float32", device="cpu")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb must be able to go off"


def test_truncated_weights_are_refused(own_copy: Path) -> None:
    path = own_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StrataError, match="cannot load the weights of"):
        load_model(open_checkpoint(str(own_copy)), dtype="float32", device="cpu")


def test_missing_weights_are_not_made_up(own_copy: Path) -> None:
    path = own_copy / "model.safetensors"
    weights = load_file(path)
    gone = next(name for name in weights if "down_proj" in name)
    del weights[gone]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StrataError, match=r"lacks 1 of the model's weights, the first is .*down_proj"):
        load_model(open_checkpoint(str(own_copy)), dtype="float32", device="cpu")


def test_weights_of_another_shape_are_refused(own_copy: Path) -> None:
    path = own_copy / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StrataError, match="cannot load the weights of"):
        load_model(open_checkpoint(str(own_copy)), dtype="float32", device="cpu")


def test_the_device_is_the_one_asked_for_or_the_best_there_is() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_here_is_wrong_usage(device: str) -> None:
    with pytest.raises(UsageError, match=rf"--device '{device}' is not usable here"):
        choose_device(device)


def test_processes_of_a_node_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [choose_device(None, rank) for rank in range(4)] == [torch.device("cuda", n) for n in (0, 1, 2, 0)]


@pytest.mark.parametrize(
    ("free", "expected", "where"),
    [
        (10**9, {"": torch.device("cuda", 1)}, "cuda:1: choose a 16-bit --dtype, leave --device out"),
        (1000, "auto", "the GPUs seen here: choose a 16-bit --dtype, make more visible"),
    ],
)
def test_a_model_larger_than_one_gpu_is_spread_over_all(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, free: int, expected: object, where: str
) -> None:
    asked: dict[str, object] = {}

    def remember(_location: str, **options: object) -> None:
        asked.update(options)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, free))
    monkeypatch.setattr("engine.models.load.AutoModelForImageTextToText.from_pretrained", remember)
    with pytest.raises(StrataError, match=f"in float16 does not fit {where}"):
        load_model(checkpoint, dtype="float16", local_rank=1)
    assert asked["device_map"] == expected
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False


def test_a_gpu_that_cannot_be_asked_is_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with pytest.raises(StrataError, match=r"cuda:0 is not usable \(CUDA error: out of memory\): free it, or choose"):
        load_model(checkpoint, dtype="float16")
