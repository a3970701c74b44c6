"""Stores of very many tiny samples, of the layout that the real writer gives them.

One part goes through the writer. Its Zarr folder holds no name of a sample, so every other part of the size has the
same bytes there, as hard links; sample tables and manifests are each part's own.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.store import part_name, write_part
from engine.store.manifest import hash_file, seal_json
from engine.vocabulary import ROLE_CODES
from tests.bench.stores import create_plain_store
from tests.engine.store.builders import TinySample, tiny_part, tiny_record

__all__ = ["image_name", "write_many_parts"]

LAYERS, DIM = 5, 16
ROLES = np.array([ROLE_CODES[role] for role in ("special", "image", "image", "instruction", "template")], np.int32)


def image_name(number: int) -> str:
    """Id of an image, as COCO would name it."""
    return f"COCO_val2014_{number:012d}"


def write_many_parts(store: Path, *, images: int, images_per_part: int) -> Path:
    """Write a store of hidden states and pooled states of one prompt per image.

    Parameters
    ----------
    store
        The new store; ``store.with_name(…)`` beside it is used while writing.
    images, images_per_part
        The last part may be smaller.
    """
    record = tiny_record(range(LAYERS), LAYERS - 1, "float16", "0" * 64)
    parts = np.arange(images, dtype=np.int32) // images_per_part
    names = [image_name(number) for number in range(images)]
    ids = [f"{name}/normal-1" for name in names]
    create_plain_store(store, record, [ids, names, ["normal-1"] * images, parts], dim=DIM)
    for size in sorted({min(images_per_part, images - start) for start in range(0, images, images_per_part)}):
        model = store.with_name(f"{store.name}-of-{size}")
        manifest = _write_model_part(model, size, str(record["plan_sha256"]))
        for start in range(0, images, images_per_part):
            if min(images_per_part, images - start) == size:
                _write_like(model, manifest, store, start // images_per_part, ids[start : start + size])
        shutil.rmtree(model)
    return store


def _write_model_part(store: Path, images: int, plan_sha256: str) -> dict[str, Any]:
    """Write part 0 of another store, for its bytes."""
    rng = np.random.default_rng(0)
    samples = [
        TinySample(
            sample_id=str(image),
            image_id=str(image),
            prompt_id="normal-1",
            part=0,
            states=rng.standard_normal((LAYERS, len(ROLES), DIM)).astype(np.float16),
            roles=ROLES,
        )
        for image in range(images)
    ]
    content = tiny_part(0, samples, layers=range(LAYERS), dim=DIM, shared_prefix=False)
    return write_part(store, content, plan_sha256=plan_sha256)


def _write_like(model: Path, manifest: Mapping[str, Any], store: Path, number: int, ids: list[str]) -> None:
    """Write a part whose arrays are the model part's: links to its files, and a table and a manifest of its own."""
    of_model, name = part_name(0), part_name(number)
    shutil.copytree(model / "parts" / f"{of_model}.zarr", store / "parts" / f"{name}.zarr", copy_function=os.link)
    table = pq.read_table(model / "parts" / f"{of_model}.parquet")
    images = [sample_id.split("/")[0] for sample_id in ids]
    own = {"sample_id": ids, "image_id": images, "item_id": images, "image_uri": [f"{image}.jpg" for image in images]}
    for column, values in own.items():
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    pq.write_table(table, store / "parts" / f"{name}.parquet", compression="zstd")
    files = {path.replace(of_model, name): entry for path, entry in manifest["files"].items()}
    files[f"{name}.parquet"] = hash_file(store / "parts" / f"{name}.parquet")
    content = {key: value for key, value in manifest.items() if key != "sha256"} | {"part": number, "files": files}
    (store / "parts" / f"{name}.json").write_bytes(seal_json(content))
