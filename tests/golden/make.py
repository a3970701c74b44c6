"""Write the golden store of the current format version: ``python -m tests.golden.make`` at the repository's root.

Its values follow from ``state``, ``block_values`` and ``only_kept`` below, so that a test of any later version knows
what it must read. A store of a released version is never written again: a new format version gets a new folder beside
it.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.store import (
    PLAN_SCHEMA,
    THUMBNAIL_SAMPLES_SCHEMA,
    BadSample,
    Coordinate,
    ModelMatrix,
    PartArray,
    PartContent,
    block_coordinate,
    create_store,
    layer_coordinate,
    query_coordinate,
    role_coordinate,
    source_role_coordinate,
    write_part,
)
from engine.store.layout import FORMAT_VERSION
from engine.vocabulary import ROLE_CODES, ROLES, role_flags
from tests.engine.store.builders import PIECES, places_of_keys, tiny_record, tiny_vocabulary

FOLDER = Path(__file__).parent / FORMAT_VERSION
LAYERS = (0, 2, 3)
DIM = 4
PLAN_SHA256 = "5" * 64
# Two prompts of image "a" share its first four tokens; image "b" is unreadable and has a part of its own.
TOKEN_ROLES = ("special", "preamble", "image", "image", "instruction", "template", "instruction", "template")
BLOCKS = (1, 3)
HEADS = 2
QUERIES = ("last_text", "last_image", "target:0")
QUERY_POSITIONS = (5, 3, -1)
KEPT_BLOCKS = (3,)
KEPT_ROLES = ("image", "instruction")
FEWER = "token/attention_mass"
LENS_LAYERS = (2, 3)
LENS_ROLES = ("image",)
TOPK = 2
THUMBNAIL = b"\xff\xd8 bytes of a JPEG \xff\xd9"
SEGMENTS = {"a/normal-1": ((0, 4), (4, 6)), "a/question-1": ((0, 4), (6, 8))}


def state(layer: int, token: int, component: int) -> float:
    """The stored state: eighths, hence exact in every dtype."""
    return (layer + 1) * (token + 1) / 8 - component


def states() -> np.ndarray:
    """All states of part 0: (layer, token, dim) float32, the layers being those stored."""
    layer, token, component = np.meshgrid(LAYERS, np.arange(len(TOKEN_ROLES)), np.arange(DIM), indexing="ij")
    return np.asarray((layer + 1) * (token + 1) / 8 - component, np.float32)


def attention(block: int, query: int, head: int, sample: int, position: int) -> float:
    """The stored weight: halves of halves up to the query's position, in an order that says whose they are."""
    if QUERY_POSITIONS[query] < 0:
        return float("nan")
    count = QUERY_POSITIONS[query] + 1
    place = (position + block + head + sample) % count
    return 0.0 if position >= count else 0.5 ** min(place + 1, count - 1)


def block_values() -> dict[str, np.ndarray]:
    """All arrays of blocks of part 0: float32, exact in every dtype."""
    blocks, heads, tokens = np.array(BLOCKS), np.arange(HEADS), np.arange(len(TOKEN_ROLES))
    weights = [
        [[[attention(b, q, h, s, p) for s in (0, 1) for p in range(6)] for h in heads] for q in range(len(QUERIES))]
        for b in BLOCKS
    ]
    norms = [
        [[b + s + p / 8 if position >= 0 else np.nan for s in (0, 1) for p in range(6)] for position in QUERY_POSITIONS]
        for b in BLOCKS
    ]
    per_token = blocks[:, None, None] + heads[:, None] / 2 + tokens / 8
    outputs = [[[state(b, t, c) + 0.5 for c in range(DIM)] for t in tokens] for b in BLOCKS]
    arrays = {
        "key/attention": weights,
        "key/attention_norm": norms,
        "token/value_norm": per_token,
        "token/attention_mass": per_token[..., None] + np.arange(len(ROLES)) / 16,
        "token/attention_output": outputs,
        "token/mlp_output": np.negative(outputs),
    }
    return {path: np.asarray(values, np.float32) for path, values in arrays.items()}


def only_kept(values: np.ndarray) -> np.ndarray:
    """The values of ``FEWER`` (block, head, token, source_role): NaN but in the blocks and roles that are kept."""
    blocks = np.isin(BLOCKS, KEPT_BLOCKS)[:, None, None, None]
    tokens = np.isin(TOKEN_ROLES, KEPT_ROLES)[:, None]
    return np.where(blocks & tokens, values, np.float32(np.nan))


