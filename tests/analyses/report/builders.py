"""Stores with everything that a report shows, whose texts would act if a page let them, and their results."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from analyses.registry import run
from engine.store import (
    PLAN_SCHEMA,
    THUMBNAIL_SAMPLES_SCHEMA,
    VOCABULARY_SCHEMA,
    BadSample,
    ModelMatrix,
    create_store,
    write_part,
)
from engine.vocabulary import ROLE_CODES
from tests.engine.store.block_tensors import tiny_blocks
from tests.engine.store.builders import PREFIX_ROLES, TinySample, tiny_part, tiny_record
from tests.engine.store.tiny_norm import NORM_EPS

STEAL = "window.stolen = true"
HOSTILE = (
    f"</script><script>{STEAL}</script>",
    f"<img src=x onerror='{STEAL}'>",
    f"javascript:{STEAL}",
    "two\u2028lines\u2029and three",
    f"&lt;b&gt; &amp; \"quoted\" 'twice' `${{{STEAL}}}` {{{{ 7 * 7 }}}} {{% raw %}}",
    "<!-- <script> ]]>",
    "\u202eright to left",
)
PIECES = ("<s>", f"▁<script>{STEAL}</script>", "▁red", "circle\u202e", "▁</td>", "▁a", "▁blue", "▁&amp;")
PROMPTS = ("normal-1", "noisy-1")
ANALYSES = ("contextualization", "phases", "norm-attention", "logit-lens")


def thumbnail(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG of one colour."""
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_store(
    path: Path,
    images: Sequence[str],
    *,
    blocks: int = 6,
    model: str = "tiny/llava",
    thumbnails: bool = True,
    bad: Sequence[str] = (),
    seed: int = 0,
    dim: int = 8,
    side: int = 2,
) -> Path:
    """Write a store with hidden states, pooled states, attention and captions; two prompts per image, one part.

    The picture is 64 × 48 and its grid of ``side`` × ``side`` patches covers the middle square; captions are `HOSTILE`
    and one that says red.
    """
    rng = np.random.default_rng(seed)
    prefix_roles = (*(role for role in PREFIX_ROLES if role != "image"), *("image",) * side**2)
    samples: list[TinySample] = []
    for image in images:
        prefix = rng.standard_normal((blocks + 1, len(prefix_roles), dim))
        first = None
        for number, prompt in enumerate(PROMPTS):
            roles = (*prefix_roles, *("instruction",) * (2 + number), "template")
            codes = np.array([ROLE_CODES[role] for role in roles], np.int32)
            own = rng.standard_normal((blocks + 1, len(roles) - len(prefix_roles), dim))
            own_blocks = tiny_blocks(
                rng, codes, numbers=range(1, blocks + 1), dim=dim, prefix=first, prefix_length=len(prefix_roles)
            )
            first = own_blocks.values if first is None else first
            states = np.concatenate([prefix, own], axis=1).astype(np.float32)
            samples.append(TinySample(f"{image}/{prompt}", image, prompt, 0, states, codes, blocks=own_blocks))
    plan = [(sample.sample_id, sample.image_id, sample.prompt_id, 0) for sample in samples]
    plan += [(f"{image}/{prompt}", image, prompt, 0) for image in bad for prompt in PROMPTS]
    record = tiny_record(range(blocks + 1), blocks, "float32", f"{seed:064x}")
    record["model"] = {**record["model"], "id": model}  # type: ignore[dict-item]
    record["capture"] = {
        **record["capture"],  # type: ignore[dict-item]
        "tensors": ["residual", "pooled", "attention"],
        "blocks": list(range(1, blocks + 1)),
        "queries": ["last_text", "last_image"],
        "thumbnails": thumbnails,
    }
    record["prompts"] = [
        {"prompt_id": "normal-1", "kind": "normal", "text": HOSTILE[0]},
        {"prompt_id": "noisy-1", "kind": "noisy", "text": HOSTILE[3]},
    ]
    matrix = rng.standard_normal((len(PIECES), dim)).astype(np.float32)
    create_store(
        path,
        record=record,
        plan=pa.table(list(map(list, zip(*plan, strict=True))), schema=PLAN_SCHEMA),
        vocabulary=pa.table(
            [
                list(range(len(PIECES))),
                list(PIECES),
                ["special", *["normal"] * (len(PIECES) - 1)],
                [piece.startswith("▁") for piece in PIECES],
            ],
            schema=VOCABULARY_SCHEMA,
        ),
        unembedding=ModelMatrix(matrix.shape, "float32", lambda start, stop: matrix[start:stop]),
        final_norm_weight=rng.uniform(0.5, 2, dim).astype(np.float32),
        final_norm_bias=None,
        attributes={
            "norm_kind": "rms",
            "norm_eps": NORM_EPS,
            "norm_weight_offset": 0.0,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )
    content = tiny_part(
        0,
        samples,
        layers=range(blocks + 1),
        dim=dim,
        dtype="float32",
        capture=("attention",),
        like=samples[0].blocks,
        side=side,
        bad=[BadSample(f"{image}/{prompt}", HOSTILE[1]) for image in bad for prompt in PROMPTS],
    )
    rows = content.samples.to_pylist()
    grid = {"rows": side, "cols": side, "x0": 8.0, "y0": 0.0, "x1": 56.0, "y1": 48.0, "thumbnail": False}
    for row in rows:
        row |= {"height": 48, "prompt_kind": row["prompt_id"].split("-")[0], "grids": [grid]}
        row |= {"references": [*HOSTILE, "the red one"], "prompt": HOSTILE[2]}
        row["thumbnail"] = thumbnail() if row["prompt_id"] == PROMPTS[0] else None
    schema = THUMBNAIL_SAMPLES_SCHEMA if thumbnails else THUMBNAIL_SAMPLES_SCHEMA.remove(len(rows[0]) - 1)
    table = pa.Table.from_pylist(rows, schema=schema)
    write_part(path, replace(content, samples=table), plan_sha256=str(record["plan_sha256"]))
    return path


def analyse(stores: Sequence[Path], results: Path, names: Sequence[str] = ANALYSES, **options: object) -> Path:
    """Analyse stores, without the figures, which take the longest and which no report reads."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            module = f"analyses.run_{name.replace('-', '_')}"
            patch.setattr(f"{module}.write_figures", lambda *_: [])
        patch.setattr("analyses.run_contextualization.write_figures", lambda *_: [])
        for name in names:
            own = {"bootstraps": 50} if name in ("phases", "logit-lens") else {}
            run(name, [str(store) for store in stores], results, workers=1, memory=2**30, **own, **options)
    return results
