"""Copies on the host equal the rows they were made of, also when the rows are gone before they are copied."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import torch

from engine.capture import host_copies
from engine.capture.host_copies import HostCopies
from engine.errors import StrataError


def test_a_tensor_of_the_host_is_not_copied() -> None:
    rows = torch.randn(3, 4)
    copies = HostCopies()
    assert copies.bring(rows).data_ptr() == rows.data_ptr()
    copies.wait()


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, of memory that is not pinned, which no CPU has."""
    make = torch.empty

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool = False) -> torch.Tensor:
        return make(size, dtype=dtype)

    monkeypatch.setattr(host_copies, "_FIRST_BYTES", 2**13)
    monkeypatch.setattr(host_copies, "_BLOCK_BYTES", 2**16)
    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_rows_are_packed_without_overlap(dtype: torch.dtype) -> None:
    """Where copies go: sizes that fit a block together, and such as make it larger."""
    rows = [torch.randn(size, 3).to(dtype) for size in (0, 1, 1000, 3000, 5, 40_000, 7) * 5]
    copies = HostCopies()
    places = [copies._place(own).copy_(own) for own in rows]
    assert all(torch.equal(place, own) for place, own in zip(places, rows, strict=True))
    storages = {place.untyped_storage().data_ptr(): place.untyped_storage().nbytes() for place in places if len(place)}
    assert len(storages) < len(places)
    assert copies.nbytes == sum(storages.values())


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("size", [10, 2**14, 2**14 + 1, 2**15 + 1, 100_000, 2**17])
def test_most_of_a_block_is_used(size: int) -> None:
    copies = HostCopies()
    rows = [copies._place(torch.zeros(size, dtype=torch.uint8)) for _ in range(1000)]
    blocks = {own.untyped_storage().data_ptr(): own.untyped_storage().nbytes() for own in rows}
    assert all(block & (block - 1) == 0 for block in blocks.values()), "the allocator rounds other sizes up"
    asked = len(rows) * host_copies._ALIGNMENT * -(-size // host_copies._ALIGNMENT)
    assert sum(blocks.values()) <= 1.25 * asked + max(blocks.values()), "of all blocks but the last"


def test_a_host_without_memory_to_pin_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    copies, rows = HostCopies(), torch.zeros(3)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(StrataError, match=r"no 33,554,432 bytes of pinned .*\(CUDA error: out of memory\): .*--part-"):
        copies._place(rows)


def test_what_else_a_gpu_reports_is_not_blamed_on_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    copies, rows = HostCopies(), torch.zeros(3)
    monkeypatch.setattr(torch, "empty", fault)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        copies._place(rows)


class Stream:
    """Does nothing before it is waited for; to wait for another is to wait for what that had been given by then."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self._done = 0

    def wait_stream(self, other: "Stream") -> None:
        given = len(other.work)
        self.work.append(lambda: other._run(given))

    def synchronize(self) -> None:
        self._run(len(self.work))

    def _run(self, stop: int) -> None:
        while self._done < stop:
            self._done += 1
            self.work[self._done - 1]()


class Rows:
    """Stands for rows on a GPU: computed late, on the model's stream, and overwritten as soon as nobody holds them."""

    def __init__(self, device: "Device", values: torch.Tensor) -> None:
        self.device = device.kind
        self.nbytes, self.dtype, self.shape = values.nbytes, values.dtype, values.shape
        self.memory = torch.full_like(values, -1)
        self.users: list[Stream] = []
        device.model.work.append(lambda: self.memory.copy_(values))

    def record_stream(self, stream: Stream) -> None:
        self.users.append(stream)

    def let_go(self, device: "Device") -> None:
        """Give the memory to the next tensor, which waits only for streams that were recorded."""
        for stream in self.users:
            device.model.wait_stream(stream)
        device.model.work.append(lambda: self.memory.fill_(-2))


class Device:
    """A GPU's streams: the model's, and the one that copies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = torch.device("cuda", 0)
        self.model, self.chosen = Stream(), None
        self.made: list[Stream] = []
        monkeypatch.setattr(torch.cuda, "Stream", self._make)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.model)
        monkeypatch.setattr(torch.cuda, "stream", self._choose)
        monkeypatch.setattr(torch.cuda, "device", self._enter)
        self.current: torch.device | None = None
        copy = torch.Tensor.copy_

        def copy_(target: torch.Tensor, source: object, non_blocking: bool = False) -> torch.Tensor:
            if not isinstance(source, Rows):
                return copy(target, source)
            assert non_blocking, "the host would wait for the GPU"
            (self.chosen or self.model).work.append(lambda: copy(target, source.memory))
            return target

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)

    def _make(self, _: torch.device) -> Stream:
        self.made.append(Stream())
        return self.made[-1]

    @contextmanager
    def _enter(self, device: torch.device) -> Iterator[None]:
        self.current = device
        yield
        self.current = None

    @contextmanager
    def _choose(self, stream: Stream) -> Iterator[None]:
        assert self.current == self.kind, "leaving a stream makes the device current that was so before"
        self.chosen = stream
        yield
        self.chosen = None


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("first", ["copies", "model"])
def test_copies_go_on_their_own_stream_beside_the_model(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Which streams wait for which, on stand-ins that do all work as late as they may; no hardware takes part."""
    device, copies = Device(monkeypatch), HostCopies()
    values = [torch.randn(size, 3) for size in (1, 50, 400)]
    brought = []
    for own in values:
        rows = Rows(device, own)
        brought.append(copies.bring(cast("torch.Tensor", rows)))
        rows.let_go(device)
    assert len(device.made) == 1
    assert not any(torch.equal(mine, own) for mine, own in zip(brought, values, strict=True)), "nothing has run yet"
    if first == "model":
        device.model.synchronize()
    copies.wait()
    assert all(torch.equal(mine, own) for mine, own in zip(brought, values, strict=True))


on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA device, named by STRATA_TEST_GPU; packing and the order of streams are tested without one",
)

