"""The audit of a store: samples drawn, each run again, every stored tensor judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engine.audit.compare import Deviations, compare_vectors
from engine.audit.fresh import FreshPass, FreshPasses
from engine.audit.logits import stored_logits
from engine.audit.stored import StoredSample
from engine.audit.tensors import ComparedSample, compare_sample, name_place, relative_rounding
from engine.audit.verdict import TOLERANCES, Worst, find_worst
from engine.errors import StrataError
from engine.prompts import Prompt
from engine.sources import ImageReader, ImageRecord, load_image
from engine.store import Store
from engine.vocabulary import ROLE_CODES

__all__ = ["AuditReport", "TensorVerdict", "audit_store", "check_images", "image_record"]

LOGITS = "logits from the store"
_LOGIT_POSITIONS = 16  # of each sample, spread over its stored tokens, the last one among them
_STATES = "token/hidden_states"


@dataclass(frozen=True)
class TensorVerdict:
    """What was found of one tensor.

    Attributes
    ----------
    tensor
        Path of the array, or ``LOGITS``.
    samples
        Audited samples that it was compared in.
    worst
        The vector farthest beyond its bound, or nearest to it; None where nothing could be compared.
    tolerance
        Of 1 − cosine.
    sample_id, place
        Where that vector is; empty without one.
    """

    tensor: str
    samples: int
    worst: Worst | None
    tolerance: float
    sample_id: str
    place: str

    @property
    def passed(self) -> bool:
        """Whether the tensor keeps the rule; one that could not be compared has mismatches of its own."""
        return self.worst is None or self.worst.passed


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes
    ----------
    verdicts
        One per stored tensor, in the order of the store.
    mismatches
        Sentences on what had to be equal and is not: tokens, prompts, counts.
    notes
        Sentences on what was not compared, or was computed otherwise than the store.
    """

    verdicts: tuple[TensorVerdict, ...]
    mismatches: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every tensor keeps the rule and nothing else differs."""
        return not self.mismatches and all(verdict.passed for verdict in self.verdicts)


def image_record(row: Mapping[str, Any]) -> ImageRecord:
    """Make the record of a sample's image from the sample table."""
    return ImageRecord(row["image_id"], row["image_uri"], tuple(row["references"]), row["item_id"])


def check_images(rows: pd.DataFrame, images: ImageReader) -> None:
    """Check that the images of samples are those that were extracted, by the hash of their bytes.

    Raises
    ------
    StrataError
        Where one cannot be read or is another.
    """
    for row in rows.drop_duplicates("image_id").to_dict("records"):
        found = load_image(image_record(row), images).sha256
        if found != row["image_sha256"]:
            raise StrataError(
                f"the image {images}/{row['image_uri']} is not the one that was extracted: its sha256 is {found}, the "
                f"store says {row['image_sha256']}. Give --images the folder that strata extract read."
            )


def audit_store(store: Store, rows: pd.DataFrame, passes: FreshPasses, done: Callable[[], None]) -> AuditReport:
    """Compare samples of a store with fresh passes.

    Parameters
    ----------
    store
        One store.
    rows
        Rows of ``store.samples``.
    passes
        Runs the model.
    done
        Called after each sample.
    """
    compared: list[ComparedSample] = []
    logits: dict[str, Deviations] = {}
    positions: dict[str, np.ndarray] = {}
    parts = {part.number: part for part in store.parts}
    unread = _why_no_logits(store)
    prompts = {entry["prompt_id"]: entry for entry in store.record["prompts"]}
    for row in rows.to_dict("records"):
        part = parts[row["part"]]
        sample = StoredSample(part, int(np.flatnonzero(part.samples["sample_id"] == row["sample_id"])[0]))
        entry = prompts[row["prompt_id"]]
        chosen = _logit_rows(sample, store.kept_roles("residual"))
        at = sample.coordinate("token/position")[chosen]
        fresh, *others = passes.all(image_record(row), Prompt(row["prompt_id"], entry["kind"], entry["text"]), at)
        pieces = [one.pieces for one in (fresh, *others) if one.pieces is not None]
        found = compare_sample(sample, fresh.content, [other.content for other in others], pieces)
        if found.same_tokens and not unread:
            logits[row["sample_id"]] = _logit_deviations(store, sample, chosen, fresh, others)
            positions[row["sample_id"]] = at
        compared.append(found)
        done()
    names = list(rows["sample_id"])
    tolerance = TOLERANCES[store.record["model"]["dtype"]]
    verdicts = [
        _verdict(path, compared, names, tolerance)
        for path in dict.fromkeys(path for sample in compared for path in sample.dims)
    ]
    if logits:
        verdicts.append(_logit_verdict(logits, positions, tolerance))
    return AuditReport(
        verdicts=tuple(verdicts),
        mismatches=tuple(
            f"{name}: {text}" for name, sample in zip(names, compared, strict=True) for text in sample.mismatches
        ),
        notes=(*unread, *_uncompared(store, compared), *_run_differences(store, rows, passes.run)),
    )


