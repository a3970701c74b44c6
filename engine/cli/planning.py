"""From options to a plan: reads configuration, processor, annotations and prompts, but no weights and no pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.capture.part_slabs import STORED_DTYPES
from engine.cli.options import RunOptions
from engine.errors import UsageError
from engine.models.checkpoint import Checkpoint, open_checkpoint, template_notes
from engine.models.prepare import Preparer
from engine.models.vocabulary import TokenizerVocabulary
from engine.plan import CAPTURES, CaptureChoice, Plan, images_per_part, make_plan, parse_layers, parse_names
from engine.prompts import read_prompts
from engine.sources import ImageReader, choose, read_source
from engine.store import ArrayShape, part_arrays
from engine.vocabulary import ROLES

__all__ = ["Planned", "plan_run"]


class Planned(NamedTuple):
    """A plan and what it was made from.

    Attributes
    ----------
    plan, checkpoint, preparer
        The plan, the model it is for (no weights), and what prepares its inputs.
    images
        Where the images are.
    dtype
        What the model will run in.
    tokens
        Tokens that one image of nominal size stores, with all its prompts.
    sequences
        Tokens of each of its samples, one per prompt.
    warnings
        Sentences the user should read.
    """

    plan: Plan
    checkpoint: Checkpoint
    preparer: Preparer
    images: ImageReader
    dtype: str
    tokens: int
    sequences: tuple[int, ...]
    warnings: tuple[str, ...]

    @property
    def sequence(self) -> int:
        """Tokens of the longest sample."""
        return max(self.sequences)

    @property
    def stored_dtype(self) -> str:
        """The dtype of states and weights on disk."""
        return STORED_DTYPES[self.dtype]

    def part_arrays(self, images: int) -> tuple[ArrayShape, ...]:
        """Arrays of a part of so many images."""
        capture = self.plan.record["capture"]
        return _part_arrays(self.checkpoint, capture["tensors"], capture["layers"], self.dtype)(
            images * self.tokens, images * len(self.plan.prompts)
        )


def plan_run(options: RunOptions, *, revision: Callable[[Checkpoint], str]) -> Planned:
    """Plan an extraction.

    Parameters
    ----------
    options
        What the user asks for.
    revision
        Gives the model's revision; hashing a local folder's weights takes a while, and ``estimate`` needs none.

    Raises
    ------
    StrataError, UsageError
        Where an option does not fit the model, the source or another option.
    """
    source = read_source(options.source, annotations=options.annotations, images=options.images, split=options.split)
    images = choose(source.records, kind=source.kind, seed=options.seed, limit=options.limit)
    checkpoint = open_checkpoint(options.model, revision=options.revision)
    prompts = read_prompts(
        options.prompts,
        family=checkpoint.family.name,
        vocabulary=TokenizerVocabulary(checkpoint.processor.tokenizer),
        seed=options.seed,
    )
    dtype = checkpoint.dtype(options.dtype)
    tensors = parse_names("--capture", options.capture, CAPTURES) or ()
    capture = CaptureChoice(
        tensors=tensors,
        layers=parse_layers(options.layers, checkpoint.block_count),
        roles=parse_names("--roles", options.roles, ROLES),
        share_prefix=options.share_prefix == "auto" and not checkpoint.family.image_states_depend_on_prompt,
        mantissa_bits=options.mantissa_bits,
        unembedding=options.unembedding,
    )
    if capture.roles is not None and "residual" not in tensors:
        raise UsageError("--roles chooses tokens of the stored states, but --capture leaves residual out.")
    preparer = Preparer(checkpoint, prompts, share_prefix=capture.share_prefix)
    nominal = preparer.prepare_nominal()
    tokens = nominal.stored_tokens(capture.roles)
    if "residual" in tensors and not tokens:
        raise UsageError(f"--roles {options.roles}: no prompt of this run has a token of such a role; choose others.")
    shapes = _part_arrays(checkpoint, tensors, capture.layers, dtype)(tokens, len(prompts))
    plan = make_plan(
        model={
            "id": checkpoint.model_id,
            "revision": revision(checkpoint),
            "class": checkpoint.config.architectures[0] if checkpoint.config.architectures else None,
            "family": checkpoint.family.name,
            "dtype": dtype,
            "blocks": checkpoint.block_count,
            "dim": checkpoint.dim,
            "image_states_depend_on_prompt": checkpoint.family.image_states_depend_on_prompt,
        },
        source={
            "kind": source.kind,
            "split": source.split,
            "annotations_sha256": source.annotations_sha256,
        },
        images=images,
        prompts=prompts,
        capture=capture,
        limit=options.limit,
        seed=options.seed,
        images_per_part=images_per_part(
            image_bytes=sum(shape.raw_bytes for shape in shapes),
            prompts=len(prompts),
            part_bytes=options.part_bytes,
            samples_per_part=options.samples_per_part,
        ),
    )
    return Planned(
        plan=plan,
        checkpoint=checkpoint,
        preparer=preparer,
        images=source.images,
        dtype=dtype,
        tokens=tokens,
        sequences=tuple(map(len, nominal.layouts)),
        warnings=(*source.warnings, *template_notes(checkpoint)),
    )


def _part_arrays(
    checkpoint: Checkpoint, tensors: Sequence[str], layers: Sequence[int], dtype: str
) -> Callable[[int, int], tuple[ArrayShape, ...]]:
    def arrays(tokens: int, samples: int) -> tuple[ArrayShape, ...]:
        return part_arrays(
            tokens=tokens,
            samples=samples,
            layers=len(layers),
            dim=checkpoint.dim,
            roles=len(ROLES),
            dtype=STORED_DTYPES[dtype],
            residual="residual" in tensors,
            pooled="pooled" in tensors,
            last_layer=checkpoint.block_count in layers,
        )

    return arrays
