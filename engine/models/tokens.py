"""Where every token of a sample stands and what it is: ids, roles, patches.

Tokens are the processor's for the filled template of one sample. Roles come from character offsets, so the tokenizer is
asked a second time, for the text with its image placeholders written out, and must give the same ids. Image tokens that
a processor puts in front of the text by itself stand for no character.
"""

from dataclasses import dataclass

import numpy as np

from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.vocabulary import special_token_ids
from engine.vocabulary import ROLE_CODES

__all__ = ["TokenLayout", "common_prefix", "lay_out_tokens", "patch_coordinates", "token_roles"]


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one sample, in order.

    Attributes
    ----------
    token_id, role, grid, patch_row, patch_col
        (token,) int32; −1 in the last three where a token is no image patch.
    """

    token_id: np.ndarray
    role: np.ndarray
    grid: np.ndarray
    patch_row: np.ndarray
    patch_col: np.ndarray

    def __len__(self) -> int:
        return len(self.token_id)


def token_roles(
    token_id: np.ndarray,
    offsets: np.ndarray,
    *,
    image_token_id: int,
    special_ids: frozenset[int],
    prompt_span: tuple[int, int],
) -> np.ndarray:
    """Role of every token.

    Parameters
    ----------
    token_id
        (token,) integer ids.
    offsets
        (token, 2) characters [start, stop) of each token in the text.
    image_token_id, special_ids
        The image placeholder's id; the tokenizer's special ids.
    prompt_span
        Characters [start, stop) of the instruction in the same text.

    Returns
    -------
    ndarray
        (token,) int32 role codes: ``special`` wherever such an id stands, ``image``, ``instruction`` where the
        token's characters overlap the prompt's, else ``preamble`` before the image and ``template`` after it.
    """
    is_image = token_id == image_token_id
    first_image = int(np.argmax(is_image)) if is_image.any() else len(token_id)
    before_image = np.arange(len(token_id)) < first_image
    start, stop = prompt_span
    overlaps = np.maximum(offsets[:, 0], start) < np.minimum(offsets[:, 1], stop)
    role = np.where(before_image, ROLE_CODES["preamble"], ROLE_CODES["template"])
    role[overlaps] = ROLE_CODES["instruction"]
    role[np.isin(token_id, list(special_ids - {image_token_id}))] = ROLE_CODES["special"]
    role[is_image] = ROLE_CODES["image"]
    return role.astype(np.int32)


def patch_coordinates(
    is_image: np.ndarray, rows: int, cols: int, *, class_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid, row and column of the image tokens of one grid.

    Parameters
    ----------
    is_image
        (token,) bool.
    rows, cols
        Size of the grid; its patches follow in row-major order.
    class_tokens
        Leading image tokens that are no patches (a vision tower's CLS where it is kept).

    Returns
    -------
    grid, patch_row, patch_col : ndarray
        (token,) int32 each; −1 where a token is no patch.
    """
    order = np.cumsum(is_image) - 1 - class_tokens
    is_patch = is_image & (order >= 0)
    grid = np.where(is_patch, 0, -1).astype(np.int32)
    patch_row = np.where(is_patch, order // cols, -1).astype(np.int32)
    patch_col = np.where(is_patch, order % cols, -1).astype(np.int32)
    return grid, patch_row, patch_col


def lay_out_tokens(
    checkpoint: Checkpoint,
    prompt: str,
    token_id: np.ndarray,
    *,
    grid_shape: tuple[int, int] | None,
    class_tokens: int,
) -> TokenLayout:
    """Roles and patches of the tokens that a processor made of one sample.

    Parameters
    ----------
    checkpoint
        Whose tokenizer and template they are.
    prompt
        The instruction alone.
    token_id
        (token,) ids from the processor, image placeholders expanded.
    grid_shape, class_tokens
        Rows and columns of image patches (None where image tokens are no patches), and image tokens before them that
        are no patches.

    Raises
    ------
    StrataError
        Where the ids are not the tokenizer's for the expanded text, or BOS does not stand there exactly once.
    """
    tokenizer, family = checkpoint.processor.tokenizer, checkpoint.family
    is_image = token_id == checkpoint.image_token_id
    copies = int(is_image.sum())
    text, prompt_start = family.fill(prompt, checkpoint.image_token)
    before = text[:prompt_start].replace(checkpoint.image_token, checkpoint.image_token * copies)
    encoded = tokenizer(before + text[prompt_start:], return_offsets_mapping=True)
    in_front = 0 if family.image_in_text else copies
    own_ids = [checkpoint.image_token_id] * in_front + encoded["input_ids"]
    if own_ids != token_id.tolist():
        raise StrataError(
            "the processor's tokens are not its tokenizer's for the same text, so roles cannot be told; "
            f"processor: {len(token_id)} tokens, tokenizer: {len(own_ids)}. Check the tokenizer's files."
        )
    bos = tokenizer.bos_token_id
    if bos is not None and int((token_id == bos).sum()) != 1:
        raise StrataError(
            f"BOS (id {bos}) stands {int((token_id == bos).sum())} times in a sample; it must stand exactly once: "
            "check add_bos_token in tokenizer_config.json, and that the prompt has no BOS of its own."
        )
    role = token_roles(
        token_id,
        np.asarray([(0, 0)] * in_front + encoded["offset_mapping"]).reshape(-1, 2),
        image_token_id=checkpoint.image_token_id,
        special_ids=special_token_ids(tokenizer),
        prompt_span=(len(before), len(before) + len(prompt)),
    )
    token_id = token_id.astype(np.int32)
    if grid_shape is None:
        return TokenLayout(token_id, role, *(np.full_like(token_id, -1),) * 3)
    return TokenLayout(token_id, role, *patch_coordinates(is_image, *grid_shape, class_tokens=class_tokens))


def common_prefix(layouts: list[TokenLayout]) -> int:
    """Count the leading tokens that all samples of one image share, in id and in role.

    A single sample shares nothing: 0.
    """
    if len(layouts) < 2:
        return 0
    shortest = min(map(len, layouts))
    first = layouts[0]
    same = np.ones(shortest, dtype=bool)
    for other in layouts[1:]:
        same &= (first.token_id[:shortest] == other.token_id[:shortest]) & (
            first.role[:shortest] == other.role[:shortest]
        )
    return shortest if same.all() else int(np.argmin(same))