_CYCLES = 200_000_000  # of a GPU's clock: a tenth of a second, in which all that does not wait is long over


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@torch.inference_mode()
def test_copies_are_packed_and_equal(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(host_copies, "_FIRST_BYTES", 2**13)
    monkeypatch.setattr(host_copies, "_BLOCK_BYTES", 2**16)
    copies = HostCopies()
    expected, brought = [], []
    # The sizes fit a block together, alone, and not at all.
    for size in (0, 1, 1000, 3000, 5, 40_000, 7) * 20:
        rows = torch.randn(size, 3, device="cuda").to(dtype)
        expected.append(rows.clone())
        brought.append(copies.bring(rows))
    copies.wait()
    for mine, theirs in zip(brought, expected, strict=True):
        assert mine.is_pinned() or not mine.numel()
        assert torch.equal(mine, theirs.cpu())


@on_a_gpu
@torch.inference_mode()
def test_a_copy_waits_for_the_rows_to_be_computed() -> None:
    values, copies = torch.randn(1000, 3, device="cuda"), HostCopies()
    copies.bring(values)  # to pin memory waits for the device
    rows = torch.zeros_like(values)
    torch.cuda._sleep(_CYCLES)
    rows.copy_(values)
    brought = copies.bring(rows)
    copies.wait()
    assert torch.equal(brought, values.cpu())


@on_a_gpu
@torch.inference_mode()
def test_rows_that_are_let_go_stay_until_they_are_copied() -> None:
    values, copies = torch.randn(1000, 3, device="cuda"), HostCopies()
    copies.bring(values)
    with torch.cuda.stream(copies._streams[values.device]):
        torch.cuda._sleep(_CYCLES)
    rows = values.clone()
    brought = copies.bring(rows)
    del rows
    overwriting = [torch.full_like(values, -1) for _ in range(10)]  # one of them gets what is free
    copies.wait()
    assert torch.equal(brought, values.cpu())
    assert len(overwriting) == 10
