"""From options to a plan: reads configuration, processor, annotations and prompts, but no weights and no pixels."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from engine.capture.part_slabs import STORED_DTYPES
from engine.capture.prefix_cache import why_no_cache
from engine.cli.capturing import choose_capture
from engine.cli.options import RunOptions
from engine.errors import UsageError
from engine.garbage import uncollected
from engine.models.checkpoint import Checkpoint, open_checkpoint, template_notes
from engine.models.prepare import PreparedImage, Preparer
from engine.models.vocabulary import TokenizerVocabulary
from engine.plan import TOKEN_CAPTURES, CaptureChoice, Plan, images_per_part, make_plan
from engine.prompts import read_prompts
from engine.sources import ImageReader, choose, read_source
from engine.store import ArrayShape, BlockTensors, KeptOf, part_arrays
from engine.vocabulary import ROLES

__all__ = ["Planned", "plan_run"]


class Planned(NamedTuple):
    """A plan and what it was made from.

    Attributes
    ----------
    plan, checkpoint, preparer
        The plan, the model it is for (no weights), and what prepares its inputs.
    capture
        What is kept of each forward pass.
    images
        Where the images are.
    dtype
        What the model will run in.
    tokens
        Tokens that one image of nominal size stores, with all its prompts.
    tensor_tokens
        The same of tensors that are kept of fewer roles, by name.
    sequences
        Tokens of each of its samples, one per prompt.
    prefix
        Tokens that these share and that are stored once; 0 where nothing is shared.
    warnings
        Sentences the user should read.
    """

    plan: Plan
    checkpoint: Checkpoint
    preparer: Preparer
    capture: CaptureChoice
    images: ImageReader
    dtype: str
    tokens: int
    tensor_tokens: Mapping[str, int]
    sequences: tuple[int, ...]
    prefix: int
    warnings: tuple[str, ...]

    @property
    def sequence(self) -> int:
        """Tokens of the longest sample."""
        return max(self.sequences)

    @property
    def prefix_once(self) -> int:
        """Leading tokens that run once for all prompts of an image; 0 where each prompt runs in full."""
        if not self.prefix or why_no_cache(self.checkpoint.config.get_text_config()) is not None:
            return 0
        return min(self.prefix, *(length - 1 for length in self.sequences))

    @property
    def stored_dtype(self) -> str:
        """The dtype of states and weights on disk."""
        return STORED_DTYPES[self.dtype]

    def part_arrays(self, images: int) -> tuple[ArrayShape, ...]:
        """Arrays of a part of so many images."""
        counts = _Counts(self.tokens, self.tensor_tokens, sum(self.sequences), len(self.plan.prompts))
        return _part_arrays(self.checkpoint, self.capture, self.dtype, counts, images)


class _Counts(NamedTuple):
    """What one image of nominal size adds to a part: see :class:`Planned`; positions of all sequences, and samples."""

    tokens: int
    tensor_tokens: Mapping[str, int]
    positions: int
    samples: int


@uncollected()
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
    capture = choose_capture(
        options,
        block_count=checkpoint.block_count,
        stored_dtype=STORED_DTYPES[dtype],
        prompts_share_images=not checkpoint.family.image_states_depend_on_prompt,
    )
    _check_topk(capture, checkpoint)
    preparer = Preparer(checkpoint, prompts, share_prefix=capture.share_prefix)
    nominal = preparer.prepare_nominal()
    tokens, tensor_tokens = _stored_tokens(nominal, capture, options)
    sequences = tuple(map(len, nominal.layouts))
    counts = _Counts(tokens, tensor_tokens, sum(sequences), len(prompts))
    shapes = _part_arrays(checkpoint, capture, dtype, counts, images=1)
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
        tensor_tokens=tensor_tokens,
        capture=capture,
        sequences=sequences,
        prefix=nominal.prefix,
        warnings=(*source.warnings, *template_notes(checkpoint)),
    )


def _check_topk(capture: CaptureChoice, checkpoint: Checkpoint) -> None:
    """Check that there are as many pieces as are asked for.

    Raises
    ------
    UsageError
        With both numbers.
    """
    if capture.lens_topk is None:
        return
    rows = checkpoint.config.get_text_config().vocab_size
    candidates = int(TokenizerVocabulary(checkpoint.processor.tokenizer).candidates(rows).sum())
    if capture.lens_topk > candidates:
        raise UsageError(
            f"--lens-topk {capture.lens_topk}: the vocabulary of {checkpoint.model_id} has {candidates} normal pieces "
            f"(special, byte and padding pieces are never chosen); give a number up to {candidates}."
        )


def _stored_tokens(nominal: PreparedImage, capture: CaptureChoice, options: RunOptions) -> tuple[int, dict[str, int]]:
    """Tokens that an image stores, and those of each tensor that is kept of fewer roles.

    Raises
    ------
    UsageError
        Where a choice of roles leaves none.
    """
    tokens = nominal.stored_tokens(capture.roles)
    tensor_tokens = {name: nominal.stored_tokens(roles) for name, roles in capture.tensor_roles.items()}
    for name in TOKEN_CAPTURES:
        if name in capture.tensors and not tensor_tokens.get(name, tokens):
            own = options.tensors.get(name, {}).get("roles")
            choice = f"--roles {options.roles}" if own is None else f"[{name}] roles {own!r}"
            raise UsageError(f"{choice}: no prompt of this run has a token of such a role; choose others.")
    return tokens, tensor_tokens


def _part_arrays(
    checkpoint: Checkpoint, capture: CaptureChoice, dtype: str, counts: _Counts, images: int
) -> tuple[ArrayShape, ...]:
    """Give the arrays of a part of so many images."""
    tensors = capture.tensors
    blocks = {name: len(chosen) for name, chosen in capture.tensor_blocks.items()}
    layers = {} if capture.lens_layers is None else {"lens": len(capture.lens_layers)}
    tokens = {name: images * count for name, count in counts.tensor_tokens.items()}
    return part_arrays(
        tokens=images * counts.tokens,
        samples=images * counts.samples,
        layers=len(capture.layers),
        dim=checkpoint.dim,
        roles=len(ROLES),
        dtype=STORED_DTYPES[dtype],
        residual="residual" in tensors,
        pooled="pooled" in tensors,
        token_layers=len(capture.token_layers),
        lens_ranks=capture.lens_topk or 0,
        last_layer=checkpoint.block_count in capture.layers,
        blocks=BlockTensors(
            blocks=len(capture.blocks),
            heads=checkpoint.heads,
            attention="attention" in tensors,
            queries=len(capture.queries),
            keys=images * counts.positions if "attention" in tensors else 0,
            mass="attention-mass" in tensors,
            attention_output="attention-output" in tensors,
            mlp_output="mlp-output" in tensors,
        ),
        dtypes=capture.dtypes,
        kept={
            name: KeptOf(blocks.get(name), tokens.get(name), layers.get(name)) for name in (*blocks, *tokens, *layers)
        },
    )
