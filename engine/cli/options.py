"""The options that ``extract`` and ``estimate`` share, and the TOML file that may hold any of them."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from engine.errors import UsageError
from engine.plan import BLOCK_CAPTURES
from engine.sources import SOURCES

__all__ = ["ByteSize", "RunOptions", "run_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class RunOptions:
    """What a user asks of ``extract`` or ``estimate``.

    Field names are option names; ``tensors`` are the tables of the TOML file, by the name of what is captured.
    """

    model: str
    revision: str | None
    source: str
    annotations: Path | None
    images: Path | None
    split: str | None
    prompts: tuple[str, ...]
    limit: int | None
    seed: int
    capture: str
    queries: str | None
    lens_topk: int | None
    layers: str | None
    roles: str | None
    share_prefix: str
    mantissa_bits: int | None
    thumbnails: bool
    dtype: str
    device: str | None
    batch_size: int
    part_bytes: int | None
    samples_per_part: int | None
    unembedding: bool
    tensors: Mapping[str, Mapping[str, str]]

    @classmethod
    def from_click(cls, values: dict[str, Any]) -> "RunOptions":
        """Pick this class's fields out of a command's parameters, while the command runs."""
        chosen = {field.name: values[field.name] for field in fields(cls)}
        context = click.get_current_context()
        given = {key for key in ("layers", "roles") if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
        chosen["tensors"] = {
            name: {key: value for key, value in table.items() if key not in given}
            for name, table in chosen["tensors"].items()
        }
        return cls(**chosen)


class ByteSize(click.ParamType):
    """Bytes with an optional unit: ``512MiB``, ``2GiB``, ``1.5GB``, ``1000000``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text into a number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no size; write for example 512MiB or 2GiB.", param, ctx)
        number, unit, binary = match.groups()
        power = " KMGT".index(unit.upper() or " ")
        return int(float(number) * (1024 if binary or not unit else 1000) ** power)


def _load_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> dict[str, dict[str, str]]:
    """Make the TOML file's entries the defaults of the other options; the command line wins.

    Returns the tables, one per tensor with finer choices, whose values are in the command line's notation.
    """
    if path is None:
        return {}
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}; check --config.") from error
    options = {option.name: option for option in context.command.params if option is not parameter}
    tables = {name: _read_table(path, name, value) for name, value in entries.items() if isinstance(value, dict)}
    defaults = {name.replace("-", "_"): value for name, value in entries.items() if name not in tables}
    # One file serves both commands that plan a run: what only the other one knows is for it.
    defaults = {name: value for name, value in defaults.items() if name in options or name not in _of_runs(context)}
    unknown = sorted(set(defaults) - options.keys())
    if unknown:
        raise UsageError(
            f"{path} sets {unknown[0]!r}, which is no option of this command; known are "
            f"{', '.join(sorted(name.replace('_', '-') for name in options if name))}."
        )
    for name, value in defaults.items():
        if options[name].multiple:
            defaults[name] = value if isinstance(value, list) else [value]
        else:
            defaults[name] = _in_notation(value)
    if "queries" in tables.get("attention", {}):
        defaults["queries"] = tables["attention"].pop("queries")
    context.default_map = {**(context.default_map or {}), **defaults}
    return tables


def _of_runs(context: click.Context) -> set[str | None]:
    """Names of the options of all commands that plan a run."""
    root = context.find_root().command
    names = ("extract", "estimate")
    commands = [root.get_command(context, name) for name in names] if isinstance(root, click.Group) else []
    return {option.name for command in commands if command is not None for option in command.params}


