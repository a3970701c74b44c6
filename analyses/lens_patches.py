"""What the patches of one image say, layer by layer: the best piece of each, ready to be drawn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.kept_parts import KeptParts
from analyses.lens_layers import choose_layers, spread_layers
from analyses.lens_scores import reference_words
from analyses.lens_task import LensTask
from analyses.lens_tokens import find_tokens
from analyses.lens_words import clean, piece_texts
from analyses.logit_lens import stored_pieces
from analyses.part_keys import whole_image_grid
from analyses.part_task import open_array
from analyses.picture import crop_to_grid, read_picture
from analyses.stop_words import STOP_WORDS
from engine.store import Part, Store

__all__ = ["ImagePieces", "image_pieces", "read_pieces"]

_MOST_LAYERS, _MOST_WIDE_LAYERS, _WIDE = 4, 3, 12
_PER_ROW = 8  # tokens without places, such as those of a Q-Former


class ImagePieces(NamedTuple):
    """The best pieces of one image at some layers.

    Attributes
    ----------
    image_id : str
    caption : str
        The first one; empty without captions.
    layers : tuple of int
    shape : (int, int)
        Rows and columns.
    placed : bool
        Whether rows and columns are those of the image's patches; else tokens follow each other row by row.
    row, col : arrays (token), int64
    text : array (layer, token) of str
        The piece as it is read; a hyphen in front where it goes on with a word.
    logit : array (layer, token), float32
    matches : array (layer, token), bool
        Whether one of its words is a word of the captions.
    picture : array (pixel row, pixel column, 3), uint8, or None
        What the patches cover; None where the store keeps no thumbnails, or patches have no places.
    """

    image_id: str
    caption: str
    layers: tuple[int, ...]
    shape: tuple[int, int]
    placed: bool
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    text: NDArray[np.object_]
    logit: NDArray[np.float32]
    matches: NDArray[np.bool_]
    picture: NDArray[np.uint8] | None


def image_pieces(
    store: Store, tasks: Sequence[LensTask], kept: KeptParts, image_id: str, figure_layers: Sequence[str]
) -> ImagePieces | None:
    """Read what the patches of an image say; only after `logit_lens.analyze_store`.

    Parameters
    ----------
    store : Store
    tasks : sequence of LensTask
        Of its parts.
    kept : KeptParts
    image_id : str
    figure_layers : sequence of str
        Layers to show; empty for some that are spread over all.

    Returns
    -------
    ImagePieces or None
        Of the image's first sample. None where the store does not hold the image, or has only pieces of it (tiles).
    """
    holding = [
        (part, task)
        for part, task in zip(store.parts, tasks, strict=True)
        if (part.samples["image_id"] == image_id).any()
    ]
    if not holding:
        return None
    part, task = holding[0]
    row = int(np.flatnonzero(part.samples["image_id"] == image_id)[0])
    places = _places(part, row)
    if places is None:
        return None
    ((_, pieces),) = stored_pieces([part], [task], kept)
    layers = _layers(task, places.shape[1], figure_layers)
    at = [task.layers.index(layer) for layer in layers]
    sample = part.samples.iloc[row]
    captions = [] if sample["references"] is None else list(sample["references"])
    text, matches = read_pieces(store.model.vocabulary, pieces.token_id[at][:, places.chosen, 0], captions)
    return ImagePieces(
        image_id=image_id,
        caption="".join(captions[:1]),
        layers=layers,
        shape=places.shape,
        placed=places.grid is not None,
        row=places.row,
        col=places.col,
        text=text,
        logit=pieces.logit[at][:, places.chosen, 0],
        matches=matches,
        picture=None if places.grid is None else crop_to_grid(read_picture(store, sample), places.grid),
    )


def _layers(task: LensTask, columns: int, asked: Sequence[str]) -> tuple[int, ...]:
    if asked:
        return choose_layers(task.layers, asked, "--figure-layers")
    return spread_layers(task.layers, _MOST_LAYERS if columns <= _WIDE else _MOST_WIDE_LAYERS)


class _Places(NamedTuple):
    shape: tuple[int, int]
    grid: Mapping[str, Any] | None
    chosen: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]


def _places(part: Part, sample: int) -> _Places | None:
    """Where the image tokens of a sample are drawn, and which numbers they have among the part's."""
    tokens = find_tokens(part.samples, np.asarray(open_array(part, "token/role")[...]))
    own = tokens.of_sample[sample]
    grids = part.samples["grids"].iloc[sample]
    if not len(own):
        return None
    if len(grids) == 0:
        row, col = np.divmod(np.arange(len(own)), _PER_ROW)
        return _Places((int(row[-1]) + 1, min(_PER_ROW, len(own))), None, own, row, col)
    number = whole_image_grid(grids)
    if number is None:
        return None
    grid, row, col = (
        np.asarray(open_array(part, f"token/{name}")[...], np.int64)[tokens.place[own]]
        for name in ("grid", "patch_row", "patch_col")
    )
    on = grid == number
    return _Places((int(grids[number]["rows"]), int(grids[number]["cols"])), grids[number], own[on], row[on], col[on])


def read_pieces(
    vocabulary: pd.DataFrame, token_id: NDArray[np.int32], captions: Sequence[str]
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Return the text of each piece as a figure shows it, and whether one of its words is one of the captions'.

    Parameters
    ----------
    vocabulary : DataFrame (id)
    token_id : array (…), int32
    captions : sequence of str

    Returns
    -------
    array (…) of str
        Without the mark of a beginning word; a hyphen in front where the piece goes on with one.
    array (…), bool
    """
    texts = vocabulary["piece"].to_numpy(object).copy()
    normal = np.flatnonzero(vocabulary["kind"] == "normal")
    texts[normal] = piece_texts(list(texts[normal]))
    starts = vocabulary["word_start"].to_numpy(bool)
    references = reference_words(captions) or frozenset()

    def shown(number: int) -> str:
        text = texts[number].strip() or "␣"
        return text if starts[number] or not text[0].isalnum() else f"-{text}"

    numbers, places = np.unique(token_id, return_inverse=True)
    words = np.array([shown(number) for number in numbers.tolist()], object)
    matches = np.array([not references.isdisjoint(clean(texts[number], STOP_WORDS)) for number in numbers.tolist()])
    return words[places], matches[places]
