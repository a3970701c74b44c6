"""The mean cosine of tokens that have nothing to do with each other: the anisotropy baseline of a layer.

States of one layer share directions, so any two tokens have a cosine above 0. Ethayarajh (2019, arXiv 1909.00512)
subtracts the mean cosine of randomly paired tokens of different contexts. Here nothing is drawn: with μ the mean of a
sample's unit vectors, the expectation over all pairs of samples of different images is

    mean over (s, t), image(s) ≠ image(t), of μ_A(s) · μ_B(t)

and for text with text also prompt(s) ≠ prompt(t), because a prompt's tokens are the same in every image. It is exact
from sums: all pairs, less those of one image, less those of one prompt, plus those of one image and one prompt. An
image with all its prompts lies in one part, so a part contributes numbers for its images and one sum of vectors per
prompt; contributions of parts add up. Every sample weighs the same; one whose set is empty is in no pair of that set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from analyses.part_task import PAIRS, sets_of

__all__ = ["PairSums", "PairSumsOfPart", "add_pair_sums", "empty_pair_sums", "mean_of_unrelated", "pair_sums_bytes"]

_TEXT = "text-text"


class PairSums(NamedTuple):
    """What samples contribute to the baseline; every field adds up over parts.

    A point is a layer, or the last one after the final norm.

    Attributes
    ----------
    image : array (point, dim), float64
        Sum of μ_image over samples.
    text : array (prompt, point, dim), float64
        Sum of μ_text over the samples of each prompt.
    samples : array (1 + prompt,), int64
        Samples in ``image``, then in each row of ``text``.
    same_image : array (point, pair), float64
        Σ μ_A(s)·μ_B(t) over (s, t) of one image, a sample with itself included.
    same_sample : array (point), float64
        Σ ‖μ_text(s)‖²: pairs of one image and one prompt.
    same_image_pairs : array (pair), int64
        Number of pairs in ``same_image``; those in ``same_sample`` are the samples with text.
    """

    image: NDArray[np.float64]
    text: NDArray[np.float64]
    samples: NDArray[np.int64]
    same_image: NDArray[np.float64]
    same_sample: NDArray[np.float64]
    same_image_pairs: NDArray[np.int64]


def empty_pair_sums(prompts: int, points: int, dim: int) -> PairSums:
    """Return the sums of no sample."""
    return PairSums(
        image=np.zeros((points, dim)),
        text=np.zeros((prompts, points, dim)),
        samples=np.zeros(1 + prompts, np.int64),
        same_image=np.zeros((points, len(PAIRS))),
        same_sample=np.zeros(points),
        same_image_pairs=np.zeros(len(PAIRS), np.int64),
    )


def pair_sums_bytes(prompts: int, points: int, dim: int) -> int:
    """Bytes of the sums."""
    return 8 * (1 + prompts) * points * (dim + 1) + 8 * points * (len(PAIRS) + 1)


def add_pair_sums(total: PairSums, more: PairSums) -> None:
    """Add ``more`` to ``total`` in place."""
    for field, values in zip(total, more, strict=True):
        np.add(field, values, out=field)


class PairSumsOfPart:
    """Makes the sums of one part, point after point.

    Parameters
    ----------
    samples : DataFrame (sample)
        With the columns image_id and prompt_id.
    prompts : sequence of str
        All prompt ids of the store.
    counts : array (set, sample), int64
        Tokens of each sample in each set.
    points, dim : int

    Attributes
    ----------
    sums : PairSums
    """

    def __init__(
        self, samples: pd.DataFrame, prompts: Sequence[str], counts: NDArray[np.int64], points: int, dim: int
    ) -> None:
        self._counts = counts
        self._images = _members(pd.factorize(samples["image_id"])[0])
        self._prompts = _members(pd.Index(prompts).get_indexer(samples["prompt_id"]), len(prompts))
        there = (counts > 0).astype(np.int64)
        per_image = there @ self._images.T  # (set, image)
        self.sums = empty_pair_sums(len(prompts), points, dim)._replace(
            samples=np.concatenate([there[:1].sum(axis=1), self._prompts @ there[1]]).astype(np.int64),
            same_image_pairs=np.array([per_image[a] @ per_image[b] for a, b in map(sets_of, PAIRS)], np.int64),
        )

    def add(self, point: int, unit_sums: NDArray[np.float64]) -> None:
        """Add sums of unit vectors (set, sample, dim) of one point."""
        counts = self._counts[:, :, np.newaxis]
        means = np.divide(unit_sums, counts, out=np.zeros_like(unit_sums), where=counts > 0)
        self.sums.image[point] = means[0].sum(axis=0)
        self.sums.text[:, point] = self._prompts @ means[1]
        self.sums.same_sample[point] = np.vecdot(means[1], means[1]).sum()
        images = [self._images @ own for own in means]
        self.sums.same_image[point] = [np.vecdot(images[a], images[b]).sum() for a, b in map(sets_of, PAIRS)]


def _members(codes: NDArray[np.intp], groups: int | None = None) -> csr_array:
    """Membership (group, sample) of samples in groups, one each."""
    shape = (int(codes.max(initial=-1)) + 1 if groups is None else groups, len(codes))
    return csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=shape)


def mean_of_unrelated(sums: PairSums) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean cosine of unrelated tokens.

    Parameters
    ----------
    sums : PairSums
        Of all parts of a store.

    Returns
    -------
    baseline : array (point, pair), float64
        NaN where no pair of samples qualifies: a single image; for text with text, a single prompt.
    pairs : array (pair), int64
        How many ordered pairs of samples it is the mean of.
    """
    totals = np.stack([sums.image, sums.text.sum(axis=0)])
    counts = np.array([sums.samples[0], sums.samples[1:].sum()])
    baseline = np.full((len(sums.image), len(PAIRS)), np.nan)
    pairs = np.zeros(len(PAIRS), np.int64)
    for p, pair in enumerate(PAIRS):
        a, b = sets_of(pair)
        dots = np.vecdot(totals[a], totals[b]) - sums.same_image[:, p]
        pairs[p] = counts[a] * counts[b] - sums.same_image_pairs[p]
        if pair == _TEXT:
            dots += sums.same_sample - np.vecdot(sums.text, sums.text).sum(axis=0)
            pairs[p] += counts[b] - np.square(sums.samples[1:]).sum()
        if pairs[p] > 0:
            baseline[:, p] = dots / pairs[p]
    return baseline, pairs
