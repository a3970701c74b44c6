"""Planning contextualization of a store: what is read, one task per part, and how many workers its memory allows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from analyses.anisotropy import pair_sums_bytes
from analyses.curves import BOOTSTRAPS
from analyses.final_norm import read_final_norm
from analyses.memory import check_memory, fitting_workers, means_bytes, part_bytes, result_bytes, statistics_bytes
from analyses.part_task import ADJUSTMENTS, Adjustment, PartTask, Source
from analyses.resources import Resources
from engine.errors import StrataError, UnfitStoreError, UsageError
from engine.store import Part, Store
from engine.vocabulary import ROLES

__all__ = [
    "SOURCES",
    "TEXT_ROLES",
    "check_adjustment",
    "check_kept",
    "check_roles",
    "choose_source",
    "plan_means",
    "plan_tasks",
    "plan_workers",
]

TEXT_ROLES = ("instruction", "template")
"""Text by default: prompt text that can see the image."""

SOURCES = ("auto", "pooled", "hidden_states")
_ARRAYS: dict[Source, str] = {"pooled": "sample/unit_mean", "hidden_states": "token/hidden_states"}
_POOLED_MEAN = "sample/mean"


def check_roles(text_roles: Sequence[str]) -> tuple[str, ...]:
    """Return the roles of text in the vocabulary's order, or raise UsageError."""
    known = [role for role in ROLES if role != "image"]
    for role in text_roles:
        if role not in known:
            raise UsageError(f"--text-roles: {role!r} is no role of text; choose from {', '.join(known)}")
    if not text_roles:
        raise UsageError(f"--text-roles is empty: choose from {', '.join(known)}")
    return tuple(role for role in known if role in text_roles)


def check_adjustment(adjustment: str) -> Adjustment:
    """Return the adjustment, or raise UsageError."""
    for known in ADJUSTMENTS:
        if adjustment == known:
            return known
    raise UsageError(f"--adjustment {adjustment}: expected one of {', '.join(ADJUSTMENTS)}")


def choose_source(store: Store, source: str, adjustment: Adjustment = "none") -> Source:
    """Decide what is read: pooled states before hidden states, where both are there and none is asked for.

    Mean-centred cosines are of each token's own state less the mean, which pooled states cannot give.

    Raises
    ------
    UsageError
        The source is unknown, was not captured, or cannot give the adjustment.
    StrataError
        The store holds no committed sample.
    """
    if source not in SOURCES:
        raise UsageError(f"--source {source}: expected one of {', '.join(SOURCES)}")
    if not any(part.manifest["samples"] for part in store.parts):
        raise StrataError(f"{store.url} holds no committed sample: finish the extraction by running it again")
    there = [name for name, path in _ARRAYS.items() if _in_all_parts(store, path)]
    if adjustment == "mean-centred":
        return _need_states(store, source, there)
    wanted = [name for name in there if source in ("auto", name)]
    if not wanted:
        captured = ", ".join(there) or "neither pooled nor hidden states"
        tensors = {"pooled": "pooled", "hidden_states": "residual"}.get(source, "residual,pooled")
        raise UsageError(
            f"{store.url} holds {captured}, --source asks for {source}: use --source auto, or extract another store "
            f"with --capture {tensors}"
        )
    return wanted[0]


def check_kept(store: Store, text_roles: Sequence[str]) -> None:
    """Check that hidden states of the image and of all roles of text are stored.

    Raises
    ------
    UnfitStoreError
        Naming those that are not.
    """
    kept = store.kept_roles("residual")
    missing = [role for role in ("image", *text_roles) if role not in kept]
    if missing:
        raise UnfitStoreError(
            f"{store.url} keeps hidden states of {', '.join(kept)} tokens alone, not of {', '.join(missing)}, and no "
            "pooled states are read instead: choose --text-roles among those that are kept, or extract another store "
            "with --capture pooled or with hidden states of these roles"
        )


