"""Stores of samples with known states, any final norm and a small vocabulary, and LogitLens by its definition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from analyses.kept_parts import KeptParts
from analyses.logit_lens import analyze_store, stored_pieces
from analyses.logit_lens_notes import tell_of_lens
from analyses.logit_lens_plan import LensChoice, plan_tasks, why_decoded
from analyses.logit_lens_results import StoreLens, group_curves, to_dataset
from analyses.logit_lens_table import to_tables, to_trajectory_tables
from analyses.logit_lens_words_table import to_word_tables
from analyses.opening import open_all
from analyses.prompt_groups import prompt_groups
from analyses.resources import Notify, Resources
from engine.store import (
    PLAN_SCHEMA,
    VOCABULARY_SCHEMA,
    Coordinate,
    ModelMatrix,
    PartArray,
    create_store,
    layer_coordinate,
    write_part,
)
from engine.vocabulary import ROLE_CODES
from tests.analyses.attention_builders import Spec
from tests.engine.store.builders import TinySample, tiny_part, tiny_record
from tests.engine.store.tiny_norm import NORM_EPS

VOCABULARY = {
    "<s>": "special",
    "</s>": "special",
    "<0x0A>": "byte",
    "▁a": "normal",
    "▁red": "normal",
    "▁circle": "normal",
    "dog": "normal",
    "▁gir": "normal",
    "affe": "normal",
    "▁the": "normal",
    "▁Blue": "normal",
    "▁square,": "normal",
    "▁$x$": "normal",
    "▁草": "normal",
    "\t": "normal",
    "▁": "normal",
    "▁dogs'": "normal",
    "<pad>": "padding",
    "<pad1>": "padding",
}
PIECES, KINDS = tuple(VOCABULARY), tuple(VOCABULARY.values())
NORMAL = np.array([kind == "normal" for kind in KINDS])
DIM = 12
CAPTIONS = {"a": ("A red circle.", "the giraffe"), "b": ("a BLUE dog's square",), "c": ("red", "Red dogs")}


@dataclass(frozen=True)
class LensModelSpec:
    """A final norm, an unembedding and a softcap.

    Rows of the unembedding that may not be decoded are three times as long as the others.
    """

    kind: str = "rms"
    offset: float = 0.0
    bias: bool = False
    softcap: float | None = None
    dtype: str = "float32"
    seed: int = 7

    @property
    def weight(self) -> NDArray[np.float32]:
        return np.random.default_rng(self.seed).uniform(0.4, 1.8, DIM).astype(np.float32) - np.float32(self.offset)

    @property
    def norm_bias(self) -> NDArray[np.float32] | None:
        values = np.random.default_rng(self.seed + 1).normal(0, 0.3, DIM).astype(np.float32)
        return values if self.bias else None

    @property
    def unembedding(self) -> NDArray[np.floating]:
        rows = np.random.default_rng(self.seed + 2).standard_normal((len(PIECES), DIM))
        return np.where(NORMAL[:, np.newaxis], rows, 3 * rows).astype(self.dtype)

    def logits(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits (..., vocab) of states, in float64."""
        x = states.astype(np.float64)
        if self.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPS)
        x = x * (self.weight.astype(np.float64) + self.offset)
        x = x if self.norm_bias is None else x + self.norm_bias
        z = x @ self.unembedding.astype(np.float64).T
        return z if self.softcap is None else self.softcap * np.tanh(z / self.softcap)

    def best(self, states: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and logits (..., k) of the best pieces that may be decoded."""
        z = np.where(NORMAL, self.logits(states), -np.inf)
        ids = np.argsort(-z, axis=-1, kind="stable")[..., :k]
        return ids, np.take_along_axis(z, ids, -1)


def lens_samples(
    specs: Sequence[Spec], *, layers: int = 4, seed: int = 0, depends: bool = False
) -> dict[str, TinySample]:
    """Draw states for every sample; up to the end of the image they are the image's own, unless they see the prompt."""
    prefixes: dict[str, NDArray[np.float32]] = {}
    samples = {}
    rng = np.random.default_rng(seed)
    for spec in specs:
        start = spec.roles.rindex("i") + 1 if "i" in spec.roles else 0
        states = rng.standard_normal((layers, len(spec.roles), DIM)).astype(np.float32)
        states[:, :start] = prefixes.setdefault(spec.sample_id if depends else spec.image, states[:, :start])
        samples[spec.sample_id] = TinySample(spec.sample_id, spec.image, spec.prompt, spec.part, states, spec.codes)
    return samples


def write_lens(
    path: Path,
    specs: Sequence[Spec],
    samples: Mapping[str, TinySample],
    model: LensModelSpec = LensModelSpec(),
    *,
    captions: Mapping[str, Sequence[str] | None] = CAPTIONS,
    shared_prefix: bool = False,
    depends: bool = True,
    unembedding: bool = True,
    residual: bool = True,
    stored_pieces: int = 0,
    pieces_of: str = "image",
    pieces: Sequence[str] = PIECES,
    blocks: int | None = None,
    plan_sha256: str = "d" * 64,
) -> Path:
    """Write a store of these samples; a prompt's kind is its id up to the hyphen.

    ``stored_pieces`` is how many pieces of each token are stored as extraction would, of tokens of the role
    ``pieces_of``.
    """
    layers = len(next(iter(samples.values())).states)
    record = tiny_record(range(layers), layers - 1 if blocks is None else blocks, "float32", plan_sha256)
    record["model"] = {**record["model"], "image_states_depend_on_prompt": depends}  # type: ignore[dict-item]
    kinds = [VOCABULARY.get(piece, "normal") for piece in pieces]
    starts = [piece.startswith("▁") for piece in pieces]
    matrix = model.unembedding
    create_store(
        path,
        record=record,
        plan=pa.table([[spec.sample_id for spec in specs], [spec.image for spec in specs],
                       [spec.prompt for spec in specs], [spec.part for spec in specs]], schema=PLAN_SCHEMA),
        vocabulary=pa.table([list(range(len(pieces))), list(pieces), kinds, starts], schema=VOCABULARY_SCHEMA),
        unembedding=ModelMatrix(matrix.shape, str(matrix.dtype), lambda start, stop: matrix[start:stop])
        if unembedding
        else None,
        final_norm_weight=model.weight,
        final_norm_bias=model.norm_bias,
        attributes={
            "norm_kind": model.kind,
            "norm_eps": NORM_EPS,
            "norm_weight_offset": model.offset,
            "logit_softcap": model.softcap,
            "tied_embeddings": False,
        },
    )  # fmt: skip
    for number in sorted({spec.part for spec in specs}):
        own = [spec for spec in specs if spec.part == number]
        content = tiny_part(
            number,
            [samples[spec.sample_id] for spec in own],
            layers=range(layers),
            dim=DIM,
            dtype="float32",
            shared_prefix=shared_prefix,
            pooled=False,
        )
        table = content.samples
        columns: dict[str, list[Any]] = {
            "references": [captions.get(spec.image) for spec in own],
            "prompt_kind": [spec.prompt.split("-")[0] for spec in own],
            "grids": [[_grid(*grid) for grid in spec.grids] for spec in own],
        }
        for name, values in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        coordinates = content.coordinates
        if not shared_prefix:
            cells = np.array([cell for spec in own for cell in spec.cells], np.int32).reshape(-1, 3)
            names = [f"token/{name}" for name in ("grid", "patch_row", "patch_col")]
            coordinates = (
                *(one for one in coordinates if one.path not in names),
                *(Coordinate(name, ("token",), cells[:, axis].copy()) for axis, name in enumerate(names)),
            )
        arrays = content.arrays
        if stored_pieces:
            (roles,) = (one.values for one in coordinates if one.path == "token/role")
            arrays = (*arrays, *_lens_arrays(arrays[0], model, stored_pieces, roles == ROLE_CODES[pieces_of]))
        if not residual:
            arrays = arrays[1:]
        if not any(one.path == "token/layer" for one in coordinates):
            coordinates = (*coordinates, layer_coordinate("token", range(layers)))
        content = replace(content, samples=table, coordinates=coordinates, arrays=arrays)
        write_part(path, content, plan_sha256=plan_sha256)
    return path


def _lens_arrays(states: PartArray, model: LensModelSpec, k: int, kept: NDArray[np.bool_]) -> list[PartArray]:
    """What extraction would store of pieces, for tokens that are kept."""
    found = [model.best(states.slab(layer), k) for layer in range(states.shape[0])]
    ids = np.stack([np.where(kept[:, np.newaxis], one, -1).astype(np.int32) for one, _ in found])
    logits = np.stack([np.where(kept[:, np.newaxis], one, np.nan).astype(np.float32) for _, one in found])
    dims = ("layer", "token", "rank")
    return [
        PartArray("token/lens_token_id", dims, ids.shape, "int32", lambda layer: np.ascontiguousarray(ids[layer])),
        PartArray("token/lens_logit", dims, ids.shape, "float32", lambda layer: np.ascontiguousarray(logits[layer])),
    ]


def _grid(rows: int, cols: int, thumbnail: bool) -> dict[str, Any]:
    return {"rows": rows, "cols": cols, "x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0, "thumbnail": thumbnail}


SHARE = "certified"


def without_share(notes: Sequence[str]) -> list[str]:
    """Leave out the note of how many tokens the screen decided, which depends on the processor."""
    return [note for note in notes if SHARE not in note]


class Found(NamedTuple):
    """Tables and dataset of an analysis, as they would be written."""

    scores: pd.DataFrame
    words: pd.DataFrame
    trajectory: pd.DataFrame
    dataset: xr.Dataset


WORD_NAMES = ("store", "model", "source", "prompt_kind", "prompt_id", "sample_id", "piece")


def analyse(
    stores: Path | Sequence[Path],
    kept: Path,
    *,
    topk: int = 5,
    layers: Sequence[str] = (),
    source: str = "auto",
    trajectory: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    notify: Notify | None = None,
) -> Found:
    """Run LogitLens without waiting for figures; finished parts stay in ``kept``."""
    resources = Resources(workers, scheduler=scheduler, notify=notify)
    opened, identities = open_all([str(path) for path in ([stores] if isinstance(stores, Path) else stores)], resources)
    choice, parts = LensChoice(topk, layers, source, trajectory), KeptParts(kept)
    tasks = [plan_tasks(store, choice) for store in opened]
    results = [
        StoreLens(identity, analyze_store(store, own, resources=resources, kept=parts))
        for identity, store, own in zip(identities, opened, tasks, strict=True)
    ]
    curves = [[group_curves(own, chosen, 20, 0) for _, chosen in prompt_groups(own.samples)] for _, own in results]
    for store, item, of_store in zip(opened, results, curves, strict=True):
        tell_of_lens(item, of_store, choice, why_decoded(store, choice), resources)
    words = [
        table
        for item, store, own in zip(results, opened, tasks, strict=True)
        for table in to_word_tables(
            item.identity, store.model.vocabulary, item.result.layers, stored_pieces(store.parts, own, parts)
        )
    ]
    return Found(
        pa.concat_tables(to_tables(results)).to_pandas(),
        pd.concat([table.to_pandas().astype(dict.fromkeys(WORD_NAMES, str)) for table in words], ignore_index=True),
        pa.concat_tables(to_trajectory_tables(results)).to_pandas() if trajectory else pd.DataFrame(),
        to_dataset(results, curves, {}),
    )
