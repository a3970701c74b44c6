"""LogitLens: the best pieces of one sample at one layer of LLaVA-1.5-7B against the full product, and their memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from analyses.lens_products import fast_int8_products
from analyses.lens_top import LensTop, top_pieces
from analyses.lens_unembedding import Unembedding
from tests.bench.lens_data import gaussian_states, realistic_states, unembedding_weights
from tests.bench.rows import NO_GOAL, Row, at_least, at_most
from tests.bench.stores import write_store
from tests.bench.timing import Times, take_turns

__all__ = ["run"]

THREADS = 2
K = 10
GIB, MIB = 2**30, 2**20
PARTS, TIMES_AS_MANY = 4, 8


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure states with outlier dimensions, states without structure, NumPy alone, and memory."""
    tokens, dim, vocab = (64, 512, 4000) if quick else (576, 4096, 32000)
    torch.set_num_threads(THREADS)
    yield from _speed_rows(tokens, dim, vocab, rounds=2 if quick else 7)
    yield from _memory_rows(tokens, dim, vocab)
    yield _command_row(folder, quick)


def _speed_rows(tokens: int, dim: int, vocab: int, rounds: int) -> Iterator[Row]:
    stored = unembedding_weights(vocab, dim)
    weights, allowed = stored.astype(np.float32), np.ones(vocab, np.bool_)
    screened = Unembedding.prepare(stored, allowed)
    plain = Unembedding.prepare(weights, allowed, products=None)
    usual = torch.from_numpy(weights)
    goal = NO_GOAL if fast_int8_products() is None else at_least(2.5)
    what = f"top-{K} of {tokens} × {dim} × {vocab}"
    for kind, normed in {
        "states with outlier dimensions": realistic_states(tokens, dim, seed=2),
        "Gaussian states": gaussian_states(tokens, dim, seed=2),
    }.items():
        given = torch.from_numpy(normed.astype(np.float16))
        states = given.float().numpy()
        times = take_turns(
            {
                "screened": lambda states=states: top_pieces(states, screened, K),
                "usual": lambda given=given: torch.topk(given.float() @ usual.T, K),
            },
            rounds=rounds,
        )
        # By themselves, because threads of NumPy's products spin for a while in the way of whoever comes next.
        alone = take_turns(
            {
                "plain": lambda states=states: top_pieces(states, plain, K),
                "product": lambda states=states: states @ weights.T,
            },
            rounds=rounds,
        )
        found = top_pieces(states, screened, K)
        _check_same_pieces(found, top_pieces(states, plain, K), states, weights)
        yield Row(
            f"{what}, {kind}",
            times.ratio("usual", "screened"),
            f"rate of torch.topk(h.float() @ W.T), {times.best('usual')}; here {times.best('screened')}, "
            f"{found.certified.mean():.1%} of tokens certified, identical ids",
            goal if kind.startswith("states") else NO_GOAL,
        )
        yield _plain_row(what, kind, alone)


def _plain_row(what: str, kind: str, times: Times) -> Row:
    return Row(
        f"{what} in NumPy alone, {kind}",
        times.ratio("product", "plain"),
        f"rate of the float32 product alone, {times.best('product')}; here {times.best('plain')}",
        at_least(0.9),
    )


def _check_same_pieces(
    found: LensTop, plain: LensTop, states: NDArray[np.float32], weights: NDArray[np.float32]
) -> None:
    """A ratio means something only if all ways find the same; float64 tells what the same is."""
    np.testing.assert_array_equal(found.token_id, plain.token_id)
    np.testing.assert_array_equal(found.logit, plain.logit)
    wide = torch.from_numpy(states).double()
    for tokens in torch.arange(len(states)).split(128):
        logits = torch.cat([wide[tokens] @ rows.double().T for rows in torch.from_numpy(weights).split(4000)], dim=1)
        np.testing.assert_array_equal(torch.topk(logits, K).indices.numpy(), found.token_id[tokens])


def _memory_rows(tokens: int, dim: int, vocab: int) -> Iterator[Row]:
    one, many = (_child(tokens, dim, vocab, samples) for samples in (1, TIMES_AS_MANY))
    peak = max(one["peak"], many["peak"])
    yield Row(
        "peak memory of LogitLens",
        peak / (1.5 * GIB),
        f"1.5 GiB; the whole process with its float16 unembedding ({vocab} × {dim}) took {peak / MIB:.0f} MiB",
        at_most(1.0),
    )
    yield Row(
        "peak memory of LogitLens against its prediction",
        max(one["rise"], many["rise"]) / one["predicted"],
        f"what it predicts for the unembedding and a sample of {tokens} tokens, {one['predicted'] / MIB:.0f} MiB",
        at_most(1.0),
    )
    yield Row(
        f"peak memory of LogitLens over {TIMES_AS_MANY} times as many tokens",
        many["peak"] / one["peak"],
        f"peak of the whole process over {tokens} tokens, {one['peak'] / MIB:.0f} MiB",
        at_most(1.1),
    )


def _command_row(folder: Path, quick: bool) -> Row:
    """Compare the command over a store with itself over one of as many times as many parts, files and figures included.

    Pieces of all layers and the words of all tokens are tables that grow with the store: they must not stay in memory.
    """
    shape = {"samples_per_part": 2, "dtype": "float16"}
    shape |= (
        {"layers": 2, "image_tokens": 64, "dim": 64, "vocab": 300}
        if quick
        else {"layers": 9, "image_tokens": 576, "dim": 1024, "vocab": 4000}
    )
    stores = {
        times: write_store(folder / f"parts-{times}", parts=PARTS * times, **shape) for times in (1, TIMES_AS_MANY)
    }
    peaks = {times: _command_peak(store, folder / f"results-{times}") for times, store in stores.items()}
    table = (folder / f"results-{TIMES_AS_MANY}" / "logit-lens-words.parquet").stat().st_size
    states = sum(file.stat().st_size for file in stores[TIMES_AS_MANY].rglob("*") if file.is_file())
    return Row(
        f"peak memory of strata analyze logit-lens over a store {TIMES_AS_MANY} times as large",
        peaks[TIMES_AS_MANY] / peaks[1],
        f"peak of the whole process over {PARTS} parts, {peaks[1] / MIB:.0f} MiB; over {PARTS * TIMES_AS_MANY} parts "
        f"({states / MIB:.0f} MiB on disk, its table of words {table / MIB:.0f} MiB) {peaks[TIMES_AS_MANY] / MIB:.0f} "
        "MiB",
        at_most(1.1),
    )


def _command_peak(store: Path, results: Path) -> int:
    command = ["analyze", "logit-lens", store, "--out", results, "--workers", THREADS, "--bootstraps", 50]
    arguments = [sys.executable, "-m", "tests.bench.memory_of_command", *map(str, command)]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _child(*arguments: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.bench.memory_of_lens", *map(str, arguments)]
    measured: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured
