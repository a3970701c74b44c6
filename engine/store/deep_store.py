"""What a store says outside of its parts, checked against itself: record, plan, vocabulary, the model's tables."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from engine.errors import StrataError
from engine.store.inventory import Problem
from engine.store.layout import MODEL_GROUP, PARTS_FOLDER, PLAN_FILE, STORE_FILE, TENSOR_ARRAYS, VOCABULARY_FILE
from engine.store.part import Part
from engine.store.reader import Store

__all__ = ["check_common", "check_contents"]

_IDS = ["sample_id", "image_id", "prompt_id"]
_KINDS = ("normal", "special", "byte", "padding")


def check_common(store: Store) -> Iterator[Problem]:
    """Check what all parts share; a table or an array that cannot be read is a problem of its file."""
    checks = {PLAN_FILE: _plan, VOCABULARY_FILE: _vocabulary, f"{MODEL_GROUP}/zarr.json": _model, STORE_FILE: _record}
    for file, check in checks.items():
        try:
            yield from (Problem(where, message) for where, message in check(store))
        except StrataError as error:
            yield Problem(file, f"cannot be read: {error}")


def check_contents(part: Part, plan: pd.DataFrame, capture: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that a part holds what was planned for it: its samples, each stored or bad, and its arrays.

    Parameters
    ----------
    part
        The part.
    plan
        Planned samples of this part.
    capture
        Of ``store.json``.
    """
    table, manifest = f"{PARTS_FOLDER}/{part.name}.parquet", f"{PARTS_FOLDER}/{part.name}.json"
    accounted = Counter([*part.samples["sample_id"], *(bad["sample_id"] for bad in part.manifest["bad_samples"])])
    known = set(plan["sample_id"])
    for name in sorted(known - accounted.keys()):
        yield Problem(manifest, f"accounts for no sample {name}, which is planned")
    for name in sorted(name for name, times in accounted.items() if times > 1 or name not in known):
        yield Problem(table, f"holds sample {name} twice, or it is not planned for this part")
    both = part.samples[_IDS].merge(plan[_IDS], "inner", "sample_id", suffixes=("", "_planned"))
    other = (both["image_id"] != both["image_id_planned"]) | (both["prompt_id"] != both["prompt_id_planned"])
    for name in both["sample_id"][other]:
        yield Problem(table, f"gives sample {name} another image or prompt than the plan")
    tensors = {name: TENSOR_ARRAYS.get(name, ()) for name in capture.get("tensors", ())}
    if "pooled" in tensors:
        tensors["pooled"] = ("sample/token_count",)
    for tensor, paths in tensors.items():
        for path in paths:
            if path not in part.manifest["arrays"]:
                yield Problem(manifest, f"has no {path}, although {tensor} was captured")


def _plan(store: Store) -> Iterator[tuple[str, str]]:
    plan = store.plan
    twice = plan["sample_id"][plan["sample_id"].duplicated()]
    if len(twice):
        yield PLAN_FILE, f"plans sample {twice.iloc[0]} twice"
    wrong = plan["sample_id"] != plan["image_id"] + "/" + plan["prompt_id"]
    if wrong.any():
        yield PLAN_FILE, f"calls a sample {plan['sample_id'][wrong].iloc[0]}, which is not its image and prompt"


def _vocabulary(store: Store) -> Iterator[tuple[str, str]]:
    vocabulary = store.model.vocabulary
    if not np.array_equal(vocabulary["token_id"], np.arange(len(vocabulary))):
        yield VOCABULARY_FILE, "does not have one row per token id, from 0 on"
    unknown = vocabulary["kind"][~vocabulary["kind"].isin(_KINDS)]
    if len(unknown):
        yield VOCABULARY_FILE, f"knows a kind {unknown.iloc[0]!r} of pieces"
    unembedding = store.model.unembedding
    if unembedding is not None and len(unembedding) != len(vocabulary):
        yield VOCABULARY_FILE, f"has {len(vocabulary)} pieces for {len(unembedding)} rows of the unembedding"


def _model(store: Store) -> Iterator[tuple[str, str]]:
    """Finite weights of the model's width, attributes as they must be; the unembedding is read block by block."""
    model, own = store.model, len(store.model.final_norm_weight)
    dim = store.record["model"].get("dim", own)  # formats before 1.0 may not say it
    for name, vector in (("final_norm_weight", model.final_norm_weight), ("final_norm_bias", model.final_norm_bias)):
        if vector is not None and (vector.shape != (dim,) or not np.isfinite(vector).all()):
            yield f"{MODEL_GROUP}/{name}/zarr.json", "holds a weight that is not finite, or has another width"
    matrix = model.unembedding
    if matrix is not None:
        if matrix.shape[1:] != (dim,):
            yield f"{MODEL_GROUP}/unembedding/zarr.json", f"is {matrix.shape}, the model's width is {dim}"
        for number, block in enumerate(matrix.blocks.ravel()):
            if not np.isfinite(block.compute(scheduler="synchronous")).all():
                yield f"{MODEL_GROUP}/unembedding/c/{number}/0", "holds a value that is not finite"
    model.check_attributes()


def _record(store: Store) -> Iterator[tuple[str, str]]:
    """Layers and blocks are numbers of the model; arrays of all parts have its width."""
    capture, blocks = store.record["capture"], store.block_count
    for name, first in (("layers", 0), ("residual_layers", 0), ("lens_layers", 0), ("blocks", 1)):
        numbers = capture.get(name) or []
        if list(numbers) != sorted(set(numbers)) or not all(first <= number <= blocks for number in numbers):
            yield STORE_FILE, f"has capture.{name} {numbers}, which are not ascending within {first} to {blocks}"
    dim = len(store.model.final_norm_weight)
    for part in store.parts:
        for path, entry in part.manifest["arrays"].items():
            width = dict(zip(entry["dims"], entry["shape"], strict=True)).get("dim", dim)
            if width != dim:
                yield f"{PARTS_FOLDER}/{part.name}.json", f"says that {path} has width {width}, the model's is {dim}"
