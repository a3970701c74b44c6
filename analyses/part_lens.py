"""LogitLens of one part: pieces of every image token and layer, and how well each sample's words match its captions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_model import LensModel, lens_model
from analyses.lens_scores import VARIANTS, Scores, reference_words, score_layers
from analyses.lens_states import named_states, normed_states
from analyses.lens_task import ARRAYS, LensTask
from analyses.lens_tokens import LensTokens, find_tokens
from analyses.lens_top import top_pieces
from analyses.lens_trajectory import trajectory
from analyses.part_task import open_array
from engine.errors import StrataError
from engine.store import Part, open_part, stream_chunks

__all__ = ["COUNTS", "UNKNOWN", "PartLens", "Pieces", "part_lens"]

COUNTS = ("decoded", "correct", "recalled")
"""What is counted of every sample, variant and layer; see `lens_scores.Scores`."""

UNKNOWN = -1
"""Count of a sample whose image has no captions."""


class Pieces(NamedTuple):
    """The best pieces of every image token of a part, logit descending.

    Attributes
    ----------
    token_id : array (layer, image token, rank), int32
    logit : array (layer, image token, rank), float32
    certified : array (layer), int64
        Tokens that the screen decided; 0 where pieces were read.
    """

    token_id: NDArray[np.int32]
    logit: NDArray[np.float32]
    certified: NDArray[np.int64]


class PartLens(NamedTuple):
    """LogitLens of one part.

    Attributes
    ----------
    pieces : Pieces
        Of stored image tokens, so once for all samples that share them.
    counts : array (count, variant, sample, layer), int32
        Counts are `COUNTS`, variants `lens_scores.VARIANTS`; `UNKNOWN` without captions.
    references : array (sample), int32
        Distinct words of the captions; `UNKNOWN` without captions.
    agreement : array (sample, layer), float32
        Share of the sample's image tokens whose best piece is that of the last layer L; NaN where that is not among the
        layers, or the sample has no image token.
    image_tokens : array (sample), int32
    trajectory : array (measure, what, sample, layer), float32
        Measures and whats are those of `lens_trajectory`; of length 0 where not asked for.
    """

    pieces: Pieces
    counts: NDArray[np.int32]
    references: NDArray[np.int32]
    agreement: NDArray[np.float32]
    image_tokens: NDArray[np.int32]
    trajectory: NDArray[np.float32]


def part_lens(task: LensTask) -> PartLens:
    """Compute one part.

    Raises
    ------
    StrataError
        A state is not finite, or pieces of an image token were not stored.
    """
    part = open_part(task.url, task.name)
    model = lens_model(task.url, task.model_sha256, unembedding=task.needs_unembedding)
    tokens = find_tokens(part.samples, np.asarray(open_array(part, "token/role")[...]))
    pieces = _FIND[task.source](part, task, tokens, model)
    counts, references = _score(part, tokens, pieces.token_id[:, :, 0], model)
    return PartLens(
        pieces,
        counts,
        references,
        _agreement(tokens, pieces.token_id[:, :, 0], task),
        np.array([len(own) for own in tokens.of_sample], np.int32),
        trajectory(part, task, tokens, model),
    )


def _no_pieces(task: LensTask, tokens: LensTokens) -> Pieces:
    shape = (len(task.layers), len(tokens.place), task.topk)
    return Pieces(np.full(shape, -1, np.int32), np.full(shape, np.nan, np.float32), np.zeros(shape[0], np.int64))


def _find_pieces(part: Part, task: LensTask, tokens: LensTokens, model: LensModel) -> Pieces:
    assert model.unembedding is not None
    pieces = _no_pieces(task, tokens)
    for block in normed_states(part, tokens.place, task.layers, model.norm):
        with named_states(part, tokens.place, block, task.layers):
            found = top_pieces(block.states, model.unembedding, task.topk)
        run = slice(block.start, block.stop)
        pieces.token_id[block.layer, run] = found.token_id
        pieces.logit[block.layer, run] = found.logit
        pieces.certified[block.layer] += int(found.certified.sum())
    return pieces


def _read_pieces(part: Part, task: LensTask, tokens: LensTokens, _model: LensModel) -> Pieces:
    pieces = _no_pieces(task, tokens)
    stored = np.asarray(open_array(part, "token/layer")[...]).tolist()
    wanted = {stored.index(layer): number for number, layer in enumerate(task.layers)}
    into: tuple[NDArray[Any], ...] = (pieces.token_id, pieces.logit)
    for path, values in zip(ARRAYS["lens"], into, strict=True):
        for chunk in stream_chunks(part, path):
            if chunk.first in wanted:
                first, stop = np.searchsorted(tokens.place, (chunk.start, chunk.stop))
                rows = tokens.place[first:stop] - chunk.start
                values[wanted[chunk.first], first:stop] = chunk.values[0][rows, : task.topk]
    if (pieces.token_id < 0).any():
        raise StrataError(
            f"{ARRAYS['lens'][0]} of part {part.name} of {part.url} lacks pieces of image tokens: take "
            "--source hidden_states where those are stored, or extract again with pieces of image tokens"
        )
    return pieces


_FIND: Mapping[str, Callable[[Part, LensTask, LensTokens, LensModel], Pieces]] = {
    "lens": _read_pieces,
    "hidden_states": _find_pieces,
}


def _score(
    part: Part, tokens: LensTokens, best: NDArray[np.int32], model: LensModel
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Count what each sample's best pieces (layer, image token) match; samples with equal tokens and captions once."""
    samples = len(tokens.of_sample)
    counts = np.full((len(COUNTS), len(VARIANTS), samples, len(best)), UNKNOWN, np.int32)
    references = np.full(samples, UNKNOWN, np.int32)
    known: dict[tuple[bytes, tuple[str, ...]], dict[str, Scores] | None] = {}
    for row, (own, captions) in enumerate(zip(tokens.of_sample, part.samples["references"], strict=True)):
        same = own.tobytes(), tuple(() if captions is None else captions)
        if same not in known:
            known[same] = score_layers(best[:, own], model.words, reference_words(same[1]))
        scores = known[same]
        if scores is None:
            continue
        references[row] = scores[VARIANTS[0]].references
        for number, variant in enumerate(VARIANTS):
            counts[:, number, row] = [getattr(scores[variant], name) for name in COUNTS]
    return counts, references


def _agreement(tokens: LensTokens, best: NDArray[np.int32], task: LensTask) -> NDArray[np.float32]:
    agreement = np.full((len(tokens.of_sample), len(best)), np.nan, np.float32)
    if task.layers[-1] != task.blocks:
        return agreement
    same = best == best[-1]
    for row, own in enumerate(tokens.of_sample):
        if len(own):
            agreement[row] = same[:, own].mean(axis=1)
    return agreement
