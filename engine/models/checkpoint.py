"""What a checkpoint says of itself before any weight is loaded: identity, configuration, processor.

A hub id is pinned to the commit it resolves to; a local folder is identified by its name and a hash of its files, so
that the same weights have the same identity wherever they lie. Remote code is never run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils.hub import cached_file, extract_commit_hash

from engine.errors import StrataError, UsageError
from engine.models.compatibility import check_configuration, check_processor
from engine.models.families import Family, family_of

__all__ = ["DTYPES", "Checkpoint", "content_revision", "first_line", "open_checkpoint"]

DTYPES = ("float16", "bfloat16", "float32")
_HASHED_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".txt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its weights.

    Attributes
    ----------
    location
        What transformers loads from: a hub id or a folder.
    model_id
        The hub id, or the folder's name.
    commit
        The hub commit everything is loaded at; None for a folder.
    family, config, processor
        Its row of the family table, its configuration, its processor (images through the PIL back end, so that pixels
        are the same on every machine).
    """

    location: str
    model_id: str
    commit: str | None
    family: Family
    config: Any
    processor: Any

    @property
    def block_count(self) -> int:
        """Number of Transformer blocks of the language model."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def heads(self) -> int:
        """Number of attention heads (of queries) of each block."""
        return int(self.config.get_text_config().num_attention_heads)

    @property
    def logit_softcap(self) -> float | None:
        """Bound c of logits c · tanh(z / c), or None."""
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def image_token_id(self) -> int:
        """The token id that stands for one row of image features."""
        return int(self.config.image_token_id)

    @property
    def image_token(self) -> str:
        """The placeholder text of the image."""
        return str(self.processor.image_token)

    @property
    def pad_id(self) -> int:
        """A token id to pad sequences with: padding is masked, so any but the image's would do."""
        return int(self.image_token_id == 0)

    def revision(self) -> str:
        """Return the hub commit, or ``sha256:…`` over the files of a local folder (reads all of its weights once)."""
        side = self.family.side_text
        return self.commit or content_revision(Path(self.location), () if side is None else (side.tokenizer,))

    def dtype(self, choice: str) -> str:
        """Resolve ``--dtype``: ``auto`` is the checkpoint's own dtype."""
        if choice != "auto":
            return choice
        declared = str(getattr(self.config, "dtype", None) or self.config.get_text_config().dtype or "float32")
        name = declared.removeprefix("torch.")
        if name not in DTYPES:
            raise UsageError(
                f"{self.model_id} is stored as {name}; strata captures {', '.join(DTYPES)}. Choose one with --dtype."
            )
        return name


def open_checkpoint(model: str, *, revision: str | None = None) -> Checkpoint:
    """Read configuration and processor of a hub id or a local folder.

    Raises
    ------
    UsageError
        Where it is no checkpoint, no VLLM of a known family, or has no usable processor.
    """
    folder = Path(model)
    if folder.is_dir() and revision is not None:
        raise UsageError(f"--revision {revision} is for hub ids and {folder} is a local folder: leave it out.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json, so it is no model folder; give --model a folder or a hub id.")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise UsageError(f"the folder {model} does not exist, and a hub id has the form owner/name; check --model.")
    try:
        commit = None if folder.is_dir() else _resolve_commit(model, revision)
        pinned = {"revision": commit, "trust_remote_code": False} if commit else {"trust_remote_code": False}
        config = AutoConfig.from_pretrained(model, **pinned)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"cannot read a model configuration from {model!r}: {first_line(error)} "
            "Give --model a local folder or a hub id (and log in with `hf auth login` for gated models)."
        ) from error
    model_id = folder.resolve().name if folder.is_dir() else model
    family = family_of(config.model_type, model_id)
    check_configuration(config, family, model_id)
    try:
        processor = getattr(transformers, family.processor).from_pretrained(model, **pinned)
        processor.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil", **pinned)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"cannot load the processor of {model!r}: {first_line(error)} "
            "The folder needs processor_config.json and the tokenizer's files beside the weights."
        ) from error
    check_processor(processor, config, family, model_id)
    return Checkpoint(model, model_id, commit, family, config, processor)


def content_revision(folder: Path, subfolders: Sequence[str] = ()) -> str:
    """Identity of a local checkpoint: a hash over its configuration, tokenizer and safetensors files.

    Parameters
    ----------
    folder
        The checkpoint.
    subfolders
        Names of the folders in it that belong to it too.

    Returns
    -------
    str
        ``sha256:`` and 64 hexadecimal digits over the sorted lines ``<sha256>  <name>``.
    """
    places = (folder, *(folder / name for name in subfolders))
    files = sorted(
        path for place in places for path in place.iterdir() if path.suffix in _HASHED_SUFFIXES and path.is_file()
    )
    listing = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            listing.update(
                f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n".encode()
            )
    return f"sha256:{listing.hexdigest()}"


def template_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say where a checkpoint's own chat template looks like another than its family's, which strata fills.

    Models of one type are tuned with different templates; with a foreign one a model still answers, but its states are
    not those that its users know. The template is a program of the checkpoint's: it is read as text, never run.
    """
    own = getattr(checkpoint.processor, "chat_template", None)
    marker = checkpoint.family.template.rpartition("{prompt}")[2].strip()
    if not own or marker in str(own):
        return ()
    return (
        f"the chat template of {checkpoint.model_id} has no {marker!r}, so it is not that of {checkpoint.family.title} "
        f"({checkpoint.family.template!r}), which strata uses",
    )


def _resolve_commit(model: str, revision: str | None) -> str:
    path = cached_file(model, "config.json", revision=revision)
    commit = extract_commit_hash(path, None)
    if commit is None:
        raise StrataError(f"cannot tell which commit of {model} was loaded; name it with --revision <commit hash>.")
    return commit


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type where it has none; libraries add pages below it."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
