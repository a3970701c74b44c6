"""Stores of samples with known attention: sequences and grids of any make, and norm-attention by the definition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.store import PLAN_SCHEMA, Coordinate, create_store, write_part
from engine.vocabulary import ROLE_CODES, ROLES
from tests.engine.store.block_tensors import QUERIES, TinyBlocks, tiny_blocks
from tests.engine.store.builders import TinySample, tiny_part, tiny_record, tiny_vocabulary
from tests.engine.store.tiny_norm import NORM_EPS

LETTERS = {"s": "special", "p": "preamble", "i": "image", "n": "instruction", "t": "template"}


@dataclass(frozen=True)
class Spec:
    """One sample: roles by the first letters of `LETTERS`, prompt kind, and grids as (rows, cols, thumbnail).

    Image tokens fill the grids in order, row by row.
    """

    image: str
    prompt: str
    roles: str
    grids: tuple[tuple[int, int, bool], ...] = ()
    part: int = 0

    @property
    def sample_id(self) -> str:
        return f"{self.image}/{self.prompt}"

    @property
    def codes(self) -> np.ndarray:
        return np.array([ROLE_CODES[LETTERS[letter]] for letter in self.roles], np.int32)

    @property
    def cells(self) -> list[tuple[int, int, int]]:
        """Grid, row and column of every position, -1 where it is no patch."""
        patches = [
            (number, row, col)
            for number, (rows, cols, _) in enumerate(self.grids)
            for row in range(rows)
            for col in range(cols)
        ]
        waiting = iter(patches)
        return [next(waiting, (-1, -1, -1)) if letter == "i" else (-1, -1, -1) for letter in self.roles]


def attention_samples(
    specs: Sequence[Spec], *, blocks: Sequence[int] = (1, 2, 3), queries: Sequence[str] = QUERIES, seed: int = 0
) -> list[TinySample]:
    """Draw attention for every sample."""
    rng = np.random.default_rng(seed)
    return [
        TinySample(
            sample_id=spec.sample_id,
            image_id=spec.image,
            prompt_id=spec.prompt,
            part=spec.part,
            states=np.zeros((1, len(spec.roles), 2), np.float16),
            roles=spec.codes,
            blocks=tiny_blocks(rng, spec.codes, numbers=blocks, queries=queries, dim=2),
        )
        for spec in specs
    ]


def write_attention(
    path: Path, specs: Sequence[Spec], samples: Sequence[TinySample], *, depends: bool = False, block_count: int = 3
) -> Path:
    """Write a store of these samples' attention alone; a prompt's kind is its id up to the hyphen."""
    rows = [(spec.sample_id, spec.image, spec.prompt, spec.part) for spec in specs]
    record = tiny_record([0], block_count, "float16", "c" * 64)
    record["model"] = {**record["model"], "image_states_depend_on_prompt": depends}
    record["capture"] = {**record["capture"], "tensors": ["attention"]}
    create_store(
        path,
        record=record,
        plan=pa.table(list(map(list, zip(*rows, strict=True))), schema=PLAN_SCHEMA),
        vocabulary=tiny_vocabulary(),
        unembedding=None,
        final_norm_weight=np.ones(2, np.float32),
        final_norm_bias=None,
        attributes={
            "norm_kind": "rms",
            "norm_eps": NORM_EPS,
            "norm_weight_offset": 0.0,
            "logit_softcap": None,
            "tied_embeddings": False,
        },
    )
    for number in sorted({spec.part for spec in specs}):
        own = [(spec, sample) for spec, sample in zip(specs, samples, strict=True) if spec.part == number]
        content = tiny_part(
            number,
            [sample for _, sample in own],
            layers=[0],
            dim=2,
            shared_prefix=False,
            residual=False,
            pooled=False,
            capture=("attention",),
            like=own[0][1].blocks,
        )
        cells = np.array([cell for spec, _ in own for cell in spec.cells], np.int32).reshape(-1, 3)
        names = ("grid", "patch_row", "patch_col")
        places = [
            Coordinate(f"{axis}/{name}", (axis,), cells[:, k].copy())
            for axis in ("token", "key")  # no prefix is shared, so both have the same entries
            for k, name in enumerate(names)
        ]
        others = [one for one in content.coordinates if one.path not in {place.path for place in places}]
        table = content.samples
        for name, values in (
            ("grids", [[_grid(*grid) for grid in spec.grids] for spec, _ in own]),
            ("prompt_kind", [spec.prompt.split("-")[0] for spec, _ in own]),
        ):
            column = table.schema.get_field_index(name)
            table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
        write_part(path, replace(content, samples=table, coordinates=(*others, *places)), plan_sha256="c" * 64)
    return path


def _grid(rows: int, cols: int, thumbnail: bool) -> dict[str, Any]:
    return {"rows": rows, "cols": cols, "x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0, "thumbnail": thumbnail}


def is_sink(position: int, roles: Sequence[int]) -> bool:
    """Position 0 and the first special token, from the definition."""
    return position == 0 or (roles[position] == 0 and 0 not in list(roles)[:position])


def expected_values(
    blocks: TinyBlocks, roles: np.ndarray, query: int, block: int, role: str, *, without_sinks: bool
) -> dict[str, float]:
    """All measures of one row of the table, key by key."""
    weights = blocks.values["attention"][block, query].astype(float)  # (head, key)
    norms = blocks.values["attention_norm"][block, query].astype(float)
    weight_of, norm_of, weight_all, norm_all = 0.0, 0.0, 0.0, 0.0
    sink_weight, sink_norm, every_weight, every_norm = 0.0, 0.0, 0.0, 0.0
    for key, code in enumerate(roles):
        weight, norm = sum(weights[:, key]) / len(weights), norms[key]
        every_weight, every_norm = every_weight + weight, every_norm + norm
        mine = ROLES[code] == role
        if is_sink(key, roles):
            sink_weight, sink_norm = sink_weight + weight * mine, sink_norm + norm * mine
            if without_sinks:
                continue
        weight_all, norm_all = weight_all + weight, norm_all + norm
        weight_of, norm_of = weight_of + weight * mine, norm_of + norm * mine
    return {
        "attention": weight_of,
        "attention_norm": norm_of,
        "attention_share": weight_of / weight_all if weight_all else np.nan,
        "attention_norm_share": norm_of / norm_all if norm_all else np.nan,
        "sink_share": sink_weight / every_weight,
        "sink_norm_share": sink_norm / every_norm,
    }
