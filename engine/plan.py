"""Who is where: which samples exist, in which order, and in which part each one goes.

Pure: everything here is computed from settings and names, without a disk and without a model. The plan's hash is the
identity of a store: the same command gives the same plan on every machine, and another plan is another store.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from engine.errors import UsageError
from engine.prompts import Prompt
from engine.sources import ImageRecord
from engine.store import PLAN_SCHEMA, canonical_json

__all__ = [
    "BLOCK_CAPTURES",
    "CAPTURES",
    "PART_BYTES",
    "TOKEN_CAPTURES",
    "CaptureChoice",
    "Plan",
    "PlannedPart",
    "images_per_part",
    "make_plan",
    "parse_blocks",
    "parse_layers",
    "parse_names",
]

BLOCK_CAPTURES = ("attention", "attention-mass", "attention-output", "mlp-output")
"""What can be captured of blocks: ``attention`` the rows of named queries with norms of values, ``attention-mass`` how
much of every token's attention goes to each role, and what the two halves of a block put out."""

CAPTURES = ("residual", "pooled", *BLOCK_CAPTURES, "lens")
"""What can be captured: ``residual`` the hidden states, ``pooled`` their means per role, what is of blocks, and
``lens`` the best vocabulary pieces of each state."""

TOKEN_CAPTURES = ("residual", *BLOCK_CAPTURES, "lens")
"""Those that are of tokens, whose roles can be chosen; of attention the norms of values are."""

PART_BYTES = 2 * 2**30
"""Raw bytes of a part, unless told: few enough to hold two in memory, enough that committing one costs little."""

_LAYERS = "this model has {0} blocks, so layers 0 (embeddings) to {0}"
_BLOCKS = "this model has blocks 1 to {0}"
_RANGE = re.compile(r"(?P<start>[0-9]{0,9})((?P<colon>:)(?P<stop>[0-9]{0,9})(:(?P<step>[0-9]{0,9}))?)?")


@dataclass(frozen=True)
class CaptureChoice:
    """What is kept of each forward pass.

    Attributes
    ----------
    tensors
        Names out of :data:`CAPTURES`.
    layers
        Layer numbers, ascending.
    roles
        Roles whose tokens are stored, those of all tensors together; all where None. Pooled states always cover every
        role, and rows of attention every key.
    share_prefix
        Whether the leading tokens that all prompts of an image share are stored once.
    mantissa_bits
        Mantissa bits kept of stored states; None keeps them as they are.
    unembedding
        Whether the unembedding matrix is stored with the model's tables.
    residual_layers
        Those of the layers whose hidden states are stored, ascending, where these are fewer; None for all.
    blocks
        Numbers of the blocks that tensors of blocks are of, all of them together, ascending; empty without any.
    queries
        Names of the queries whose attention is kept; empty without ``attention``.
    dtypes
        Stored dtype of tensors that are not stored in their usual one, by name.
    tensor_roles
        Roles of tensors out of :data:`TOKEN_CAPTURES` that are kept of fewer than ``roles``, by name.
    tensor_blocks
        Blocks of tensors that are kept of fewer than ``blocks``, by name.
    thumbnails
        Whether a small copy of each image is stored with its first sample.
    lens_topk
        Vocabulary pieces that are kept of each state; None without ``lens``.
    lens_layers
        Layers of ``lens``, ascending, where these are fewer than those of the hidden states, or without such than
        ``layers``; None for all.
    """

    tensors: tuple[str, ...]
    layers: tuple[int, ...]
    roles: tuple[str, ...] | None
    share_prefix: bool
    mantissa_bits: int | None
    unembedding: bool
    residual_layers: tuple[int, ...] | None = None
    blocks: tuple[int, ...] = ()
    queries: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    tensor_roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensor_blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    thumbnails: bool = False
    lens_topk: int | None = None
    lens_layers: tuple[int, ...] | None = None

    @property
    def token_layers(self) -> tuple[int, ...]:
        """Layers of the token axis: of hidden states where these are stored, else of the lens."""
        alone = self.lens_layers if "residual" not in self.tensors else None
        return alone or (self.layers if self.residual_layers is None else self.residual_layers)

    def record(self) -> dict[str, Any]:
        """Write the choice as it stands in ``store.json``."""
        return {
            "tensors": list(self.tensors),
            "layers": list(self.layers),
            "roles": None if self.roles is None else list(self.roles),
            "share_prefix": self.share_prefix,
            "mantissa_bits": self.mantissa_bits,
            "unembedding": self.unembedding,
            "residual_layers": None if self.residual_layers is None else list(self.residual_layers),
            "blocks": list(self.blocks),
            "queries": list(self.queries),
            "dtypes": dict(self.dtypes),
            "tensor_roles": {name: list(roles) for name, roles in self.tensor_roles.items()},
            "tensor_blocks": {name: list(blocks) for name, blocks in self.tensor_blocks.items()},
            "thumbnails": self.thumbnails,
            "lens_topk": self.lens_topk,
            "lens_layers": None if self.lens_layers is None else list(self.lens_layers),
        }