def lens_values() -> dict[str, np.ndarray]:
    """Ids and logits of the lens (layer, token, rank): −1 and NaN but at the layers and roles that are kept."""
    layer, token, rank = np.meshgrid(LAYERS, np.arange(len(TOKEN_ROLES)), np.arange(TOPK), indexing="ij")
    kept = np.isin(layer, LENS_LAYERS) & np.isin(TOKEN_ROLES, LENS_ROLES)[:, None]
    return {
        "token/lens_token_id": np.where(kept, 3 + (layer + token + rank) % 4, -1).astype(np.int32),
        "token/lens_logit": np.where(kept, layer + token / 8 - rank, np.nan).astype(np.float32),
    }


def lens_arrays(tokens: int) -> tuple[PartArray, ...]:
    """The arrays of the lens of a part of so many tokens."""
    said = {"units": "1", "layers": list(LENS_LAYERS), "roles": list(LENS_ROLES)}
    kept = (len(LENS_LAYERS), int(np.isin(TOKEN_ROLES[:tokens], LENS_ROLES).sum()), TOPK)
    return tuple(
        PartArray(
            path,
            ("layer", "token", "rank"),
            (len(LAYERS), tokens, TOPK),
            str(values.dtype),
            np.ascontiguousarray(values[:, :tokens]).__getitem__,
            said,
            kept=kept,
        )
        for path, values in lens_values().items()
    )


BLOCK_DIMS = {
    "key/attention": ("block", "query", "head", "key"),
    "key/attention_norm": ("block", "query", "key"),
    "token/value_norm": ("block", "head", "token"),
    "token/attention_mass": ("block", "head", "token", "source_role"),
    "token/attention_output": ("block", "token", "dim"),
    "token/mlp_output": ("block", "token", "dim"),
}


def block_arrays(tokens: int, keys: int) -> tuple[PartArray, ...]:
    """The arrays of blocks of a part of so many tokens and keys (all, or none)."""
    lengths = {"token": tokens, "key": keys}
    arrays = []
    for path, values in block_values().items():
        dims = BLOCK_DIMS[path]
        axis = next(number for number, dim in enumerate(dims) if dim in lengths)
        chosen = only_kept(values) if path == FEWER else values
        stored = np.ascontiguousarray(chosen.take(range(lengths[dims[axis]]), axis))
        said = {"blocks": list(KEPT_BLOCKS), "roles": list(KEPT_ROLES)} if path == FEWER else {}
        kept = (len(KEPT_BLOCKS), HEADS, int(np.isin(TOKEN_ROLES[:tokens], KEPT_ROLES).sum()), len(ROLES))
        array = PartArray(path, dims, stored.shape, "float32", stored.__getitem__, {"units": "1", **said})
        arrays.append(replace(array, kept=kept) if said else array)
    return tuple(arrays)


def unembedding() -> np.ndarray:
    """(vocab, dim) float32: row number plus column eighths."""
    return np.asarray(np.arange(len(PIECES))[:, None] + np.arange(DIM) / 8, np.float32)


