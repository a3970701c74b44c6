"""From options to what is captured: which tensors, and of each which layers, blocks, roles, queries and dtype. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from engine.capture.queries import DEFAULT_QUERIES, check_query_names
from engine.cli.options import RunOptions
from engine.errors import UsageError
from engine.plan import BLOCK_CAPTURES, CAPTURES, TOKEN_CAPTURES, CaptureChoice, parse_blocks, parse_layers, parse_names
from engine.vocabulary import ROLES

__all__ = ["choose_capture"]

_DTYPES = ("float16", "float32")
_OF_STATES = ("residual", "attention-output", "mlp-output")
_LENS_TOPK = 10


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
    if options.lens_topk is not None and "lens" not in tensors:
        raise UsageError(f"--lens-topk {options.lens_topk} is a choice of lens, but --capture leaves it out.")
    layers = _layers(options, block_count, tensors)
    roles, blocks = _roles(options, tensors), _blocks(options, block_count, tensors)
    return CaptureChoice(
        tensors=tensors,
        layers=layers.together,
        roles=roles.together,
        share_prefix=options.share_prefix == "auto" and prompts_share_images,
        mantissa_bits=options.mantissa_bits,
        unembedding=options.unembedding,
        residual_layers=layers.residual,
        blocks=blocks.together,
        queries=_queries(options.queries) if "attention" in tensors else (),
        dtypes=_dtypes(options, stored_dtype),
        tensor_roles=roles.fewer,
        tensor_blocks=blocks.fewer,
        thumbnails=options.thumbnails,
        lens_topk=(options.lens_topk or _LENS_TOPK) if "lens" in tensors else None,
        lens_layers=layers.lens,
    )


class _Layers(NamedTuple):
    """Layers of the run; those of hidden states and of the lens, where they are fewer than what they are among."""

    together: tuple[int, ...]
    residual: tuple[int, ...] | None
    lens: tuple[int, ...] | None


def _layers(options: RunOptions, block_count: int, tensors: tuple[str, ...]) -> _Layers:
    """Layers of each tensor that has layers: its table's, else those of ``--layers``.

    Pooled states are of all layers, so hidden states are of some of these. On the token axis, which has the layers of
    hidden states where these are stored, the lens is of some of those. What is alone needs no others.
    """
    layers = parse_layers(options.layers, block_count)
    residual = _own_layers(options, "residual", block_count) if "residual" in tensors else None
    lens = _own_layers(options, "lens", block_count) if "lens" in tensors else None
    if "pooled" not in tensors and "residual" in tensors:
        layers, residual = residual or layers, None
    elif "pooled" not in tensors and lens is not None:
        layers, lens = lens, None
    _check_among("residual", residual, layers, f"layers {options.layers!r}, which pooled states are of", options)
    axis = layers if residual is None else residual
    owner = "the layers of hidden states" if "residual" in tensors else f"layers {options.layers!r}"
    _check_among("lens", lens, axis, owner, options)
    return _Layers(layers, None if residual == layers else residual, None if lens == axis else lens)


def _own_layers(options: RunOptions, name: str, block_count: int) -> tuple[int, ...] | None:
    text = options.tensors.get(name, {}).get("layers")
    return None if text is None else parse_layers(text, block_count, f"[{name}] layers")


def _check_among(
    name: str, chosen: tuple[int, ...] | None, known: tuple[int, ...], owner: str, options: RunOptions
) -> None:
    for layer in chosen or ():
        if layer not in known:
            raise UsageError(
                f"[{name}] layers {options.tensors[name]['layers']!r}: layer {layer} is not among {owner}: name it "
                "there too, or leave it out here."
            )


def _queries(text: str | None) -> tuple[str, ...]:
    if text is None:
        return DEFAULT_QUERIES
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    check_query_names(names)
    return names


class _Roles(NamedTuple):
    """Roles of all tensors together, None for all; and by name those of tensors that are kept of fewer."""

    together: tuple[str, ...] | None
    fewer: Mapping[str, tuple[str, ...]]


def _roles(options: RunOptions, tensors: tuple[str, ...]) -> _Roles:
    """Roles of each tensor of tokens: its table's, else those of ``--roles``, else all."""
    own = {name: options.tensors.get(name, {}).get("roles") for name in TOKEN_CAPTURES if name in tensors}
    if options.roles is not None and not own:
        raise UsageError(
            "--roles chooses tokens of the stored tensors, but --capture has pooled states alone, which cover all."
        )
    if options.roles is not None and None not in own.values():
        raise UsageError(
            f"--roles {options.roles!r} chooses for nothing: every tensor of --capture has roles in its own table; "
            "leave --roles out, or the roles of one table."
        )
    common = parse_names("--roles", options.roles, ROLES)
    chosen = {
        name: common if text is None else parse_names(f"[{name}] roles", text, ROLES) for name, text in own.items()
    }
    named = {name: roles for name, roles in chosen.items() if roles is not None}
    some = bool(named) and len(named) == len(chosen)
    together = tuple(role for role in ROLES if any(role in roles for roles in named.values())) if some else None
    return _Roles(together, {name: roles for name, roles in named.items() if roles != together})


class _Blocks(NamedTuple):
    """Blocks of all tensors together, and by name those of tensors that are kept of fewer."""

    together: tuple[int, ...]
    fewer: Mapping[str, tuple[int, ...]]


def _blocks(options: RunOptions, block_count: int, tensors: tuple[str, ...]) -> _Blocks:
    """Blocks of each tensor of blocks: its table's, else all."""
    chosen = {
        name: parse_blocks(f"[{name}] blocks", options.tensors.get(name, {}).get("blocks"), block_count)
        for name in BLOCK_CAPTURES
        if name in tensors
    }
    together = tuple(sorted({block for blocks in chosen.values() for block in blocks}))
    return _Blocks(together, {name: blocks for name, blocks in chosen.items() if blocks != together})


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