def _verdict(path: str, compared: Sequence[ComparedSample], names: Sequence[str], tolerance: float) -> TensorVerdict:
    held = [(name, sample) for name, sample in zip(names, compared, strict=True) if path in sample.deviations]
    worst = find_worst([sample.deviations[path] for _, sample in held], tolerance)
    if worst is None:
        return TensorVerdict(path, len(held), None, tolerance, "", "")
    name, sample = held[worst.sample]
    place = name_place(path, sample.dims[path], (*worst.index, worst.at), sample)
    return TensorVerdict(path, len(held), worst, tolerance, name, place)


def _why_no_logits(store: Store) -> tuple[str, ...]:
    wanting = []
    if "residual" not in store.record["capture"]["tensors"]:
        wanting.append("hidden states")
    elif store.block_count not in store.state_layers:
        wanting.append(f"layer {store.block_count}")
    if store.model.unembedding is None:
        wanting.append("unembedding")
    return (f"logits were not compared: the store has no {' and no '.join(wanting)}",) if wanting else ()


def _logit_rows(sample: StoredSample, roles: Sequence[str]) -> np.ndarray:
    """Choose tokens of a sample whose states are kept, as places among its own: evenly spread, from the last one on."""
    codes = [ROLE_CODES[name] for name in roles]
    kept = np.flatnonzero(np.isin(sample.coordinate("token/role"), codes))
    count = min(len(kept), _LOGIT_POSITIONS)
    spread = np.linspace(0, len(kept) - 1, count + 1).round().astype(np.int64)[1:]
    return kept[np.unique(spread)] if count else kept


def _logit_deviations(
    store: Store, sample: StoredSample, chosen: np.ndarray, fresh: FreshPass, others: Sequence[FreshPass]
) -> Deviations:
    states = sample.slab(_STATES, int(np.flatnonzero(store.state_layers == store.block_count)[0]))[chosen]
    found = stored_logits(store.model, states)
    relative = relative_rounding(sample.arrays[_STATES])
    values = (found.values, *(one.logits for one in (fresh, *others)))
    held, anew, *again = (logits.astype(np.float64)[None] for logits in values)
    return compare_vectors(held, anew, again, 2 * relative * found.leverage)


def _logit_verdict(
    logits: Mapping[str, Deviations], positions: Mapping[str, np.ndarray], tolerance: float
) -> TensorVerdict:
    worst = find_worst(list(logits.values()), tolerance)
    if worst is None:
        return TensorVerdict(LOGITS, len(logits), None, tolerance, "", "")
    name = list(logits)[worst.sample]
    place = f"position {positions[name][worst.index[1]]}, token id {worst.at}"
    return TensorVerdict(LOGITS, len(logits), worst, tolerance, name, place)


def _uncompared(store: Store, compared: Sequence[ComparedSample]) -> list[str]:
    known = {path for sample in compared for path in (*sample.dims, *sample.coordinates)}
    arrays = store.parts[0].manifest["arrays"]
    strange = [path for path, entry in arrays.items() if path not in known and entry["dtype"].startswith("float")]
    return [f"{path} was not compared: a fresh pass does not give it" for path in strange]


def _run_differences(store: Store, rows: pd.DataFrame, run: Mapping[str, object]) -> list[str]:
    """Say what of the way to compute differs from the run that extracted, for its noise is not in the floor."""
    lines: dict[str, None] = {}
    for part in store.parts:
        if part.number in set(rows["part"]):
            then = part.manifest.get("run", {})
            before = {**then.get("versions", {}), **then}
            now = {**_mapping(run.get("versions")), **run}
            for name in ("torch", "transformers", "device", "attention_kernel"):
                if name in before and before[name] != now[name]:
                    lines[f"extracted with {name} {before[name]}, audited with {now[name]}"] = None
    return list(lines)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