def part(number: int) -> PartContent:
    """Part 0 with two samples, part 1 with none."""
    tokens = len(TOKEN_ROLES) if number == 0 else 0
    samples = list(SEGMENTS) if number == 0 else []
    roles = np.array([ROLE_CODES[role] for role in TOKEN_ROLES[:tokens]], np.int32)
    values = states()[:, :tokens]
    counts = np.zeros((len(ROLES), len(samples)), np.int32)
    mean = np.full((len(LAYERS), len(ROLES), len(samples), DIM), np.nan, np.float32)
    for column, sample_id in enumerate(samples):
        own = np.concatenate([np.arange(start, stop) for start, stop in SEGMENTS[sample_id]])
        for role in np.unique(roles[own]):
            chosen = own[roles[own] == role]
            counts[role, column] = len(chosen)
            mean[:, role, column] = values[:, chosen].mean(1)
    dims = ("layer", "role", "sample", "dim")
    arrays = (
        PartArray(
            "token/hidden_states",
            ("layer", "token", "dim"),
            values.shape,
            "float32",
            lambda index: np.ascontiguousarray(values[index]),
            {"units": "1", "long_name": "residual stream", "captured_dtype": "bfloat16"},
        ),
        PartArray("sample/mean", dims, mean.shape, "float32", lambda index: mean[index]),
        PartArray("sample/token_count", dims[1:3], counts.shape, "int32", lambda index: counts[index]),
        *block_arrays(tokens, 6 * len(samples)),
        *lens_arrays(tokens),
    )
    key_token = [np.arange(start, stop) for sample_id in samples for start, stop in SEGMENTS[sample_id]]
    position = np.array([0, 1, 2, 3, 4, 5, 4, 5], np.int32)[:tokens]
    image = roles == ROLE_CODES["image"]
    coordinates = (
        layer_coordinate("token", LAYERS),
        Coordinate("token/token_id", ("token",), position),
        Coordinate("token/role", ("token",), roles, role_flags()),
        Coordinate("token/position", ("token",), position),
        Coordinate("token/grid", ("token",), np.where(image, 0, -1).astype(np.int32)),
        Coordinate("token/patch_row", ("token",), np.where(image, 0, -1).astype(np.int32)),
        Coordinate("token/patch_col", ("token",), np.where(image, position - 2, -1).astype(np.int32)),
        layer_coordinate("sample", LAYERS),
        role_coordinate(),
        block_coordinate("token", BLOCKS),
        source_role_coordinate(),
        block_coordinate("key", BLOCKS),
        query_coordinate(QUERIES),
        Coordinate("key/token", ("key",), np.concatenate([np.zeros(0), *key_token]).astype(np.int32)),
    )
    coordinates += tuple(places_of_keys(coordinates))
    rows = [
        {
            "sample_id": sample_id,
            "image_id": "a",
            "item_id": "7",
            "image_uri": "a.png",
            "image_sha256": "a" * 64,
            "width": 20,
            "height": 10,
            "prompt_id": sample_id.split("/")[1],
            "prompt_kind": sample_id.split("/")[1].split("-")[0],
            "prompt": "What is this?",
            "references": ["a red circle"],
            "segments": [{"start": start, "stop": stop} for start, stop in SEGMENTS[sample_id]],
            "grids": [{"rows": 1, "cols": 2, "x0": 0.0, "y0": 0.0, "x1": 20.0, "y1": 10.0, "thumbnail": False}],
            "key_start": 6 * number_of_sample,
            "key_stop": 6 * number_of_sample + 6,
            "query_positions": QUERY_POSITIONS,
            "thumbnail": None if number_of_sample else THUMBNAIL,
        }
        for number_of_sample, sample_id in enumerate(samples)
    ]
    bad = () if number == 0 else (BadSample("b/normal-1", "zero bytes"), BadSample("b/question-1", "zero bytes"))
    run = {"versions": {"strata": "0.1.0"}, "attention": "sdpa", "dtype": "bfloat16", "batch_size": 1}
    table = pa.Table.from_pylist(rows, schema=THUMBNAIL_SAMPLES_SCHEMA)
    return PartContent(number, arrays, coordinates, table, bad, run, 0.25)


def main() -> None:
    """Write the store anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    planned = [
        (f"{image}/{prompt}", image, prompt, number)
        for number, image in enumerate("ab")
        for prompt in ("normal-1", "question-1")
    ]
    matrix = unembedding()
    record = tiny_record(LAYERS, 3, "bfloat16", PLAN_SHA256)
    capture = {
        "tensors": ["residual", "pooled", "attention", "attention-mass", "attention-output", "mlp-output", "lens"],
        "layers": LAYERS,
        "share_prefix": True,
        "residual_layers": None,
        "blocks": BLOCKS,
        "queries": QUERIES,
        "dtypes": {},
        "roles": None,
        "tensor_roles": {"attention-mass": KEPT_ROLES, "lens": LENS_ROLES},
        "tensor_blocks": {"attention-mass": KEPT_BLOCKS},
        "thumbnails": True,
        "lens_topk": TOPK,
        "lens_layers": LENS_LAYERS,
    }
    create_store(
        FOLDER,
        record={**record, "capture": capture},
        plan=pa.table(list(map(list, zip(*planned, strict=True))), schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary(),
        unembedding=ModelMatrix(matrix.shape, "float32", lambda start, stop: matrix[start:stop]),
        final_norm_weight=np.arange(1, DIM + 1, dtype=np.float32),
        final_norm_bias=None,
        attributes={
            "norm_kind": "rms",
            "norm_eps": 1e-5,
            "norm_weight_offset": 0.0,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )
    for number in range(2):
        write_part(FOLDER, part(number), plan_sha256=PLAN_SHA256)
    shutil.rmtree(FOLDER / ".staging")


if __name__ == "__main__":
    main()
