"""Stored vocabulary pieces against fresh passes: noise may swap near pieces, and nothing else may differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engine.audit.lens import FreshPieces, compare_ids, searched_ranks
from engine.audit.stored import StoredSample
from engine.audit.verdict import find_worst
from tests.engine.audit.conftest import ExtractOnce

LENS = ("--capture", "lens", "--lens-topk", "4")
IDS, LOGITS = "token/lens_token_id", "token/lens_logit"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_a_store_of_pieces_is_what_the_model_gives(extract: ExtractOnce, family: str, dtype: str) -> None:
    audited = extract("--capture", "residual,lens", family=family, dtype=dtype).audit()
    assert audited.exit_code == 0, audited.text
    assert [audited.line(path).split()[1] for path in (IDS, LOGITS)] == ["ok", "ok"]


@pytest.mark.parametrize("topk", [1, 200])
def test_few_and_many_pieces_pass(extract: ExtractOnce, topk: int) -> None:
    audited = extract("--capture", "lens", "--lens-topk", str(topk), dtype="bfloat16").audit()
    assert audited.exit_code == 0, audited.text


def test_pieces_of_fewer_layers_and_roles_pass(extract: ExtractOnce, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[lens]\nlayers = '1:3'\nroles = 'image'\n")
    store = extract("--capture", "residual,lens", "--config", str(config))
    audited = store.audit()
    assert audited.exit_code == 0, audited.text
    spoilt = store.copy(tmp_path / "store")

    def invent(ids: np.ndarray) -> np.ndarray:
        assert (ids[0] == -1).all()
        ids[0, :, 0] = 300
        return ids

    spoilt.change(IDS, invent)
    audited = spoilt.audit("--samples", 50)
    assert audited.exit_code == 1
    assert "WRONG" in audited.line(IDS)
    assert "layer 0" in audited.line(IDS)


def spoil_id(values: np.ndarray, rank: int) -> np.ndarray:
    """Put another piece, that is not among the row's own, at one rank of every token of layer 2."""
    for row in values[2]:
        row[rank] = next(token_id for token_id in range(300, 400) if token_id not in row)
    return values


@pytest.mark.parametrize(
    ("path", "change", "place"),
    [
        (IDS, lambda ids: spoil_id(ids, 0), "layer 2, position"),
        (IDS, lambda ids: spoil_id(ids, 3), "rank 3"),
        (IDS, lambda ids: ids[:, :, ::-1], "layer"),
        (IDS, lambda ids: np.where(np.arange(4) == 1, -1, ids), "rank 1"),
        (LOGITS, lambda logits: logits * np.float32(1.01), "layer"),
        (LOGITS, lambda logits: np.where(np.arange(4) == 2, np.nan, logits).astype(np.float32), "rank 2"),
    ],
)
def test_planted_pieces_are_found(
    extract: ExtractOnce, tmp_path: Path, path: str, change: Callable[[np.ndarray], np.ndarray], place: str
) -> None:
    spoilt = extract(*LENS).copy(tmp_path / "store")
    spoilt.change(path, change)
    audited = spoilt.audit("--samples", 50)
    assert audited.exit_code == 1
    assert "WRONG" in audited.line(path)
    assert place in audited.line(path)
    other = IDS if path == LOGITS else LOGITS
    assert " ok " in audited.line(other)


class _Held:
    """A sample that holds some ids."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def slab(self, _path: str, index: int) -> np.ndarray:
        return self._ids[index]


def pieces(ids: list[Any], logits: list[Any]) -> FreshPieces:
    """Pieces of one layer."""
    return FreshPieces(np.array([ids], np.int32), np.array([logits], np.float32))


def test_near_pieces_may_change_places_as_far_as_noise_moves_logits() -> None:
    held = cast("StoredSample", _Held(np.array([[[7, 5], [5, 7]]], np.int32)))
    fresh = pieces([[5, 7, 9, 2]] * 2, [[8.0, 7.9, 6.0, 1.0]] * 2)
    for noise, passes in ((0.04, True), (0.03, False)):
        other = pieces([[7, 5, 9, 2]] * 2, [[7.9 + noise, 8.0 + noise, 6.0, 1.0]] * 2)
        found = compare_ids(held, fresh, [other])
        assert found.difference[0, 1] == 0
        worst = find_worst([found], 1e-6)
        assert worst is not None
        assert (worst.passed, worst.index) == (passes, (0, 0))


def test_an_id_that_no_fresh_pass_has_in_sight_is_wrong_whatever_the_noise() -> None:
    held = cast("StoredSample", _Held(np.array([[[5, 3], [5, 9]]], np.int32)))
    fresh = pieces([[5, 7, 9, 2]] * 2, [[8.0, 7.9, 7.8, 7.7]] * 2)
    found = compare_ids(held, fresh, [pieces([[5, 7, 9, 2]] * 2, [[4.0, 4.0, 4.0, 4.0]] * 2)])
    assert found.difference[0].tolist() == [np.inf, pytest.approx(0.1 / np.hypot(8.0, 7.9), rel=1e-4)]
    assert searched_ranks(2) > 4
