"""Attention rows and norms of transformed values, from the tensors of one attention call.

Formulas: Kobayashi et al. 2020, with f^h(x_j) = v_j^h W_O^h, where v is the value after its bias and the bias of the
output projection stays out. Everything is computed in float32 from the model's own query (after its rotation), key,
value, mask, scaling and softcap. Nothing has a size of tokens × tokens, nor of head × query × key × dim.
"""

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from engine.errors import StrataError

__all__ = [
    "AttentionCall",
    "blocked_attention",
    "output_projection",
    "query_blocks",
    "softmax_rows",
    "summed_norms",
    "value_norms",
    "visible_keys",
]

_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")
_BLOCK_VALUES = 2**22  # float32 weights that a block of queries may take: 16 MiB
_BLOCK_QUERIES = 128
_CHUNK_ROWS = 1024  # values that are transformed at a time: fewer would starve a GPU, more would add to the peak

_FACTORS: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()


class AttentionCall(NamedTuple):
    """One call of a block's attention.

    Attributes
    ----------
    block
        Its number, 1..L.
    module
        The attention module.
    query
        (sample, head, position, head_dim).
    key, value
        (sample, key head, key, head_dim), the positions' own behind those of what precedes them; a key head serves as
        many heads as there are heads to one key head.
    mask
        What the model passed: (sample or 1, head or 1, position, key), bool (true = seen) or added to the scores;
        (sample, key), true where there is no padding; None: causal where ``causal`` and there is more than one query.
    scaling, softcap
        Of the scores.
    window
        Number of keys seen, the own one included, where the mask does not tell.
    """

    block: int
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    causal: bool
    window: int | None


