"""What a reader asks for by name, checked against what a store keeps of each tensor: layers, roles and queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import UsageError
from engine.store.layout import TENSOR_ARRAYS
from engine.vocabulary import ROLE_CODES, ROLES

__all__ = ["kept_roles", "layer_indices", "layer_places", "lens_layers", "query_code", "role_codes", "state_layers"]


def state_layers(capture: Mapping[str, Any]) -> list[int]:
    """Layer numbers of hidden states, from ``capture`` of ``store.json``."""
    chosen = capture.get("residual_layers")
    return list(capture["layers"] if chosen is None else chosen)


def lens_layers(capture: Mapping[str, Any]) -> list[int]:
    """Layer numbers of the lens, from ``capture`` of ``store.json``; empty without it."""
    if capture.get("lens_topk") is None:
        return []
    chosen = capture.get("lens_layers")
    return state_layers(capture) if chosen is None else list(chosen)


def kept_roles(capture: Mapping[str, Any], tensor: str) -> tuple[str, ...] | None:
    """Names of the roles of whose tokens a tensor is kept, from ``capture`` of ``store.json``; None means all."""
    chosen = capture.get("tensor_roles", {}).get(tensor, capture.get("roles"))
    return None if chosen is None else tuple(chosen)


def layer_indices(stored: Sequence[int], asked: int | Sequence[int] | None) -> tuple[int, ...]:
    """Find layers along the leading axis.

    Parameters
    ----------
    stored
        Layer numbers of the store, ascending.
    asked
        One number, or several in any order; None means all.

    Raises
    ------
    UsageError
        None is asked for, or one that is not stored.
    """
    if asked is None:
        return tuple(range(len(stored)))
    numbers = [asked] if isinstance(asked, int | np.integer) else list(asked)
    if not numbers:
        raise UsageError(f"no layer is named: stored are {_list(stored)}")
    places = {int(number): place for place, number in enumerate(stored)}
    for number in numbers:
        if number not in places:
            raise UsageError(f"layer {number} is not stored: stored are {_list(stored)}")
    return tuple(places[int(number)] for number in numbers)


def layer_places(
    capture: Mapping[str, Any], arrays: Sequence[str], asked: int | Sequence[int] | None
) -> tuple[int, ...]:
    """Find layers on the token axis, which has those of hidden states, or without such those of the lens.

    Parameters
    ----------
    capture
        Of ``store.json``.
    arrays
        Names without the group. Of the lens, without hidden states, only its own layers count.
    asked
        One number, or several in any order; None means all.

    Raises
    ------
    UsageError
        As of :func:`layer_indices`.
    """
    lens, states = lens_layers(capture), state_layers(capture)
    of_lens = "hidden_states" not in arrays and any(f"token/{name}" in TENSOR_ARRAYS["lens"] for name in arrays)
    kept = lens if of_lens else states
    axis = states if "residual" in capture.get("tensors", ()) else kept
    return tuple(axis.index(kept[index]) for index in layer_indices(kept, asked))


def role_codes(stored: Sequence[str] | None, asked: str | Sequence[str] | None) -> tuple[int, ...] | None:
    """Find the codes of roles.

    Parameters
    ----------
    stored
        Roles whose tokens the store keeps; None means all.
    asked
        One name or several; None means all.

    Raises
    ------
    UsageError
        None is named, or one that is unknown or not kept.
    """
    if asked is None:
        return None
    known = tuple(ROLES if stored is None else stored)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    if not names:
        raise UsageError(f"no role is named: stored are {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UsageError(f"tokens of role {name!r} are not stored: stored are {', '.join(known)}")
    return tuple(ROLE_CODES[name] for name in names)


def query_code(stored: Sequence[str], asked: str) -> int:
    """Find the code of a query among the names that a store keeps, in their order.

    Raises
    ------
    UsageError
        When it is not stored.
    """
    if asked not in stored:
        raise UsageError(f"attention of query {asked!r} is not stored: stored are {', '.join(stored) or 'none'}")
    return list(stored).index(asked)


def _list(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    whole = len(numbers) > 2 and len(numbers) == last - first + 1
    return f"{first} to {last}" if whole else ", ".join(map(str, numbers))