class PlannedPart(NamedTuple):
    """One work unit: its number and its images [start, stop) in plan order."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """All samples of a store, in order: every image with every prompt, whole images per part.

    Attributes
    ----------
    record
        What ``store.json`` says of the run, ``plan_sha256`` included.
    images, prompts
        In plan order; sample = image × prompt.
    images_per_part
        Whole images in each part but the last.
    """

    record: Mapping[str, Any]
    images: tuple[ImageRecord, ...]
    prompts: tuple[Prompt, ...]
    images_per_part: int

    @property
    def sha256(self) -> str:
        """Identity of the plan."""
        return str(self.record["plan_sha256"])

    @property
    def parts(self) -> tuple[PlannedPart, ...]:
        """The work units, in order."""
        step = self.images_per_part
        count = len(self.images)
        return tuple(
            PlannedPart(number, start, min(start + step, count)) for number, start in enumerate(range(0, count, step))
        )

    @property
    def sample_count(self) -> int:
        """Number of planned samples."""
        return len(self.images) * len(self.prompts)

    def table(self) -> pa.Table:
        """``plan.parquet``: one row per planned sample."""
        repeats, count = len(self.prompts), len(self.images)
        image_ids = [image.image_id for image in self.images for _ in range(repeats)]
        prompt_ids = [prompt.prompt_id for prompt in self.prompts] * count
        columns = {
            "sample_id": list(map("/".join, zip(image_ids, prompt_ids, strict=True))),
            "image_id": image_ids,
            "prompt_id": prompt_ids,
            "part": np.repeat(np.arange(count, dtype=np.int32) // self.images_per_part, repeats),
        }
        return pa.table(columns, schema=PLAN_SCHEMA)


def make_plan(
    *,
    model: Mapping[str, Any],
    source: Mapping[str, Any],
    images: Sequence[ImageRecord],
    prompts: Sequence[Prompt],
    capture: CaptureChoice,
    limit: int | None,
    seed: int,
    images_per_part: int,
) -> Plan:
    """Bind settings, images and prompts into a plan.

    Parameters
    ----------
    model, source
        What ``store.json`` says of them; must not hold paths of this machine.
    images
        In plan order.
    prompts
        In the order in which every image gets them.
    capture, limit, seed, images_per_part
        See :class:`CaptureChoice` and :func:`images_per_part`.
    """
    record: dict[str, Any] = {
        "model": dict(model),
        "source": {**source, "images": len(images), "images_sha256": _images_sha256(images)},
        "prompts": [{"prompt_id": p.prompt_id, "kind": p.kind, "text": p.text} for p in prompts],
        "capture": capture.record(),
        "limit": limit,
        "seed": seed,
        "images_per_part": images_per_part,
    }
    record["plan_sha256"] = hashlib.sha256(canonical_json(record)).hexdigest()
    return Plan(record, tuple(images), tuple(prompts), images_per_part)


def _images_sha256(images: Sequence[ImageRecord]) -> str:
    """Hash of what is planned of the images: ids, relative paths, captions and items, in plan order.

    A line is JSON; ``json.dumps`` builds an encoder for each, which takes longer than the text.
    """
    listing = hashlib.sha256()
    for image in images:
        names = image.image_id, image.uri, image.item_id or image.image_id
        image_id, uri, item = map(encode_basestring_ascii, names)
        references = ", ".join(map(encode_basestring_ascii, image.references))
        listing.update(f"[{image_id}, {uri}, [{references}], {item}]\n".encode())
    return listing.hexdigest()


def images_per_part(
    *, image_bytes: int, prompts: int, part_bytes: int | None = None, samples_per_part: int | None = None
) -> int:
    """Whole images in one part.

    Parameters
    ----------
    image_bytes
        Raw bytes that one image takes with all its prompts.
    prompts
        Prompts per image.
    part_bytes
        Raw bytes of one part, rounded down to whole images but at least one; `PART_BYTES` unless told.
    samples_per_part
        Samples of one part, rounded up to whole images; excludes ``part_bytes``.

    Raises
    ------
    UsageError
        Where both are given, or one is not positive.
    """
    if part_bytes is not None and samples_per_part is not None:
        raise UsageError("--part-bytes and --samples-per-part both set the size of a part; give one of them.")
    if samples_per_part is not None:
        if samples_per_part < 1:
            raise UsageError(f"--samples-per-part is {samples_per_part}; a part holds at least one sample.")
        return -(-samples_per_part // prompts)
    limit = PART_BYTES if part_bytes is None else part_bytes
    if limit < 1:
        raise UsageError(f"--part-bytes is {limit}; give a positive size, for example 512MiB.")
    return max(1, limit // max(image_bytes, 1))


def parse_layers(text: str | None, block_count: int, option: str = "--layers") -> tuple[int, ...]:
    """Layer numbers from ``0,8,16:32``: single layers and ascending half-open ranges, start:stop:step, within 0..L.

    Raises
    ------
    UsageError
        Where a number is unknown to the model or the text is not of that form.
    """
    return _parse_numbers(option, text, _Numbers("layer", 0, block_count, _LAYERS.format(block_count)))


def parse_blocks(option: str, text: str | None, block_count: int) -> tuple[int, ...]:
    """Block numbers within 1..L, written as layers are; all where the text is None.

    Raises
    ------
    UsageError
        Where a number is unknown to the model or the text is not of that form.
    """
    return _parse_numbers(option, text, _Numbers("block", 1, block_count, _BLOCKS.format(block_count)))


class _Numbers(NamedTuple):
    """What can be chosen: layers or blocks, from the first to the last, and how many the model has in words."""

    what: str
    first: int
    last: int
    extent: str


def _parse_numbers(option: str, text: str | None, known: _Numbers) -> tuple[int, ...]:
    if text is None:
        return tuple(range(known.first, known.last + 1))
    chosen: set[int] = set()
    for item in map(str.strip, text.split(",")):
        numbers = _number_range(item, known)
        if numbers is None:
            raise UsageError(f"{option} {text!r}: {item!r} is neither a {known.what} nor a range; write 0,8,16:32.")
        if not numbers:
            raise UsageError(f"{option} {text!r}: {item!r} names no {known.what}; {known.extent}.")
        # The ends are looked at before the range is spelled out: a typing error must not cost memory.
        unknown = [number for number in (numbers[0], numbers[-1]) if not known.first <= number <= known.last]
        if unknown:
            raise UsageError(f"{option} {text!r}: {known.what} {unknown[0]} does not exist; {known.extent}.")
        chosen.update(numbers)
    return tuple(sorted(chosen))


def _number_range(item: str, known: _Numbers) -> range | None:
    """Read ``8``, ``16:32``, ``16:`` or ``0:33:4``; None where the text is none of these or the step is 0."""
    match = _RANGE.fullmatch(item)
    if match is None:
        return None
    start, colon, stop, step = match.group("start", "colon", "stop", "step")
    if not colon:
        return range(int(start), int(start) + 1) if start else None
    steps = int(step or 1)
    return range(int(start or known.first), int(stop or known.last + 1), steps) if steps else None


def parse_names(option: str, text: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """Comma-separated names out of a known list, in the list's order; None where the option is not given.

    Raises
    ------
    UsageError
        Where a name is unknown or none is given.
    """
    if text is None:
        return None
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(known))
    if unknown or not names:
        what = f"{unknown[0]!r} is unknown" if unknown else "no name is given"
        raise UsageError(f"{option} {text!r}: {what}; choose from {', '.join(known)}.")
    return tuple(name for name in known if name in names)
