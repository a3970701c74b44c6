"""What the store keeps of a model, so that activations can be read without it: unembedding, final norm, vocabulary."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.final_norm import normed_states
from engine.models.load import LoadedModel
from engine.models.vocabulary import TokenizerVocabulary
from engine.store import ModelMatrix, widen_bfloat16

__all__ = ["ModelTables", "model_tables"]

_SAME_NORM = 1e-3  # of the largest value: the formula is tried without the norm's epsilon


class ModelTables(NamedTuple):
    """Arguments of ``create_store`` that come from the model."""

    vocabulary: pa.Table
    unembedding: ModelMatrix | None
    final_norm_weight: np.ndarray
    final_norm_bias: np.ndarray | None
    attributes: dict[str, Any]


def model_tables(checkpoint: Checkpoint, loaded: LoadedModel, *, unembedding: bool) -> ModelTables:
    """Read the tables off a loaded model.

    Raises
    ------
    StrataError
        Where the final norm is not of the kind that the family table says, or computes something else.
    """
    norm, matrix = loaded.language.final_norm, loaded.language.unembedding
    kind = "layer" if isinstance(norm, torch.nn.LayerNorm) else "rms"
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if kind != checkpoint.family.norm_kind or epsilon is None:
        raise StrataError(
            f"the final norm of {checkpoint.model_id} is {type(norm).__name__}; strata expects a "
            f"{checkpoint.family.norm_kind} norm for {checkpoint.family.title} and cannot store this one."
        )
    bias = dict(norm.named_parameters()).get("bias")
    return ModelTables(
        vocabulary=TokenizerVocabulary(checkpoint.processor.tokenizer).table(matrix.shape[0]),
        unembedding=_matrix(matrix) if unembedding else None,
        final_norm_weight=_stored(norm.get_parameter("weight")),
        final_norm_bias=None if bias is None else _stored(bias),
        attributes={
            "norm_kind": kind,
            "norm_eps": float(epsilon),
            "norm_weight_offset": _weight_offset(norm, checkpoint.model_id),
            "logit_softcap": checkpoint.logit_softcap,
            "tied_embeddings": loaded.model.get_input_embeddings().weight is matrix,
        },
    )


@torch.no_grad()
def _weight_offset(norm: torch.nn.Module, model_id: str) -> float:
    """Find what a final norm adds to its weight: 1 in Gemma's, whose checkpoints hold the weight less one."""
    weight = norm.get_parameter("weight").detach().float()
    bias = dict(norm.named_parameters()).get("bias")
    states = torch.linspace(-1, 2, len(weight), device=weight.device)[None]
    found = normed_states(norm, states)
    centred = states - states.mean() if isinstance(norm, torch.nn.LayerNorm) else states
    unit = centred / centred.square().mean().sqrt()
    differences = {}
    for offset in (0.0, 1.0):
        expected = unit * (weight + offset) + (0.0 if bias is None else bias.detach().float())
        differences[offset] = float((found - expected).abs().max())
    best = min(differences, key=differences.__getitem__)
    if not differences[best] <= _SAME_NORM * float(found.abs().max()):
        raise StrataError(
            f"the final norm of {model_id}, {type(norm).__name__}, is off by {differences[best]:.2g} from states / "
            "root mean square × weight, with 1 added to the weight or not: the store could not say what it is."
        )
    return best


def _matrix(weight: torch.Tensor) -> ModelMatrix:
    dtype = "float16" if weight.dtype == torch.float16 else "float32"
    return ModelMatrix((weight.shape[0], weight.shape[1]), dtype, lambda start, stop: _stored(weight[start:stop]))


def _stored(values: torch.Tensor) -> np.ndarray:
    """Bring a weight into its stored form: bfloat16 as the float32 of the same value."""
    host = values.detach().cpu().contiguous()
    return widen_bfloat16(host.view(torch.uint16).numpy()) if host.dtype == torch.bfloat16 else host.numpy()
