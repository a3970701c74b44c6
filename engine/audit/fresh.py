"""Fresh forward passes at batch 1, through the very code that extracts, in several ways that differ by noise alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.audit.kernels import Kernel, kernel_pair
from engine.audit.lens import FreshPieces, first_ranks, read_pieces, searched_ranks
from engine.capture.extraction import Extraction, extract_part
from engine.capture.lens import Lens
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.load import LoadedModel
from engine.models.prepare import Preparer
from engine.plan import Plan, PlannedPart
from engine.prompts import Prompt
from engine.sources import ImageReader, ImageRecord
from engine.store import PartContent

__all__ = ["FreshPass", "FreshPasses"]


class _Layout(NamedTuple):
    """How often a sample stands in its batch, and behind how many positions of padding."""

    copies: int
    padding: int


_ALONE = _Layout(1, 0)
_BATCH = _Layout(2, 7)


class FreshPass(NamedTuple):
    """A part of one sample, and the model's own logits.

    Attributes
    ----------
    content
        What extraction would write of it; the slabs of each array can be asked for once, in order.
    logits
        (position, vocab) float32 at the positions asked for.
    pieces
        Vocabulary pieces, of more ranks than ``content`` has; None where none are stored.
    """

    content: PartContent
    logits: np.ndarray
    pieces: FreshPieces | None


@dataclass(frozen=True)
class FreshPasses:
    """Runs a store's model over single samples of the store.

    Attributes
    ----------
    record
        The store's record: what is captured.
    checkpoint, loaded
        The model.
    images
        Where the images are.
    """

    record: Mapping[str, Any]
    checkpoint: Checkpoint
    loaded: LoadedModel
    images: ImageReader
    _preparers: dict[str, Preparer] = field(default_factory=dict)

    @property
    def run(self) -> dict[str, object]:
        """How these passes compute, as it stands in manifests."""
        return self._extraction((), ()).run

    @property
    def kernels(self) -> tuple[str, str]:
        """Names of the kernel that extraction runs and of the one that the floor is measured with."""
        first, other = self._kernels
        return first.name, other.name

    def all(self, image: ImageRecord, prompt: Prompt, positions: np.ndarray) -> tuple[FreshPass, ...]:
        """Run a sample alone, then alone under another attention kernel, then twice in a padded batch.

        The second copy and the padding change the sizes of all products, of the vision tower too, as a batch of
        extraction does: without them the noise of a store's padded batches would be missing from the floor.

        Parameters
        ----------
        image, prompt
            The sample.
        positions
            Positions of its own sequence whose logits are kept.

        Raises
        ------
        StrataError
            Where the fresh states are unusable.
        """
        first, other = self._kernels
        passes = ((first, _ALONE), (other, _ALONE), (first, _BATCH))
        return tuple(self._run(image, prompt, positions, kernel, layout) for kernel, layout in passes)

    @property
    def _kernels(self) -> tuple[Kernel, Kernel]:
        probe = self._extraction((), ()).probe
        return kernel_pair(self.loaded.language, listened=probe.attention or probe.mass)

    def _run(
        self, image: ImageRecord, prompt: Prompt, positions: np.ndarray, kernel: Kernel, layout: _Layout
    ) -> FreshPass:
        extraction = self._extraction((image,) * layout.copies, (prompt,), layout)
        with kernel.chosen(), _logits_at(self.loaded.model, positions + layout.padding) as logits:
            content = extract_part(extraction, PlannedPart(0, 0, layout.copies), _Silence())
        if content.bad_samples:
            bad = content.bad_samples[0]
            raise StrataError(
                f"the store has the sample {bad.sample_id}, but a fresh pass over it is unusable: {bad.reason}. "
                f"Audit it on the device that extracted it, or look for what differs with strata inspect."
            )
        pieces = read_pieces(content.arrays)
        if pieces is not None:
            topk = int(self.record["capture"]["lens_topk"])
            content = replace(content, arrays=first_ranks(content.arrays, pieces, topk))
        return FreshPass(content, logits[0], pieces)

    @cached_property
    def _lens(self) -> Lens | None:
        topk = self.record["capture"].get("lens_topk")
        return None if topk is None else Lens.of(self.checkpoint, self.loaded, searched_ranks(topk))

    def _extraction(
        self, images: tuple[ImageRecord, ...], prompts: tuple[Prompt, ...], layout: _Layout = _ALONE
    ) -> Extraction:
        return Extraction(
            store=Path(),
            plan=Plan(self.record, images, prompts, images_per_part=1),
            images=self.images,
            checkpoint=self.checkpoint,
            loaded=self.loaded,
            preparer=self._preparer(prompts),
            batch_size=layout.copies,
            padding=layout.padding,
            lens=self._lens,
            when_full="free its memory, or audit on another --device.",
        )

    def _preparer(self, prompts: tuple[Prompt, ...]) -> Preparer:
        key = "".join(prompt.prompt_id for prompt in prompts)
        if key not in self._preparers:
            self._preparers[key] = Preparer(self.checkpoint, prompts, share_prefix=False)
        return self._preparers[key]


@contextmanager
def _logits_at(model: Any, positions: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Keep the model's own logits at some positions; capturing itself asks for the last position's alone."""
    kept: list[np.ndarray] = []

    def ask(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # A stored position that this sequence does not have is a mismatch, which others report. Numbers, because with
        # several GPUs a tensor would not be on the one that has the last layer.
        last = keywords["input_ids"].shape[1] - 1
        return arguments, {**keywords, "logits_to_keep": positions.clip(max=last).tolist()}

    def keep(_module: Any, _arguments: tuple[Any, ...], output: Any) -> None:
        kept.append(output.logits[0].float().cpu().numpy())

    handles = (model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(keep))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class _Silence:
    """Hears the progress of a part and says nothing."""

    def batch_done(self, samples: int, state_bytes: int) -> None:
        """One forward pass is finished."""

    def waited(self, what: str, seconds: float) -> None:
        """Hear that the model stood still."""

    def part_done(self, manifest: Mapping[str, object]) -> None:
        """One part is committed."""
