"""Which stored tokens LogitLens decodes, and whose they are.

A prefix that several samples of an image share is stored once, so its tokens are decoded once, and samples point at
them.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.vocabulary import ROLE_CODES

__all__ = ["LensTokens", "find_tokens", "first_owners"]


class LensTokens(NamedTuple):
    """The tokens of one part that are decoded.

    Attributes
    ----------
    place : array (image token), int64
        Where each stored image token stands on the part's token axis, ascending.
    of_sample : tuple of arrays (token), int64
        Per sample, the numbers of its image tokens in `place`, in the order of its sequence.
    last_text : array (sample), int64
        Place of its last token that is no image token; -1 where it has none.
    """

    place: NDArray[np.int64]
    of_sample: tuple[NDArray[np.int64], ...]
    last_text: NDArray[np.int64]


def find_tokens(samples: pd.DataFrame, roles: NDArray[np.integer]) -> LensTokens:
    """Find them.

    Parameters
    ----------
    samples : DataFrame (sample)
        With the column segments.
    roles : array (token) of int
        Role code of every stored token of the part.
    """
    image = roles == ROLE_CODES["image"]
    place = np.flatnonzero(image)
    of_sample, last_text = [], np.full(len(samples), -1)
    for row, segments in enumerate(samples["segments"]):
        runs = [np.arange(segment["start"], segment["stop"]) for segment in segments]
        tokens = np.concatenate([np.zeros(0, np.int64), *runs])
        of_sample.append(np.searchsorted(place, tokens[image[tokens]]))
        last_text[row] = max(tokens[~image[tokens]][-1:], default=-1)
    return LensTokens(place, tuple(of_sample), last_text)


def first_owners(tokens: LensTokens) -> NDArray[np.int64]:
    """Return the first sample (image token) that each image token belongs to."""
    owner = np.full(len(tokens.place), -1)
    for row in reversed(range(len(tokens.of_sample))):
        owner[tokens.of_sample[row]] = row
    return owner
