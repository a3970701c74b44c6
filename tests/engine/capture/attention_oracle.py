"""What eager attention says of one sample, and norms of transformed values by their definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.batch import BatchItem, collate, whole_runs
from engine.models.load import LoadedModel


class Eager(NamedTuple):
    """Per block: attention (head, query, key), transformed values f (head, key, dim), outputs (position, dim)."""

    attention: list[torch.Tensor]
    transformed: list[torch.Tensor]
    attention_output: list[torch.Tensor]
    mlp_output: list[torch.Tensor]


@contextmanager
def _eager(loaded: LoadedModel) -> Iterator[None]:
    config = loaded.language.config
    kernel, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = kernel


def eager(loaded: LoadedModel, item: BatchItem) -> Eager:
    """Run one sample without padding under eager attention, everything in float32."""
    seen: dict[str, list[torch.Tensor]] = {"attention": [], "value": [], "output": [], "mlp": []}
    handles = []
    for block in loaded.language.blocks:

        def on_attention(_module: object, _arguments: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            seen["output"].append(output[0][0].float())
            seen["attention"].append(output[1][0].float())

        handles += [
            block.self_attn.register_forward_hook(on_attention),
            block.self_attn.v_proj.register_forward_hook(lambda _m, _a, out: seen["value"].append(out[0].float())),
            block.mlp.register_forward_hook(lambda _m, _a, out: seen["mlp"].append(out[0].float())),
        ]
    inputs = collate(whole_runs([item]), pad_id=0)
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, loaded.dtype))
    with torch.inference_mode(), _eager(loaded):
        loaded.model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    transformed = [
        transformed_values(block.self_attn.o_proj.weight.detach().float(), values, len(attention))
        for block, values, attention in zip(loaded.language.blocks, seen["value"], seen["attention"], strict=True)
    ]
    return Eager(seen["attention"], transformed, seen["output"], seen["mlp"])


def transformed_values(weight: torch.Tensor, values: torch.Tensor, heads: int) -> torch.Tensor:
    """f^h(x_j) = v_j W_O^h one by one: weight (dim, head × head_dim), values (key, key head × head_dim)."""
    width = weight.shape[1] // heads
    shared = heads // (values.shape[1] // width)
    rows = []
    for head in range(heads):
        start = head // shared * width
        rows.append(values[:, start : start + width] @ weight[:, head * width : (head + 1) * width].T)
    return torch.stack(rows)


def own_rows(rows: torch.Tensor, items: list[BatchItem], sample: int) -> np.ndarray:
    """The rows of one sample, where every position of every sample has a row."""
    start = sum(len(item.layout) for item in items[:sample])
    return rows[start : start + len(items[sample].layout)].float().numpy()
