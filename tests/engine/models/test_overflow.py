"""A full device ends in a message, whichever of torch and CUDA found it full; other errors stay as they are."""

import pytest
import torch

from engine.errors import StrataError
from engine.models.overflow import naming_overflow


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ],
)
def test_a_full_device_is_named_with_what_was_tried(error: RuntimeError) -> None:
    with (
        pytest.raises(StrataError, match=r"^a batch of 3 does not fit cuda:0, cuda:1: take less\.$") as raised,
        naming_overflow("a batch of 3", "cuda:0, cuda:1", "take less."),
    ):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")])
def test_what_is_no_full_device_is_not_called_one(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, naming_overflow("a batch", "cuda:0", "take less."):
        raise error
    assert raised.value is error
