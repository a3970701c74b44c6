"""Which positions' attention is kept, by name: pure, from the roles of a sample's tokens.

``last_text`` is the last position that is no image token, ``last_image`` the last image token, and ``ROLE:INDEX`` the
token with that index among the sample's tokens of that role, counted from its end where negative.
"""

import re
from collections.abc import Sequence

import numpy as np

from engine.errors import UsageError
from engine.vocabulary import ROLE_CODES, ROLES

__all__ = ["DEFAULT_QUERIES", "check_query_names", "query_positions"]

DEFAULT_QUERIES = ("last_text", "last_image")

_BY_INDEX = re.compile(rf"(?P<role>{'|'.join(ROLES)}):(?P<index>0|-?[1-9][0-9]{{0,5}})")


def check_query_names(names: Sequence[str]) -> None:
    """Check that every name says a position, and that none stands twice.

    Raises
    ------
    UsageError
        Naming the first that does not.
    """
    if not names:
        raise UsageError("no query is named: write for example last_text,last_image, or leave the option out.")
    for name in names:
        if name not in DEFAULT_QUERIES and _BY_INDEX.fullmatch(name) is None:
            raise UsageError(
                f"query {name!r} is unknown: write {', '.join(DEFAULT_QUERIES)} or ROLE:INDEX, for example "
                f"instruction:0 or template:-1; roles are {', '.join(ROLES)}."
            )
        if names.count(name) > 1:
            raise UsageError(f"query {name!r} stands {names.count(name)} times: name each query once.")


def query_positions(role: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Find the queries of one sample.

    Parameters
    ----------
    role
        (token,) role codes of the sample's own sequence.
    names
        Queries, checked by :func:`check_query_names`.

    Returns
    -------
    ndarray
        (query,) int32 positions in that sequence; −1 where the sample has no such token.
    """
    return np.array([_position(role, name) for name in names], dtype=np.int32)


def _position(role: np.ndarray, name: str) -> int:
    is_image = role == ROLE_CODES["image"]
    if name in DEFAULT_QUERIES:
        candidates, index = np.flatnonzero(is_image if name == "last_image" else ~is_image), -1
    else:
        match = _BY_INDEX.fullmatch(name)
        assert match is not None, "names are checked before a model is loaded"
        candidates, index = np.flatnonzero(role == ROLE_CODES[match["role"]]), int(match["index"])
    return int(candidates[index]) if -len(candidates) <= index < len(candidates) else -1
