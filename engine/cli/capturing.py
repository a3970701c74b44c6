"""From options to what is captured: which tensors, and of each which layers, blocks, queries and dtype. Pure."""

from engine.capture.queries import DEFAULT_QUERIES, check_query_names
from engine.cli.options import RunOptions
from engine.errors import UsageError
from engine.plan import BLOCK_CAPTURES, CAPTURES, CaptureChoice, parse_blocks, parse_layers, parse_names
from engine.vocabulary import ROLES

__all__ = ["choose_capture"]

_DTYPES = ("float16", "float32")
_OF_STATES = ("residual", "attention-output", "mlp-output")


def choose_capture(
    options: RunOptions, *, block_count: int, stored_dtype: str, prompts_share_images: bool
) -> CaptureChoice:
    """Say what a run captures.

    Parameters
    ----------
    options
        What the user asks for.
    block_count
        Blocks of the language model.
    stored_dtype
        What states are stored in where nothing else is chosen.
    prompts_share_images
        Whether what precedes the prompt is the same for all prompts of an image, so that it can be stored once.

    Raises
    ------
    UsageError
        Where a choice is not one of this model's, or is about something that is not captured.
    """
    tensors = parse_names("--capture", options.capture, CAPTURES) or ()
    for name in options.tensors:
        if name not in tensors:
            raise UsageError(f"the table [{name}] chooses what is kept of {name}, but --capture leaves {name} out.")
    if options.queries is not None and "attention" not in tensors:
        raise UsageError(f"--queries {options.queries!r} chooses rows of attention, but --capture leaves it out.")
    if options.roles is not None and not set(tensors) - {"pooled"}:
        raise UsageError(
            "--roles chooses tokens of the stored tensors, but --capture has pooled states alone, which cover all."
        )
    layers, residual_layers = _layers(options, block_count, tensors)
    return CaptureChoice(
        tensors=tensors,
        layers=layers,
        roles=parse_names("--roles", options.roles, ROLES),
        share_prefix=options.share_prefix == "auto" and prompts_share_images,
        mantissa_bits=options.mantissa_bits,
        unembedding=options.unembedding,
        residual_layers=residual_layers,
        blocks=_blocks(options, block_count) if set(tensors) & set(BLOCK_CAPTURES) else (),
        queries=_queries(options.queries) if "attention" in tensors else (),
        dtypes=_dtypes(options, stored_dtype),
    )


def _layers(
    options: RunOptions, block_count: int, tensors: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Layers of the run, and those of hidden states where they are fewer: pooled states may cover more."""
    layers = parse_layers(options.layers, block_count)
    text = options.tensors.get("residual", {}).get("layers")
    if text is None:
        return layers, None
    chosen = parse_layers(text, block_count, "[residual] layers")
    if "pooled" not in tensors or chosen == layers:
        return chosen, None
    for layer in chosen:
        if layer not in layers:
            raise UsageError(
                f"[residual] layers {text!r}: layer {layer} is not among layers {options.layers!r}, which pooled "
                "states are of: name it there too, or leave it out here."
            )
    return layers, chosen


def _queries(text: str | None) -> tuple[str, ...]:
    if text is None:
        return DEFAULT_QUERIES
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    check_query_names(names)
    return names


def _blocks(options: RunOptions, block_count: int) -> tuple[int, ...]:
    """Blocks of all tensors of blocks: these share an axis in the store, so tables that name blocks must agree."""
    named = {name: table["blocks"] for name, table in options.tensors.items() if "blocks" in table}
    chosen = {name: parse_blocks(f"[{name}] blocks", text, block_count) for name, text in named.items()}
    first = next(iter(named), None)
    for name, text in named.items():
        if first is not None and chosen[name] != chosen[first]:
            raise UsageError(
                f"[{first}] blocks {named[first]!r} and [{name}] blocks {text!r} differ, but all tensors of "
                "blocks share one axis of blocks: write the same in both, or only one of them."
            )
    return parse_blocks("blocks", None, block_count) if first is None else chosen[first]


def _dtypes(options: RunOptions, stored_dtype: str) -> dict[str, str]:
    """Dtypes that differ from what a tensor is stored in anyway: the states' for states, float32 for all else."""
    chosen = {}
    for name, table in options.tensors.items():
        dtype = table.get("dtype")
        if dtype is not None and dtype not in _DTYPES:
            raise UsageError(f"[{name}] dtype {dtype!r}: tensors are stored as {' or '.join(_DTYPES)}.")
        if dtype is not None and dtype != (stored_dtype if name in _OF_STATES else "float32"):
            chosen[name] = dtype
    return chosen
