"""How much memory capture of attention adds to the peak of a forward pass, counted tensor by tensor."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.models.load import LoadedModel
from tests.engine.capture.test_forward import loaded_model, make_item
from tests.tiny_llava import TinyShape

BLOCKS = 3
SHAPE = TinyShape(blocks=BLOCKS, dim=128, heads=4, key_value_heads=4)
BARE = Probe((), residual=False, pooled=False, block_count=BLOCKS)
ROWS = BARE._replace(attention=True, queries=("last_text", "last_image"), blocks=(1, 2, 3))


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations made and that are still alive, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                place = tensor.untyped_storage().data_ptr()
                self._bytes[place] = tensor.untyped_storage().nbytes()
                self._holders[place] = self._holders.get(place, 0) + 1
                weakref.finalize(tensor, self._drop, place)
        self.peak = max(self.peak, sum(self._bytes.values()))
        return output

    def _drop(self, place: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place], self._bytes[place]


def peak(loaded: LoadedModel, probe: Probe) -> int:
    with LiveBytes() as live:
        capture_batch(loaded, [make_item(0, 1200)], probe, pad_id=0)
    return live.peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_norms_of_two_queries_add_at_most_a_fifth_to_the_peak_of_a_pass(dtype: str) -> None:
    loaded = loaded_model(dtype, SHAPE)
    bare = peak(loaded, BARE)
    assert peak(loaded, ROWS) <= 1.2 * bare
    assert peak(loaded, ROWS) <= 1.2 * bare, "with the factors of the output projections at hand"


def test_attention_per_role_takes_a_bounded_block_of_queries_more() -> None:
    loaded = loaded_model("float32", SHAPE)
    length = len(make_item(0, 1200).layout)
    weights = SHAPE.heads * 128 * length * 4
    assert peak(loaded, ROWS._replace(mass=True)) <= 1.2 * peak(loaded, BARE) + 3 * weights
    assert peak(loaded, ROWS._replace(mass=True)) < peak(loaded, BARE) + SHAPE.heads * length * length * 4
