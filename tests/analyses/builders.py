"""Contextualization results with planted curves, and stores of samples with known states."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analyses.completeness import Completeness
from analyses.contextualization import SAMPLE_COLUMNS, Contextualization
from analyses.contextualization_results import StoreResult
from analyses.identity import StoreIdentity
from analyses.part_task import pair_rows
from engine.store import PLAN_SCHEMA, create_store, write_part
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import TinySample, tiny_part, tiny_record, tiny_vocabulary
from tests.engine.store.tiny_norm import NORM_EPS, TinyNorm

PLANTED = ((0, 3, 10, 35, 40), (0.0, 0.1, 0.02, 0.5, 0.3))
NORM_WEIGHT = np.linspace(0.4, 1.9, 64).astype(np.float32)
KINDS = ("normal", "question", "noisy", "empty")
FLAT = ((0, 40), (0.0, 0.0))


def planted_result(
    knots: tuple[Sequence[int], Sequence[float]] = PLANTED,
    *,
    store: str = "planted",
    kinds: Sequence[str] = ("normal",),
    prompts: int = 1,
    images: int = 40,
    blocks: int = 40,
    noise: float = 0.01,
    depends: bool | None = False,
    model: str = "tiny/llava",
    source: str = "coco",
    images_per_item: int = 1,
    seed: int = 0,
) -> StoreResult:
    """Images whose inter-modal curve has extrema at known layers; both intra-modal curves rise.

    A prompt kind that is none of the built-in ones is the id of a prompt of the user's own.
    """
    rng = np.random.default_rng(seed)
    layers = np.arange(blocks + 1, dtype=np.int32)

    def item(image: int) -> str:
        return f"item {image // images_per_item}" if images_per_item > 1 else str(image)

    rows = [
        (kind if kind in KINDS else "custom", f"{kind}-{prompt}", f"{image}/{kind}-{prompt}", str(image), item(image))
        for image in range(images)
        for kind in kinds
        for prompt in range(prompts)
    ]
    samples = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
    curves = np.stack([np.interp(layers, *knots), 0.3 + layers / blocks / 2, 0.5 + layers / blocks / 3], axis=1)
    cosine = curves + rng.normal(0, 0.05, (len(samples), 1, 3)) + rng.normal(0, noise, (len(samples), blocks + 1, 3))
    result = Contextualization(
        samples=samples,
        layers=layers,
        block_count=blocks,
        rows=pair_rows(False),
        cosine=cosine,
        normed=cosine[:, -1] * 0.6,
        counts=np.full((len(samples), 2), 4),
        text_roles=("instruction", "template"),
        source="pooled",
        adjustment="none",
        baseline=None,
    )
    counts = Completeness(1, 1, len(samples), len(samples), 0)
    identity = StoreIdentity(store, model, source, "p" * 64, "q" * 64, depends, counts)
    return StoreResult(identity, result)


def write_samples(
    path: Path,
    samples: Sequence[TinySample],
    *,
    kinds: Mapping[str, str] | None = None,
    residual: bool = True,
    pooled: bool = True,
    plan_sha256: str = "a" * 64,
    written: Sequence[int] | None = None,
) -> Path:
    """Write a store of samples with known states, whole images per part.

    ``kinds`` gives the kind of each prompt id, ``normal`` where it has none; ``written`` the parts to write.
    """
    layers, _, dim = samples[0].states.shape
    rows = [(sample.sample_id, sample.image_id, sample.prompt_id, sample.part) for sample in samples]
    create_store(
        path,
        record=tiny_record(range(layers), layers - 1, "float32", plan_sha256),
        plan=pa.table(list(map(list, zip(*rows, strict=True))), schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary(),
        unembedding=None,
        final_norm_weight=NORM_WEIGHT[:dim],
        final_norm_bias=None,
        attributes={
            "norm_kind": "rms",
            "norm_eps": NORM_EPS,
            "norm_weight_offset": 0.0,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )
    for number in sorted({sample.part for sample in samples}) if written is None else written:
        own = [sample for sample in samples if sample.part == number]
        content = tiny_part(
            number,
            own,
            layers=range(layers),
            dim=dim,
            dtype="float32",
            shared_prefix=False,
            residual=residual,
            pooled=pooled,
            norm=TinyNorm(NORM_WEIGHT[:dim]),
        )
        column = pa.array([(kinds or {}).get(sample.prompt_id, "normal") for sample in own])
        table = content.samples
        table = table.set_column(table.schema.get_field_index("prompt_kind"), "prompt_kind", column)
        write_part(path, replace(content, samples=table), plan_sha256=plan_sha256)
    return path


def after_final_norm(states: NDArray[np.floating]) -> NDArray[np.float64]:
    """States (token, dim) after the final norm of `write_samples`."""
    exact = states.astype(np.float64)
    scale = np.sqrt(np.mean(exact**2, axis=1, keepdims=True) + NORM_EPS)
    return exact / scale * NORM_WEIGHT[: states.shape[1]]


def random_samples(
    seed: int,
    *,
    images: int,
    prompts: int,
    layers: int = 2,
    dim: int = 4,
    most: int = 3,
    parts: int = 2,
    common: float = 1.0,
    empty: bool = True,
) -> list[TinySample]:
    """Samples whose image and text sets have 0 (or 1) to ``most`` tokens, and states that share a direction."""
    rng = np.random.default_rng(seed)
    shared = common * rng.standard_normal((layers, 1, dim))
    samples = []
    for image in range(images):
        for prompt in range(prompts):
            counts = rng.integers(0 if empty else 1, most + 1, 3)
            roles = np.repeat([ROLE_CODES[role] for role in ("image", "instruction", "template")], counts)
            roles = np.concatenate([[ROLE_CODES["special"]], roles]).astype(np.int32)
            states = shared + rng.standard_normal((layers, len(roles), dim))
            samples.append(
                TinySample(
                    sample_id=f"{image}/p{prompt}",
                    image_id=str(image),
                    prompt_id=f"p{prompt}",
                    part=image * parts // images,
                    states=states.astype(np.float32),
                    roles=roles,
                )
            )
    return samples
