"""Loading weights: safetensors only, no remote code, SDPA left on, spread over GPUs where one is too small."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText

from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint, first_line
from engine.models.overflow import naming_overflow

__all__ = ["LanguageModel", "LoadedModel", "choose_device", "load_model"]

_GPU_SHARE = 0.85  # of a GPU's free memory may be weights; the rest is activations


@dataclass(frozen=True)
class LanguageModel:
    """The parts of a VLLM's language model that are captured or stored.

    ``blocks`` is the module list of blocks 1..L, ``unembedding`` the (vocab, dim) weight, ``config`` the configuration
    that the blocks read.
    """

    blocks: Any
    final_norm: torch.nn.Module
    unembedding: torch.Tensor
    config: Any

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return int(self.config.num_attention_heads)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forward passes.

    Attributes
    ----------
    model
        The whole VLLM in evaluation mode.
    language
        Its language model's blocks, final norm and unembedding.
    device
        Where inputs go.
    dtype
        Name of the dtype of the residual stream.
    """

    model: Any
    language: LanguageModel
    device: torch.device
    dtype: str

    @property
    def devices(self) -> str:
        """The devices that hold its weights, for messages."""
        return ", ".join(sorted({str(parameter.device) for parameter in self.model.parameters()}))

    @property
    def attention_kernel(self) -> str:
        """The attention implementation of the language model, for example ``sdpa``."""
        return str(self.language.config._attn_implementation)


def load_model(checkpoint: Checkpoint, *, dtype: str, device: str | None = None, local_rank: int = 0) -> LoadedModel:
    """Load the weights of a checkpoint.

    Parameters
    ----------
    checkpoint
        From :func:`engine.models.checkpoint.open_checkpoint`.
    dtype
        ``float16``, ``bfloat16`` or ``float32``.
    device
        A torch device; by default a GPU, several where one is too small, else the CPU.
    local_rank
        Number of this process on its node; processes take the node's GPUs in turn.

    Raises
    ------
    StrataError
        Where there are no safetensors weights, they are damaged or incomplete, they do not fit the GPUs, or the model
        has no language model that strata can find.
    """
    target = choose_device(device, local_rank)
    _keep_float32()
    _leave_out_cudnn_attention()
    torch_dtype = getattr(torch, dtype)
    placement: dict[str, Any] = {}
    where, advice = (
        str(target),
        "choose a 16-bit --dtype, leave --device out to spread it over all GPUs, or free the GPU.",
    )
    if target.type == "cuda":
        # Weights go straight to the GPU: through host memory, each process of a node would need room for all of them.
        spread = device is None and _weight_bytes(checkpoint, torch_dtype) > _free_bytes(target)
        placement = {"device_map": "auto" if spread else {"": target}}
        if spread:
            where, advice = "the GPUs seen here", "choose a 16-bit --dtype, make more visible, or free them."
    pinned = {"revision": checkpoint.commit} if checkpoint.commit else {}
    try:
        with naming_overflow(f"{checkpoint.model_id} in {dtype}", where, advice):
            reading: Any = AutoModelForImageTextToText.from_pretrained(
                checkpoint.location,
                dtype=torch_dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **pinned,
                **placement,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StrataError(
            f"cannot load the weights of {checkpoint.location}: {first_line(error)} "
            "strata reads *.safetensors only; convert other formats with transformers' save_pretrained."
        ) from error
    model, report = reading
    if missing := sorted(report["missing_keys"]):
        # transformers fills them with random numbers and only warns.
        raise StrataError(
            f"{checkpoint.location} lacks {len(missing)} of the model's weights, the first is {missing[0]}: "
            "download the checkpoint again, or save the whole model with save_pretrained."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StrataError(
            f"{checkpoint.model_id} in {dtype} does not fit the {torch.cuda.device_count()} GPUs seen here: make more "
            "visible, choose a 16-bit --dtype, or --device cpu."
        )
    model.eval()
    if not placement:
        torch.nn.Module.to(model, target)
    return LoadedModel(model, find_language_model(model), model.device, dtype)


def find_language_model(model: Any) -> LanguageModel:
    """Find a VLLM's language model through transformers' generic accessors."""
    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    norm = getattr(decoder, "norm", None)
    output = model.get_output_embeddings()
    if blocks is None or norm is None or output is None:
        raise StrataError(
            f"{type(model).__name__} has no decoder with .layers and .norm and an output embedding, which strata "
            "hooks; this architecture is not supported."
        )
    return LanguageModel(blocks, norm, output.weight, decoder.config)


def choose_device(device: str | None, local_rank: int = 0) -> torch.device:
    """Return the device asked for, or a GPU, or the CPU.

    Parameters
    ----------
    device
        A torch device, or None to choose.
    local_rank
        Processes of one node take its GPUs in turn.

    Raises
    ------
    UsageError
        Where the device does not exist here.
    """
    if device is None:
        gpus = torch.cuda.device_count()
        return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device!r} is not usable here ({first_line(error)}); torch sees {torch.cuda.device_count()} "
            "CUDA devices. Leave --device out to take what there is."
        ) from error
    return chosen


def _keep_float32() -> None:
    """Compute what is float32 in float32: cuDNN rounds to TF32 unless told, by 3e-4 and otherwise in other batches."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _leave_out_cudnn_attention() -> None:
    """Let SDPA choose among its other kernels, which give zeros for a position that sees no key: padding is such a one.

    cuDNN's is the first choice on GPUs of compute capability 9.0 and above. Reported of it are NaN at such positions,
    which reach all others as 0 · NaN (unslothai/unsloth, pull request 9848), and wrong finite values (pytorch/pytorch,
    issue 193893).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        shell = AutoModelForImageTextToText.from_config(checkpoint.config)
    return sum(parameter.numel() for parameter in shell.parameters()) * dtype.itemsize


def _free_bytes(device: torch.device) -> float:
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except RuntimeError as error:  # the first that a full or reserved GPU is asked
        raise StrataError(
            f"{device} is not usable ({first_line(error)}): free it, or choose another with --device."
        ) from error
    return _GPU_SHARE * free
