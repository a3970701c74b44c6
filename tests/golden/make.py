"""Write the golden store of the current format version: ``python -m tests.golden.make`` at the repository's root.

It holds every array that the format has, of the values in :mod:`tests.golden.values`. A store of a released version is
never written again: a new format version gets a new folder beside it.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from engine.store import (
    PLAN_SCHEMA,
    THUMBNAIL_SAMPLES_SCHEMA,
    BadSample,
    Coordinate,
    ModelMatrix,
    PartArray,
    PartContent,
    block_coordinate,
    canonical_json,
    create_store,
    in_dtypes,
    layer_coordinate,
    query_coordinate,
    role_coordinate,
    source_role_coordinate,
    write_part,
)
from engine.store.layout import FORMAT_VERSION
from engine.vocabulary import ROLE_CODES, ROLES, role_flags
from tests.engine.store.builders import places_of_keys, tiny_record, tiny_vocabulary
from tests.golden.values import (
    BLOCKS,
    DIM,
    FEWER,
    HEADS,
    KEPT_BLOCKS,
    KEPT_ROLES,
    LAYERS,
    LENGTH,
    LENS_LAYERS,
    LENS_ROLES,
    NORM_BIAS,
    NORM_EPS,
    NORM_WEIGHT,
    QUERIES,
    QUERY_POSITIONS,
    SEGMENTS,
    SOFTCAP,
    TOKEN_ROLES,
    TOPK,
    WEIGHT_OFFSET,
    block_values,
    lens_values,
    only_kept,
    places,
    pooled_values,
    states,
    unembedding,
)

FOLDER = Path(__file__).parent / FORMAT_VERSION
PROMPTS = ("normal-1", "question-1")
DTYPES = {"mlp-output": "float16"}

DIMS = {
    "token/hidden_states": ("layer", "token", "dim"),
    "token/lens_token_id": ("layer", "token", "rank"),
    "token/lens_logit": ("layer", "token", "rank"),
    "sample/unit_mean": ("layer", "role", "sample", "dim"),
    "sample/mean": ("layer", "role", "sample", "dim"),
    "sample/normed_unit_mean": ("role", "sample", "dim"),
    "sample/token_count": ("role", "sample"),
    "key/attention": ("block", "query", "head", "key"),
    "key/attention_norm": ("block", "query", "key"),
    "token/value_norm": ("block", "head", "token"),
    "token/attention_mass": ("block", "head", "token", "source_role"),
    "token/attention_output": ("block", "token", "dim"),
    "token/mlp_output": ("block", "token", "dim"),
}


def stored_values() -> dict[str, np.ndarray]:
    """All data arrays of part 0, as they are handed over."""
    values = {"token/hidden_states": states(), **pooled_values(), **block_values(), **lens_values()}
    return values | {FEWER: only_kept(values[FEWER])}


def arrays(lengths: Mapping[str, int]) -> tuple[PartArray, ...]:
    """All data arrays of a part of so many tokens, keys and samples (all, or none)."""
    tokens = TOKEN_ROLES[: lengths["token"]]
    image, both = (int(np.isin(tokens, roles).sum()) for roles in (LENS_ROLES, KEPT_ROLES))
    of_lens = {"layers": list(LENS_LAYERS), "roles": list(LENS_ROLES)}
    of_fewer = {"blocks": list(KEPT_BLOCKS), "roles": list(KEPT_ROLES)}
    said = {
        "token/hidden_states": {"long_name": "residual stream", "captured_dtype": "bfloat16"},
        "token/lens_token_id": of_lens,
        "token/lens_logit": of_lens,
        FEWER: of_fewer,
    }
    kept = {
        "token/lens_token_id": (len(LENS_LAYERS), image, TOPK),
        "token/lens_logit": (len(LENS_LAYERS), image, TOPK),
        FEWER: (len(KEPT_BLOCKS), HEADS, both, len(ROLES)),
    }
    made = []
    for path, values in stored_values().items():
        dims = DIMS[path]
        own = values[tuple(slice(lengths.get(dim)) for dim in dims)].copy()
        attributes = {"units": "1", **said.get(path, {})}
        made.append(PartArray(path, dims, own.shape, str(own.dtype), own.__getitem__, attributes, kept=kept.get(path)))
    return tuple(made)


def coordinates(tokens: int, samples: int) -> tuple[Coordinate, ...]:
    """All coordinates of a part."""
    roles = np.array([ROLE_CODES[role] for role in TOKEN_ROLES[:tokens]], np.int32)
    position = np.array([0, 1, 2, 3, 4, 5, 4, 5], np.int32)[:tokens]
    image = roles == ROLE_CODES["image"]
    key_token = np.array([token for sample in range(samples) for token in places(sample)], np.int32)
    found = (
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
        Coordinate("key/token", ("key",), key_token),
    )
    return found + tuple(places_of_keys(found))


def thumbnail() -> bytes:
    """A red JPEG of the image's size."""
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def sample_row(number: int, sample_id: str) -> dict[str, Any]:
    """One row of the sample table."""
    return {
        "sample_id": sample_id,
        "image_id": "a",
        "item_id": "7",
        "image_uri": "a.png",
        "image_sha256": "a" * 64,
        "width": 20,
        "height": 10,
        "prompt_id": sample_id.split("/")[1],
        "prompt_kind": sample_id.split("/")[1].split("-", maxsplit=1)[0],
        "prompt": "What is this?",
        "references": ["a red circle"],
        "segments": [{"start": start, "stop": stop} for start, stop in SEGMENTS[sample_id]],
        "grids": [{"rows": 1, "cols": 2, "x0": 0.0, "y0": 0.0, "x1": 20.0, "y1": 10.0, "thumbnail": False}],
        "key_start": LENGTH * number,
        "key_stop": LENGTH * (number + 1),
        "query_positions": QUERY_POSITIONS,
        "thumbnail": None if number else thumbnail(),
    }