def softmax_rows(call: AttentionCall, positions: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax rows of some queries.

    Parameters
    ----------
    positions
        (sample, query) int64 positions of the padded sequence.
    keys
        ``call.key`` in float32, where the caller has it already.

    Returns
    -------
    Tensor
        (sample, head, query, key) float32; every row sums to 1.
    """
    samples, heads, _, width = call.query.shape
    key_heads = call.key.shape[1]
    keys = call.key.float() if keys is None else keys
    rows = call.query.transpose(1, 2)[_sample_index(positions), positions].transpose(1, 2)
    grouped = rows.float().reshape(samples, key_heads, -1, width)
    scores = torch.matmul(grouped, keys.transpose(2, 3)).mul_(call.scaling)
    scores = scores.view(samples, heads, positions.shape[1], keys.shape[2])
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    allowed, bias = _mask_rows(call, positions)
    if bias is not None:
        scores = scores.add_(bias)
    if allowed is not None:
        scores = scores.masked_fill_(~allowed, -torch.inf)
    return torch.softmax(scores, dim=-1)


def visible_keys(call: AttentionCall, positions: torch.Tensor) -> torch.Tensor:
    """Tell which keys can have weight: (sample, query, key) bool."""
    allowed, bias = _mask_rows(call, positions)
    if bias is not None and call.mask is not None:
        # What is added to a masked score is the most negative number of its dtype; the weight is exactly 0.
        seen = bias > torch.finfo(call.mask.dtype).min / 2
        allowed = seen if allowed is None else allowed & seen
    shape = (*positions.shape, call.key.shape[2])
    if allowed is None:
        return torch.ones(shape, dtype=torch.bool, device=positions.device)
    return allowed.any(dim=1).expand(shape)


def _mask_rows(call: AttentionCall, positions: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Tell what is seen, bool, and what is added to scores, both (sample or 1, head or 1, query, key) or None."""
    mask = call.mask
    if mask is not None and mask.dim() == 4:
        if mask.shape[0] == 1:
            mask = mask.expand(len(positions), -1, -1, -1)
        rows = mask.transpose(1, 2)[_sample_index(positions), positions].transpose(1, 2)[..., : call.key.shape[2]]
        return (rows, None) if rows.dtype == torch.bool else (None, rows.float())
    keys = torch.arange(call.key.shape[2], device=positions.device)
    past = call.key.shape[2] - call.query.shape[2]
    distance = (positions[:, :, None] + past - keys)[:, None]
    allowed = None if mask is None else mask.bool()[:, None, None, :]
    if call.causal and call.query.shape[2] > 1:
        allowed = distance >= 0 if allowed is None else allowed & (distance >= 0)
    if call.window is not None:
        near = distance.abs() < call.window
        allowed = near if allowed is None else allowed & near
    return allowed, None


def _sample_index(positions: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(positions), device=positions.device)[:, None]


def query_blocks(call: AttentionCall) -> Iterator[torch.Tensor]:
    """Positions of all queries, block by block, (sample, query) int64, as many as bounded memory allows."""
    samples, heads, length, _ = call.query.shape
    step = min(max(_BLOCK_VALUES // (samples * heads * call.key.shape[2]), 1), _BLOCK_QUERIES)
    for start in range(0, length, step):
        block = torch.arange(start, min(start + step, length), device=call.query.device)
        yield block.expand(samples, -1)


def blocked_attention(call: AttentionCall) -> torch.Tensor:
    """Attend in blocks of queries; softmax in float32, then the dtype of the values, as eager attention does.

    Returns
    -------
    Tensor
        (sample, position, head, head_dim) in the dtype of the query.
    """
    samples, heads, length, _ = call.query.shape
    key_heads, width = call.value.shape[1], call.value.shape[3]
    keys = call.key.float()
    output = call.query.new_empty(samples, length, heads, width)
    start = 0
    for positions in query_blocks(call):
        # A row of padding sees nothing, and NaN would spread from it.
        weights = softmax_rows(call, positions, keys).nan_to_num_(0.0).to(call.value.dtype)
        grouped = weights.view(samples, key_heads, -1, weights.shape[3])
        mixed = torch.matmul(grouped, call.value).view(samples, heads, -1, width)
        # Counted here: asking a GPU for the first position would wait for all it has been given.
        stop = start + positions.shape[1]
        output[:, start:stop] = mixed.transpose(1, 2)
        start = stop
    return output


def output_projection(module: torch.nn.Module) -> torch.nn.Linear:
    """Find the output projection of an attention module.

    Raises
    ------
    StrataError
        Where it has none under a known name.
    """
    for name in _OUTPUT_PROJECTIONS:
        projection = getattr(module, name, None)
        if isinstance(projection, torch.nn.Linear):
            return projection
    raise StrataError(
        f"{type(module).__name__} has no linear output projection under a name that strata knows "
        f"({', '.join(_OUTPUT_PROJECTIONS)}), so values cannot be transformed: leave attention out of --capture."
    )


def value_norms(module: torch.nn.Module, values: torch.Tensor, heads: int) -> torch.Tensor:
    """Norm of each transformed value, per head: ‖f^h(x_j)‖ = √(v^T (W_O^hᵀ W_O^h) v).

    Parameters
    ----------
    module
        The attention module.
    values
        (row, key head, head_dim).
    heads
        Number of heads.

    Returns
    -------
    Tensor
        (row, head) float32.
    """
    key_heads = values.shape[1]
    factor = _factor(module, heads, key_heads)
    norms = []
    for chunk in values.split(_CHUNK_ROWS // 2):  # float32 takes twice the room
        images = torch.bmm(chunk.float().transpose(0, 1), factor)
        grouped = images.view(key_heads, len(chunk), heads // key_heads, -1)
        norms.append(torch.linalg.vector_norm(grouped, dim=-1).transpose(0, 1).reshape(len(chunk), heads))
    return torch.cat(norms)


def _factor(module: torch.nn.Module, heads: int, key_heads: int) -> torch.Tensor:
    """Triangular factors R_h of all heads with R_hᵀR_h = W_O^hᵀ W_O^h, (key head, head_dim, head of group × rank).

    ‖R_h v‖ loses half as many digits as v^T(RᵀR)v where v is almost in the null space.
    """
    if module not in _FACTORS:
        weight = output_projection(module).weight.detach().float()
        per_head = weight.view(len(weight), heads, -1).transpose(0, 1)
        factor = torch.linalg.qr(per_head, mode="r").R
        grouped = factor.view(key_heads, heads // key_heads, *factor.shape[1:])
        _FACTORS[module] = grouped.permute(0, 3, 1, 2).reshape(key_heads, factor.shape[2], -1).contiguous()
    return _FACTORS[module]


def summed_norms(
    module: torch.nn.Module, values: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Norm of what a key gives to a query through all heads: ‖Σ_h α^h f^h(x_j)‖.

    One product with W_O in the dtype of the model. Weights are divided by their sum over the heads first and the norm
    is multiplied by it, because small weights would leave float16's range.

    Parameters
    ----------
    module
        The attention module.
    values
        (row, key head, head_dim).
    weights
        (row, head) float32, of one query.
    chosen
        (chosen,) rows whose weight is not 0 by the mask.

    Returns
    -------
    Tensor
        (row,) float32; 0 in all other rows.
    """
    projection = output_projection(module).weight
    heads_per_key = weights.shape[1] // values.shape[1]
    norms = weights.new_zeros(len(values))
    for rows in chosen.split(_CHUNK_ROWS):
        share = weights.index_select(0, rows)
        total = share.sum(dim=1)
        share = (share / total.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).to(values.dtype)
        scaled = values.index_select(0, rows)[:, :, None] * share.view(len(rows), values.shape[1], heads_per_key, 1)
        mixed = torch.nn.functional.linear(scaled.flatten(1), projection)
        norms[rows] = torch.linalg.vector_norm(mixed, dim=-1, dtype=torch.float32) * total
    return norms
