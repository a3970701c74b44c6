"""Small stores with known states, for any test that needs one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.store import (
    PART_SAMPLES_SCHEMA,
    PLAN_SCHEMA,
    VOCABULARY_SCHEMA,
    BadSample,
    Coordinate,
    ModelMatrix,
    PartArray,
    PartContent,
    create_store,
    layer_coordinate,
    role_coordinate,
    widen_bfloat16,
    write_part,
)
from engine.vocabulary import ROLE_CODES, ROLES, role_flags
from tests.engine.store.block_tensors import QUERIES, TinyBlocks, block_content, key_columns, tiny_blocks
from tests.engine.store.kept_roles import keep_roles
from tests.engine.store.tiny_norm import NORM_EPS, TinyNorm

PIECES = ("<s>", "</s>", "<0x0A>", "▁a", "▁red", "▁circle", "dog", "<pad>")
KINDS = ("special", "special", "byte", "normal", "normal", "normal", "normal", "padding")
PREFIX_ROLES = ("special", "preamble", "image", "image", "image", "image")


@dataclass(frozen=True)
class TinySample:
    """One sample as the model would have seen it: states (layer, token, dim) in the stored dtype."""

    sample_id: str
    image_id: str
    prompt_id: str
    part: int
    states: np.ndarray
    roles: np.ndarray
    item_id: str = ""
    blocks: TinyBlocks | None = None


@dataclass(frozen=True)
class TinyStore:
    """A written store and what is in it."""

    path: Path
    samples: dict[str, TinySample]
    layers: tuple[int, ...]
    norm_weight: np.ndarray
    unembedding: np.ndarray
    record: dict[str, object]


def in_stored_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to what a model of ``dtype`` would hold, in the dtype that the store uses for it."""
    if dtype == "bfloat16":
        return widen_bfloat16((np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return values.astype(dtype)


def tiny_record(layers: Sequence[int], blocks: int, dtype: str, plan_sha256: str) -> dict[str, object]:
    """Everything of store.json that a caller gives."""
    return {
        "model": {
            "id": "tiny/llava",
            "revision": "0" * 40,
            "class": "LlavaForConditionalGeneration",
            "family": "llava",
            "dtype": dtype,
            "blocks": blocks,
            "image_states_depend_on_prompt": False,
        },
        "source": {"kind": "coco", "annotations_sha256": "1" * 64},
        "prompts": [{"prompt_id": "normal-1", "kind": "normal", "text": "Describe."}],
        "capture": {"tensors": ["residual", "pooled"], "layers": list(layers), "share_prefix": "auto"},
        "limit": None,
        "seed": 0,
        "plan_sha256": plan_sha256,
    }


def tiny_store(
    path: Path,
    *,
    seed: int = 0,
    images: int = 3,
    prompts: int = 2,
    layers: Sequence[int] | int = 5,
    dim: int = 16,
    dtype: str = "float16",
    shared_prefix: bool = True,
    residual: bool = True,
    pooled: bool = True,
    parts: int = 2,
    empty_parts: int = 0,
    unembedding: bool = True,
    mantissa_bits: int | None = None,
    written: Sequence[int] | None = None,
    capture: Sequence[str] = (),
    queries: Sequence[str] = QUERIES,
    heads: int = 2,
    roles: Sequence[str] | None = None,
    key_places: bool = True,
    bias: bool = False,
    weight_offset: float = 0.0,
) -> TinyStore:
    """Write a store of random states that share a direction (so that cosines are not all near 0).

    ``layers`` is a number (0..n-1 of n-1 blocks) or the stored layer numbers. ``empty_parts`` adds parts whose samples
    are all bad. ``written`` names the parts to write (all when None). ``capture`` names what to store of the blocks
    (``attention``, ``attention-mass``, ``attention-output``, ``mlp-output``; values in ``TinySample.blocks``), for all
    blocks, with these ``queries``. ``roles`` names those whose tokens are stored (all when None). Without
    ``key_places`` keys have no role of their own, as before format 0.4. The final norm has random weights, to which
    ``weight_offset`` is added; with a random ``bias`` it is a layer norm.
    """
    rng, block_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    numbers = tuple(range(layers)) if isinstance(layers, int) else tuple(layers)
    block_numbers = range(1, max(numbers) + 1)
    common = rng.standard_normal((len(numbers), 1, dim)) * np.linspace(0.5, 2, len(numbers))[:, None, None]
    samples: list[TinySample] = []
    for image in range(images):
        prefix = common + rng.standard_normal((len(numbers), len(PREFIX_ROLES), dim))
        first: TinyBlocks | None = None
        for prompt in range(prompts):
            own_roles = ("instruction",) * (2 + prompt + image % 2) + ("template",)
            own = common + rng.standard_normal((len(numbers), len(own_roles), dim))
            codes = np.array([ROLE_CODES[role] for role in (*PREFIX_ROLES, *own_roles)], np.int32)
            blocks = tiny_blocks(
                block_rng,
                codes,
                numbers=block_numbers,
                queries=queries,
                heads=heads,
                dim=dim,
                prefix=None if first is None else first.values,
                prefix_length=len(PREFIX_ROLES),
            )
            first = first or blocks
            samples.append(
                TinySample(
                    sample_id=f"{image:03d}/normal-{prompt + 1}",
                    image_id=f"{image:03d}",
                    prompt_id=f"normal-{prompt + 1}",
                    part=image * parts // images,
                    states=in_stored_dtype(np.concatenate([prefix, own], axis=1).astype(np.float32), dtype),
                    roles=codes,
                    blocks=blocks,
                )
            )
    bad = [
        (f"bad{number}/normal-{prompt + 1}", f"bad{number}", f"normal-{prompt + 1}", parts + number)
        for number in range(empty_parts)
        for prompt in range(prompts)
    ]
    rows = [(sample.sample_id, sample.image_id, sample.prompt_id, sample.part) for sample in samples] + bad
    plan = pa.table(list(map(list, zip(*rows, strict=True))), schema=PLAN_SCHEMA)
    record = tiny_record(numbers, max(numbers), dtype, f"{seed:064x}")
    chosen = [name for name, on in (("residual", residual), ("pooled", pooled)) if on]
    record["capture"] = {
        "tensors": [*chosen, *capture],
        "layers": list(numbers),
        "roles": None if roles is None else list(roles),
        "share_prefix": "auto",
        "blocks": list(block_numbers) if capture else [],
        "queries": list(queries) if "attention" in capture else [],
        "dtypes": {},
    }
    norm = TinyNorm(rng.uniform(0.5, 2, dim).astype(np.float32), offset=weight_offset)
    matrix = rng.standard_normal((len(PIECES), dim)).astype(np.float32)
    if bias:
        norm = norm._replace(bias=rng.standard_normal(dim).astype(np.float32))
    create_store(
        path,
        record=record,
        plan=plan,
        vocabulary=tiny_vocabulary(),
        unembedding=ModelMatrix(matrix.shape, "float32", lambda start, stop: matrix[start:stop])
        if unembedding
        else None,
        final_norm_weight=norm.weight,
        final_norm_bias=norm.bias,
        attributes={
            "norm_kind": norm.kind,
            "norm_eps": NORM_EPS,
            "norm_weight_offset": norm.offset,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )
    for number in range(parts + empty_parts) if written is None else written:
        content = tiny_part(
            number,
            [sample for sample in samples if sample.part == number],
            layers=numbers,
            dim=dim,
            dtype=dtype,
            shared_prefix=shared_prefix,
            residual=residual,
            pooled=pooled,
            norm=norm,
            bad=[BadSample(sample_id, "zero bytes") for sample_id, *_, part in bad if part == number],
            mantissa_bits=mantissa_bits,
            capture=capture,
            like=samples[0].blocks,
            key_places=key_places,
        )
        if roles is not None:
            content = keep_roles(content, roles)
        write_part(path, content, plan_sha256=str(record["plan_sha256"]))
    return TinyStore(path, {sample.sample_id: sample for sample in samples}, numbers, norm.weight, matrix, record)


def tiny_vocabulary() -> pa.Table:
    """Eight pieces of every kind."""
    starts = [piece.startswith("▁") for piece in PIECES]
    return pa.table([list(range(len(PIECES))), list(PIECES), list(KINDS), starts], schema=VOCABULARY_SCHEMA)


def tiny_part(
    number: int,
    samples: Sequence[TinySample],
    *,
    layers: Sequence[int],
    dim: int,
    dtype: str = "float16",
    shared_prefix: bool = True,
    residual: bool = True,
    pooled: bool = True,
    norm: TinyNorm | None = None,
    bad: Sequence[BadSample] = (),
    mantissa_bits: int | None = None,
    capture: Sequence[str] = (),
    like: TinyBlocks | None = None,
    key_places: bool = True,
    side: int = 2,
) -> PartContent:
    """Lay samples of known states on one token axis, prefixes shared or not.

    ``capture`` is what to store of their blocks, ``like`` any sample's blocks (a part may have no samples). Without
    ``key_places`` keys have no role of their own, as before format 0.4. ``side`` is that of the square of patches.
    """
    stored = "float16" if dtype == "float16" else "float32"
    prefix = PREFIX_ROLES.index("image") + side * side
    pieces: list[np.ndarray] = []
    roles: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[list[dict[str, int]]] = []
    runs: list[tuple[TinySample, int, int]] = []
    prefix_start: dict[str, int] = {}
    end = 0

    def lay(sample: TinySample, start: int, stop: int) -> dict[str, int]:
        nonlocal end
        pieces.append(sample.states[:, start:stop])
        roles.append(sample.roles[start:stop])
        positions.append(np.arange(start, stop, dtype=np.int32))
        runs.append((sample, start, stop))
        end += stop - start
        return {"start": end - (stop - start), "stop": end}

    for sample in samples:
        length = len(sample.roles)
        if not shared_prefix:
            segments.append([lay(sample, 0, length)])
            continue
        if sample.image_id not in prefix_start:
            prefix_start[sample.image_id] = lay(sample, 0, prefix)["start"]
        start = prefix_start[sample.image_id]
        segments.append([{"start": start, "stop": start + prefix}, lay(sample, prefix, length)])

    none = np.zeros(0, np.int32)
    states = np.concatenate([np.zeros((len(layers), 0, dim), stored), *pieces], axis=1)
    role = np.concatenate([none, *roles])
    position = np.concatenate([none, *positions])
    is_image = role == ROLE_CODES["image"]
    patch = np.where(is_image, position - 2, -1).astype(np.int32)
    arrays: list[PartArray] = []
    coordinates = [
        Coordinate("token/token_id", ("token",), (position % len(PIECES)).astype(np.int32)),
        Coordinate("token/role", ("token",), role, role_flags()),
        Coordinate("token/position", ("token",), position),
        Coordinate("token/grid", ("token",), np.where(is_image, 0, -1).astype(np.int32)),
        Coordinate("token/patch_row", ("token",), np.where(is_image, patch // side, -1).astype(np.int32)),
        Coordinate("token/patch_col", ("token",), np.where(is_image, patch % side, -1).astype(np.int32)),
    ]
    if residual:
        shape = (len(layers), len(role), dim)
        attributes = {"units": "1", "long_name": "residual stream", "captured_dtype": dtype}
        arrays.append(
            PartArray(
                "token/hidden_states",
                ("layer", "token", "dim"),
                shape,
                stored,
                lambda index: np.ascontiguousarray(states[index]),
                attributes,
                mantissa_bits,
            )
        )
        coordinates.append(layer_coordinate("token", layers))
    if pooled:
        arrays += pooled_arrays(samples, len(layers), dim, norm or TinyNorm(np.ones(dim)))
        coordinates += [layer_coordinate("sample", layers), role_coordinate()]
    if capture:
        assert like is not None
        more_arrays, more_coordinates = block_content(
            [(sample.blocks, own) for sample, own in zip(samples, segments, strict=True) if sample.blocks],
            [(sample.blocks, start, stop) for sample, start, stop in runs if sample.blocks],
            like=like,
            capture=capture,
            stored=stored,
            captured=dtype,
        )
        arrays += more_arrays
        coordinates += more_coordinates
        if "attention" in capture and key_places:
            coordinates += places_of_keys(coordinates)
    keys = key_columns([sample.blocks if "attention" in capture else None for sample in samples])
    table = pa.Table.from_pylist(
        [
            {
                "sample_id": sample.sample_id,
                "image_id": sample.image_id,
                "item_id": sample.item_id or sample.image_id,
                "image_uri": f"{sample.image_id}.png",
                "image_sha256": "2" * 64,
                "width": 64,
                "height": 64,
                "prompt_id": sample.prompt_id,
                "prompt_kind": "normal",
                "prompt": f"Describe {sample.prompt_id}.",
                "references": ["a red circle", "a circle"],
                "segments": own,
                "grids": [{"rows": 2, "cols": 2, "x0": 0.0, "y0": 0.0, "x1": 64.0, "y1": 64.0, "thumbnail": False}],
                **of_keys,
            }
            for sample, own, of_keys in zip(samples, segments, keys, strict=True)
        ],
        schema=PART_SAMPLES_SCHEMA,
    )
    run = {"versions": {"strata": "0"}, "attention": "sdpa", "dtype": dtype, "batch_size": 2, "padding_side": "left"}
    return PartContent(number, tuple(arrays), tuple(coordinates), table, tuple(bad), run, 1.5)


def places_of_keys(coordinates: Sequence[Coordinate]) -> list[Coordinate]:
    """Roles and patches on the key axis, looked up on a token axis that has every key."""
    by_path = {coordinate.path: coordinate for coordinate in coordinates}
    token = by_path["key/token"].values
    named = [(name, by_path[f"token/{name}"]) for name in ("role", "grid", "patch_row", "patch_col")]
    return [Coordinate(f"key/{name}", ("key",), entry.values[token], entry.attributes) for name, entry in named]


def pooled_arrays(samples: Sequence[TinySample], layers: int, dim: int, norm: TinyNorm) -> list[PartArray]:
    """Pooled states by the definition, in float64."""
    shape = (layers, len(ROLES), len(samples), dim)
    unit_mean, mean = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    normed = np.full(shape[1:], np.nan, np.float32)
    count = np.zeros(shape[1:3], np.int32)
    for column, sample in enumerate(samples):
        states = sample.states.astype(np.float64)
        last = norm(states[-1])
        for role in np.unique(sample.roles):
            chosen = sample.roles == role
            count[role, column] = chosen.sum()
            mean[:, role, column] = states[:, chosen].mean(1)
            unit_mean[:, role, column] = unit(states[:, chosen]).mean(1)
            normed[role, column] = unit(last[chosen]).mean(0)
    dims = ("layer", "role", "sample", "dim")
    captured = {"units": "1", "captured_dtype": "float32"}
    return [
        PartArray("sample/unit_mean", dims, shape, "float32", lambda index: unit_mean[index], captured),
        PartArray("sample/mean", dims, shape, "float32", lambda index: mean[index], captured),
        PartArray("sample/normed_unit_mean", dims[1:], shape[1:], "float32", lambda index: normed[index], captured),
        PartArray("sample/token_count", dims[1:3], shape[1:3], "int32", lambda index: count[index]),
    ]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Divide each vector of the last axis by its length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