def part(number: int) -> PartContent:
    """Part 0 with two samples, part 1 with none."""
    samples = list(SEGMENTS) if number == 0 else []
    tokens = len(TOKEN_ROLES) if number == 0 else 0
    lengths = {"token": tokens, "key": LENGTH * len(samples), "sample": len(samples)}
    rows = [sample_row(at, sample_id) for at, sample_id in enumerate(samples)]
    bad = () if number == 0 else (BadSample("b/normal-1", "zero bytes"), BadSample("b/question-1", "zero bytes"))
    run = {
        "versions": {"activation-strata": "0.1.0"},
        "attention_kernel": "sdpa",
        "dtype": "bfloat16",
        "device": "cpu",
        "batch_size": 1,
        "largest_batch": {"samples": 1, "positions": LENGTH},
        "padding_side": "left",
        "prefix_pass": "once per image",
        "model_revision": "0" * 40,
        "rank": 0,
        "world_size": 1,
    }
    table = pa.Table.from_pylist(rows, schema=THUMBNAIL_SAMPLES_SCHEMA)
    content = PartContent(number, arrays(lengths), coordinates(tokens, len(samples)), table, bad, run, 0.25)
    return in_dtypes(content, DTYPES)


def main() -> None:
    """Write the store anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    planned = [(f"{image}/{prompt}", image, prompt, number) for number, image in enumerate("ab") for prompt in PROMPTS]
    matrix = unembedding()
    record = settings()
    plan_sha256 = hashlib.sha256(canonical_json(record)).hexdigest()
    create_store(
        FOLDER,
        record={**record, "plan_sha256": plan_sha256},
        plan=pa.table(list(map(list, zip(*planned, strict=True))), schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary(),
        unembedding=ModelMatrix(matrix.shape, "float32", lambda start, stop: matrix[start:stop]),
        final_norm_weight=NORM_WEIGHT,
        final_norm_bias=NORM_BIAS,
        attributes={
            "norm_kind": "layer",
            "norm_eps": NORM_EPS,
            "norm_weight_offset": WEIGHT_OFFSET,
            "logit_softcap": SOFTCAP,
            "tied_embeddings": False,
        },
    )
    for number in range(2):
        write_part(FOLDER, part(number), plan_sha256=plan_sha256)
    shutil.rmtree(FOLDER / ".staging")


def settings() -> dict[str, Any]:
    """What store.json says of the run, all that its plan's identity is made of."""
    images = '["a", "a.png", ["a red circle"], "7"]\n["b", "b.png", ["a blue square"], "b"]\n'
    record = tiny_record(LAYERS, 3, "bfloat16", "")
    del record["plan_sha256"]
    model: Any = record["model"]
    capture = {
        "tensors": ["residual", "pooled", "attention", "attention-mass", "attention-output", "mlp-output", "lens"],
        "layers": LAYERS,
        "roles": None,
        "share_prefix": True,
        "mantissa_bits": None,
        "unembedding": True,
        "residual_layers": None,
        "blocks": BLOCKS,
        "queries": QUERIES,
        "dtypes": DTYPES,
        "tensor_roles": {"attention-mass": KEPT_ROLES, "lens": LENS_ROLES},
        "tensor_blocks": {"attention-mass": KEPT_BLOCKS},
        "thumbnails": True,
        "lens_topk": TOPK,
        "lens_layers": LENS_LAYERS,
    }
    return {
        **record,
        "model": {**model, "dim": DIM},
        "source": {
            "kind": "coco",
            "split": None,
            "annotations_sha256": "1" * 64,
            "images": 2,
            "images_sha256": hashlib.sha256(images.encode()).hexdigest(),
        },
        "prompts": [{"prompt_id": name, "kind": name.split("-")[0], "text": "What is this?"} for name in PROMPTS],
        "capture": capture,
        "images_per_part": 1,
    }


if __name__ == "__main__":
    main()