def _need_states(store: Store, source: str, there: Sequence[Source]) -> Source:
    reason = "--adjustment mean-centred subtracts the mean from each token's state before its cosine is taken"
    if source == "pooled":
        raise UsageError(f"{reason}, which pooled states cannot give: use --source auto, or --adjustment anisotropy")
    if "hidden_states" not in there:
        raise UsageError(
            f"{reason}, and {store.url} holds no hidden states: use --adjustment anisotropy, or extract another store "
            "with --capture residual,pooled"
        )
    return "hidden_states"


def _in_all_parts(store: Store, path: str) -> bool:
    """Whether an array is there, for all layers of the store: hidden states may be kept of fewer than means."""
    return all(_layer_count(part, path) == len(store.layers) for part in store.parts)


def _layer_count(part: Part, path: str) -> int:
    return int(part.manifest["arrays"].get(path, {"shape": [0]})["shape"][0])


def plan_tasks(
    store: Store, source: Source, roles: tuple[str, ...], self_pairs: bool, adjustment: Adjustment
) -> list[PartTask]:
    """Make one task per part; with mean-centring, its origin is still missing."""
    normed = int(store.layers[-1]) == store.block_count
    norm = read_final_norm(store) if normed and source == "hidden_states" else None
    prompts = tuple(dict.fromkeys(store.samples["prompt_id"])) if adjustment == "anisotropy" else ()
    return [PartTask(part.url, part.name, source, roles, self_pairs, normed, norm, prompts) for part in store.parts]


def plan_means(store: Store, tasks: Sequence[PartTask], source: str) -> list[PartTask]:
    """Make the tasks that find the mean state: from pooled means where they are stored and may be read."""
    pooled = source == "auto" and _in_all_parts(store, _POOLED_MEAN)
    return [replace(task, source="pooled" if pooled else "hidden_states", self_pairs=False) for task in tasks]


def plan_workers(store: Store, tasks: Sequence[PartTask], means: Sequence[PartTask], resources: Resources) -> Resources:
    """Refuse where the heaviest part does not fit; take fewer workers where that is allowed and helps.

    Parameters
    ----------
    store : Store
    tasks, means : sequences of PartTask
        Of the cosines, and of the mean states (may be empty).
    resources : Resources
    """
    per_worker = max(_heaviest(store, tasks, part_bytes), _heaviest(store, means, means_bytes))
    task, layers = tasks[0], len(store.layers)
    samples = sum(part.manifest["samples"] for part in store.parts)
    results = result_bytes(store.parts, layers, task.self_pairs) + statistics_bytes(samples, layers, BOOTSTRAPS)
    dim = store.parts[0].manifest["arrays"][task.array]["shape"][-1]
    results += 2 * pair_sums_bytes(len(task.prompts), layers + 1, dim) * bool(task.prompts)  # of all parts, and of one
    results += 3 * 2 * (layers + 1) * dim * 8 * bool(means)  # mean states of both sets, of all parts, one, and joined
    at_once = 1 if resources.scheduler else min(resources.workers, len(tasks))
    if resources.fewer_workers:
        at_once = max(1, min(at_once, fitting_workers(per_worker, results, resources.memory)))
    check_memory(per_worker, results, at_once, resources.memory)
    return resources._replace(workers=at_once)


def _heaviest(store: Store, tasks: Sequence[PartTask], needed: Callable[[Part, PartTask], int]) -> int:
    """Bytes of the part that needs most; which that is follows from its manifest, so that one part alone is opened."""
    if not tasks:
        return 0
    heaviest = max(range(len(tasks)), key=lambda number: _weight(store.parts[number], tasks[number].source))
    return needed(store.parts[heaviest], tasks[heaviest])


def _weight(part: Part, source: Source) -> tuple[int, int]:
    """Rank parts by memory: pooled states follow samples alone, however many tokens a part has."""
    samples = int(part.manifest["samples"])
    return (samples, 0) if source == "pooled" else (part.tokens, samples)