def _in_notation(value: Any) -> Any:
    """Write a list as on the command line, which means the same: layers = [0, 4] and layers = "0,4"."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _read_table(path: Path, name: str, table: dict[str, Any]) -> dict[str, str]:
    """Check the names of one table; their values are looked at with the model."""
    if name == "pooled":
        raise UsageError(
            f"{path} has a table [pooled], but pooled states always cover every role and all of the layers; options "
            "stand at the top of the file."
        )
    if name not in _TABLES:
        raise UsageError(
            f"{path} has a table [{name}]; options stand at the top of the file, as {name} = …, and tables choose "
            f"finer for one tensor: {', '.join(f'[{known}]' for known in _TABLES)}."
        )
    for key in table:
        if key not in _TABLES[name]:
            raise UsageError(
                f"{path} sets {key!r} in [{name}], which takes {', '.join(_TABLES[name])}; other options stand at the "
                "top of the file."
            )
    return {key: str(_in_notation(value)) for key, value in table.items()}


# What may differ from one tensor to the next.
_OF_BLOCKS = ("blocks", "roles", "dtype")
_TABLES: dict[str, tuple[str, ...]] = {
    "residual": ("layers", "roles", "dtype"),
    "attention": ("blocks", "roles", "queries", "dtype"),
    **{name: _OF_BLOCKS for name in BLOCK_CAPTURES if name != "attention"},
    "lens": ("layers", "roles"),
}

_OPTIONS = (
    click.option(
        "--config",
        "tensors",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        callback=_load_config,
        help="TOML file with any of these options (names without the dashes); the command line wins. Tables choose "
        'finer for one tensor: [residual] with layers, roles, dtype; [attention] with blocks = "1:33", queries, roles '
        "(of the norms of values), dtype; [attention-mass] and the outputs with blocks, roles, dtype; [lens] with "
        "layers, roles.",
    ),
    click.option("--model", required=True, help="Hub id or local folder of a VLLM (safetensors only)."),
    click.option("--revision", help="Commit, tag or branch of a hub id; the commit it means is recorded."),
    click.option("--source", required=True, type=click.Choice(sorted(SOURCES)), help="Format of the image source."),
    click.option(
        "--annotations",
        type=click.Path(path_type=Path),
        help="coco, karpathy: the captions JSON. winoground: examples.jsonl or Parquet. parquet: a file or a folder of "
        "shards. folder: captions.jsonl, where it is not in the image folder.",
    ),
    click.option(
        "--images",
        type=click.Path(path_type=Path),
        help="Folder that the paths of images start from. Not needed where Parquet holds the images.",
    ),
    click.option("--split", help="karpathy, parquet: one split or several: val, or train,restval.  [default: all]"),
    click.option(
        "--prompts",
        multiple=True,
        default=("normal:1",),
        show_default=True,
        help="normal, question, noisy, empty (normal:2 the first two, noisy:10 ten), or a JSON file {id: text}. "
        "Repeat for several.",
    ),
    click.option("--limit", type=int, help="Number of images; a fixed random subset, 600 are among 5000."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of image order and noisy prompts."),
    click.option(
        "--capture",
        default="residual,pooled",
        show_default=True,
        help="residual: every hidden state. pooled: means per role, enough for contextualization at 1/30 of the bytes. "
        "attention: attention of the --queries, with the norms of values. attention-mass: how much of every token's "
        "attention goes to each role. attention-output, mlp-output: what the two halves of each block put out. "
        "lens: the best --lens-topk vocabulary pieces of every state (LogitLens), ids and logits.",
    ),
    click.option(
        "--queries",
        help="Positions whose attention is kept: last_text, last_image, or ROLE:INDEX such as instruction:0 or "
        "template:-1.  [default: last_text,last_image]",
    ),
    click.option(
        "--lens-topk",
        type=click.IntRange(min=1),
        help="Vocabulary pieces per token and layer of lens. How many hardly matters to the time: each state costs a "
        "product with the whole unembedding, 2 · vocabulary · width operations, and in 16 bits two of them: per "
        "layer 2 %, or 4 %, of what the forward pass of LLaVA-1.5-7B takes.  [default: 10]",
    ),
    click.option("--layers", help="Layers to keep, 0 (embeddings) to L: 0,8,16:32 (the end excluded). Default: all."),
    click.option(
        "--roles",
        help="Roles whose tokens are stored, such as image,instruction. In a --config file tensors can have their own; "
        "on the command line this is for all of them. Default: all.",
    ),
    click.option(
        "--share-prefix",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="Run and store the tokens that all prompts of an image share once, where the model allows it.",
    ),
    click.option("--mantissa-bits", type=click.IntRange(min=1), help="Round stored states to this many mantissa bits."),
    click.option(
        "--thumbnails",
        is_flag=True,
        help="Store a small JPEG of every image (longest side at most 448 pixels), so that figures can draw over it "
        "without the data set. Whoever gets the store gets the images: leave it off where they may not be shared.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
        default="auto",
        show_default=True,
        help="dtype the model runs in; auto is the checkpoint's.",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, …  Default: the GPUs if there are any."),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Samples per pass; images, where it is over prefixes.",
    ),
    click.option("--part-bytes", type=ByteSize(), help="Raw bytes per part, such as 512MiB.  [default: 2GiB]"),
    click.option("--samples-per-part", type=int, help="Samples per part instead, rounded up to whole images."),
    click.option(
        "--unembedding/--no-unembedding",
        default=True,
        help="Store the unembedding matrix, which LogitLens needs.  [default: unembedding]",
    ),
)


def run_options(command: Command) -> Command:
    """Add the shared options to a click command, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
