"""Copies on the host equal the rows they were made of, also when the rows are gone before they are copied."""

import pytest
import torch

from engine.capture import host_copies
from engine.capture.host_copies import HostCopies


def test_a_tensor_of_the_host_is_not_copied() -> None:
    rows = torch.randn(3, 4)
    copies = HostCopies()
    assert copies.bring(rows).data_ptr() == rows.data_ptr()
    copies.wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_rows_are_packed_without_overlap(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Where copies go, in memory that is not pinned: sizes that fit a block together, alone, and not at all."""
    make = torch.empty

    def unpinned(size: int, *, dtype: torch.dtype, pin_memory: bool = False) -> torch.Tensor:
        return make(size, dtype=dtype)

    monkeypatch.setattr(host_copies, "_BLOCK_BYTES", 2**16)
    monkeypatch.setattr(torch, "empty", unpinned)
    rows = [torch.randn(size, 3).to(dtype) for size in (0, 1, 1000, 3000, 5, 40_000, 7) * 5]
    copies = HostCopies()
    places = [copies._place(own).copy_(own) for own in rows]
    assert all(torch.equal(place, own) for place, own in zip(places, rows, strict=True))
    assert len({place.untyped_storage().data_ptr() for place in places}) < len(places)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device to copy from; where rows are packed is tested without one",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_copies_are_packed_and_equal(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(host_copies, "_BLOCK_BYTES", 2**16)
    copies = HostCopies()
    expected, brought = [], []
    # Rows are given up at once; the sizes fit a block together, alone, and not at all.
    for size in (0, 1, 1000, 3000, 5, 40_000, 7) * 20:
        rows = torch.randn(size, 3, device="cuda").to(dtype)
        expected.append(rows.clone())
        brought.append(copies.bring(rows))
        del rows
        torch.randn(1000, 3, device="cuda")
    copies.wait()
    for mine, theirs in zip(brought, expected, strict=True):
        assert mine.is_pinned()
        assert torch.equal(mine, theirs.cpu())
