"""Planning LogitLens of a store: what pieces come from, which layers, one task per part, and what its memory allows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from analyses.lens_layers import choose_layers
from analyses.lens_memory import model_bytes, part_lens_bytes, results_bytes
from analyses.lens_model import allowed_ids
from analyses.lens_states import STATES_PATH
from analyses.lens_task import ARRAYS, LensSource, LensTask
from analyses.memory import check_memory, fitting_workers
from analyses.resources import Resources
from engine.errors import StrataError, UnfitStoreError, UsageError
from engine.store import Store
from engine.vocabulary import ROLES

__all__ = ["SOURCES", "LensChoice", "plan_tasks", "plan_workers", "why_decoded"]

SOURCES = ("auto", "lens", "hidden_states")
"""What pieces may be asked to come from; auto is the stored pieces, where they are there and enough, and hidden states
do not reach further."""


class LensChoice(NamedTuple):
    """What the user chose.

    Attributes
    ----------
    topk : int
        Pieces per image token and layer.
    layers : sequence of str
        Layer numbers and ranges; empty for all that are stored.
    source : str
        Of `SOURCES`.
    trajectory : bool
    """

    topk: int
    layers: Sequence[str]
    source: str
    trajectory: bool


def plan_tasks(store: Store, choice: LensChoice) -> list[LensTask]:
    """Make one task per part.

    Where the vocabulary has fewer pieces than asked for, all of them are ranked.

    Raises
    ------
    UsageError
        Less than one piece is asked for, more than are stored, or what is asked for was not captured.
    StrataError
        The store has no sample, or its tables do not fit each other.
    """
    if choice.topk < 1:
        raise UsageError(f"--topk {choice.topk}: at least one piece per token is needed")
    if not any(part.manifest["samples"] for part in store.parts):
        raise StrataError(f"{store.url} holds no committed sample: finish the extraction by running it again")
    source = _choose_source(store, choice)
    _check_roles(store, ARRAYS[source][0])
    if source == "hidden_states" or choice.trajectory:
        _check_model(store, choice)
    layers = choose_layers(_kept_layers(store, ARRAYS[source][0]), choice.layers, "--layers")
    topk = choice.topk if source == "lens" else min(choice.topk, int(allowed_ids(store).sum()))
    return [
        LensTask(
            part.url,
            part.name,
            str(store.record["sha256"]),
            source,
            topk,
            layers,
            store.block_count,
            choice.trajectory,
            _kept_roles(store, STATES_PATH) == ROLES,
        )
        for part in store.parts
    ]


def _choose_source(store: Store, choice: LensChoice) -> LensSource:
    if choice.source not in SOURCES:
        raise UsageError(f"--source {choice.source}: choose from {', '.join(SOURCES)}")
    ranks = _stored_ranks(store)
    if choice.source == "lens" or (
        choice.source == "auto" and ranks >= choice.topk and not _states_say_more(store, choice)
    ):
        if not ranks:
            raise UnfitStoreError(
                f"{store.url} holds no {ARRAYS['lens'][0]}: leave --source out, or extract another store with "
                f"--capture lens --lens-topk {choice.topk}"
            )
        if ranks < choice.topk:
            raise UnfitStoreError(
                f"{store.url} holds {ranks} pieces per token, --topk {choice.topk} are asked for: lower --topk to "
                f"{ranks}, or extract another store with --lens-topk {choice.topk}"
            )
        return "lens"
    if not _in_all_parts(store, ARRAYS["hidden_states"]):
        captured = ", ".join(store.record["capture"].get("tensors", ())) or "nothing that this strata knows"
        stored = (
            f"{ranks} pieces per token (leave --source out, --topk at most {ranks}), but no"
            if ranks
            else "neither pieces nor"
        )
        raise UnfitStoreError(
            f"{store.url} holds {stored} hidden states, it captured {captured}: extract another store with "
            f"--capture residual, or with --capture lens --lens-topk {choice.topk}"
        )
    return "hidden_states"


def _states_say_more(store: Store, choice: LensChoice) -> bool:
    """Whether image tokens have hidden states, which can be decoded, of layers asked for that stored pieces lack."""
    decodable = _in_all_parts(store, ARRAYS["hidden_states"]) and store.model.unembedding is not None
    if not decodable or "image" not in _kept_roles(store, STATES_PATH):
        return False
    path = ARRAYS["lens"][0]
    asked = choose_layers(_kept_layers(store, STATES_PATH), choice.layers, "--layers")
    return bool(set(asked) - set(_kept_layers(store, path))) or "image" not in _kept_roles(store, path)


def why_decoded(store: Store, choice: LensChoice) -> str | None:
    """Say why auto decodes hidden states of a store that holds pieces, and what would take those; None elsewhere."""
    path, ranks = ARRAYS["lens"][0], _stored_ranks(store)
    few = ranks < choice.topk
    if choice.source != "auto" or not ranks or not (few or _states_say_more(store, choice)):
        return None
    roles, held = _kept_roles(store, path), _kept_layers(store, path)
    asked = choose_layers(_kept_layers(store, STATES_PATH), choice.layers, "--layers")
    common = [str(layer) for layer in held if layer in asked]
    fewer = len(common) < len(asked)
    lacks = {
        f"{ranks} pieces per token where --topk {choice.topk} are asked for": few,
        f"layers {', '.join(map(str, held))} alone": fewer,
        f"tokens of {', '.join(roles)} alone": "image" not in roles,
    }
    remedy = [f"--topk {ranks}"] * few + [f"--layers {','.join(common)}"] * fewer
    takes = f"; {' '.join(remedy)} takes the stored ones" if common and "image" in roles else ""
    held_of = ", ".join(text for text, lacking in lacks.items() if lacking)
    return f"its stored pieces are too few ({held_of}), so pieces are decoded from hidden states{takes}"


def _check_roles(store: Store, path: str) -> None:
    roles = _kept_roles(store, path)
    if "image" not in roles:
        raise UnfitStoreError(
            f"{path} of {store.url} holds no image tokens, only tokens of {', '.join(roles)}: extract another store "
            "with image among its roles"
        )


def _kept_roles(store: Store, path: str) -> tuple[str, ...]:
    """Roles of the tokens that an array keeps."""
    axis = store.record["capture"].get("roles") or ROLES
    return tuple(_attributes(store, path).get("roles", axis))


def _kept_layers(store: Store, path: str) -> list[int]:
    """Layers that an array on the token axis keeps, ascending."""
    axis = store.parts[0].variable("token/layer").to_numpy().tolist()
    return list(_attributes(store, path).get("layers", axis))


def _attributes(store: Store, path: str) -> Mapping[str, Any]:
    arrays = store.parts[0].manifest["arrays"]
    return arrays[path]["attributes"] if path in arrays else {}


def _stored_ranks(store: Store) -> int:
    """Return how many pieces per token every part holds."""
    if not _in_all_parts(store, ARRAYS["lens"]):
        return 0
    return min(int(part.manifest["arrays"][path]["shape"][2]) for part in store.parts for path in ARRAYS["lens"])


def _in_all_parts(store: Store, paths: Sequence[str]) -> bool:
    return all(path in part.manifest["arrays"] for part in store.parts for path in paths)


def _check_model(store: Store, choice: LensChoice) -> None:
    """Refuse what logits cannot be computed from."""
    _check_roles(store, STATES_PATH)
    if not _in_all_parts(store, ARRAYS["hidden_states"]):
        raise UnfitStoreError(
            f"{store.url} holds no {STATES_PATH}, and --trajectory needs all logits: leave --trajectory out, or "
            "extract another store with --capture residual"
        )
    weights = store.model.unembedding
    if weights is None:
        ranks = _stored_ranks(store)
        stored = f"take its {ranks} stored pieces per token (--source lens --topk {ranks}), or " if ranks else ""
        raise UnfitStoreError(
            f"{store.url} holds no unembedding, it was extracted with --no-unembedding, and logits need it: {stored}"
            f"extract another store without --no-unembedding, or with --capture lens --lens-topk {choice.topk}"
        )
    pieces, dim = len(store.model.vocabulary), int(store.parts[0].manifest["arrays"][STATES_PATH]["shape"][2])
    if weights.shape != (pieces, dim):
        raise StrataError(
            f"{store.url} has an unembedding of {weights.shape[0]} rows of {weights.shape[1]} numbers, a vocabulary of "
            f"{pieces} pieces and states of {dim} numbers, which do not fit each other: `strata verify` says "
            "whether the store is damaged; else extract it again"
        )
    if not allowed_ids(store).any():
        raise StrataError(
            f"none of the {pieces} pieces of the vocabulary of {store.url} is a normal one, so nothing can be decoded: "
            "extract it again with the model's own tokenizer"
        )
    if choice.trajectory and store.block_count not in store.state_layers:
        raise UnfitStoreError(
            f"{store.url} does not hold layer {store.block_count}, the last, from which --trajectory measures: leave "
            "--trajectory out, or extract another store with that layer"
        )


def plan_workers(store: Store, tasks: Sequence[LensTask], resources: Resources, bootstraps: int) -> Resources:
    """Refuse where the heaviest part does not fit; take fewer workers where that is allowed and helps.

    The unembedding is in memory once per process: on a cluster, whose ``memory`` is of each thread, with every worker.
    """
    heaviest = max(range(len(tasks)), key=lambda number: store.parts[number].tokens)
    per_worker = part_lens_bytes(store, store.parts[heaviest], tasks[heaviest])
    results = results_bytes(store, tasks[0], bootstraps)
    once = model_bytes(store) if tasks[0].needs_unembedding else 0
    if resources.scheduler:
        per_worker, once = per_worker + once, 0
    at_once = 1 if resources.scheduler else min(resources.workers, len(tasks))
    if resources.fewer_workers:
        at_once = max(1, min(at_once, fitting_workers(per_worker, results + once, resources.memory)))
    check_memory(per_worker, results, at_once, resources.memory, shared={"the unembedding": once})
    return resources._replace(workers=at_once)
