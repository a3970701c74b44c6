"""The analyses by name: what the command line offers and runs.

Adding an analysis is one module with a ``run`` function and one entry here. Options are data, so that the command line
and the help text are made from them; modules are loaded when they run, because a help text needs no SciPy. Analyses
that other packages declare (`analyses.plugins`) are looked up when a name is none of ours.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from analyses.declaration import Analysis, Option
from analyses.plugins import load_plugin, load_run, plugin_names
from analyses.resources import Notify, Progress, Resources
from engine.errors import UnfitStoreError, UsageError
from engine.store import Store, open_store

__all__ = ["ALL", "ANALYSES", "Analysis", "Option", "options_of", "run"]

ALL = "all"
"""The name that runs every analysis of `ANALYSES`, and none of other packages."""

_MOST_WORKERS = 8

_TEXT_ROLES = Option("text_roles", tuple, ("instruction", "template"), "roles of tokens that count as text")
_SOURCE = Option(
    "source",
    str,
    "auto",
    "what cosines are computed from; auto is pooled where stored",
    ("auto", "pooled", "hidden_states"),
)
_SELF_PAIRS = Option("self_pairs", bool, False, "add intra-modal rows in which each token is paired with itself too")
_ADJUSTMENT = Option(
    "adjustment",
    str,
    "none",
    "what is taken out of cosines: the mean cosine of unrelated tokens (anisotropy), or the layer's mean state",
    ("none", "anisotropy", "mean-centred"),
)
_BOOTSTRAPS = Option("bootstraps", int, 1000, "bootstrap samples of items, which are images or belong together")
_SEED = Option("seed", int, 0, "seed of the bootstrap, and of the halves of images that are compared")

_IMAGE = Option("image", str, "", "id of the image whose patches are drawn; the first one by default")

ANALYSES: Mapping[str, Analysis] = {
    analysis.name: analysis
    for analysis in (
        Analysis(
            "contextualization",
            "mean cosine similarity between and within image and text tokens, layer by layer",
            "analyses.run_contextualization",
            (_TEXT_ROLES, _SELF_PAIRS, _SOURCE, _ADJUSTMENT),
            ("sample/unit_mean", "token/hidden_states"),
        ),
        Analysis(
            "phases",
            "boundaries of the phases of inference, with intervals over items",
            "analyses.run_phases",
            (
                _TEXT_ROLES,
                _SOURCE,
                _ADJUSTMENT,
                Option("pattern", str, "four", "shape of the curve; auto chooses it", ("four", "three", "auto")),
                _BOOTSTRAPS,
                _SEED,
                Option("include_layer_0", bool, False, "fit layer 0 too, which no block has touched"),
            ),
            ("sample/unit_mean", "token/hidden_states"),
        ),
        Analysis(
            "norm-attention",
            "where queries look: attention weights and norms per role, block, position and patch",
            "analyses.run_norm_attention",
            (
                Option("without_sinks", bool, False, "leave out position 0 and BOS, and share among the other keys"),
                _IMAGE,
            ),
            ("key/attention", "key/attention_norm"),
        ),
        Analysis(
            "logit-lens",
            "what image tokens say in words at every layer, and how well that matches the captions",
            "analyses.run_logit_lens",
            (
                Option("topk", int, 5, "pieces kept of every image token and layer"),
                Option("layers", tuple, (), "layers to decode, such as 0,8,16:32; all that are stored by default"),
                Option(
                    "source",
                    str,
                    "auto",
                    "what pieces come from; auto is those that extraction stored, where there are enough",
                    ("auto", "lens", "hidden_states"),
                ),
                Option("trajectory", bool, False, "add entropy per layer, and divergence from the last layer"),
                Option(
                    "words",
                    str,
                    "all",
                    "rows of the large table of words: every piece, the best one of each token and layer, or no table",
                    ("all", "top1", "none"),
                ),
                _IMAGE,
                Option("figure_layers", tuple, (), "layers at which they are drawn; some over the depth by default"),
                _BOOTSTRAPS,
                _SEED,
            ),
            ("token/lens_token_id", "token/hidden_states model/unembedding"),
        ),
    )
}
"""Analyses in the order in which ``all`` runs them."""


def options_of(name: str) -> tuple[Option, ...]:
    """Return the options of an analysis, or of all of them together.

    Raises
    ------
    UsageError
        There is no such analysis.
    """
    options: dict[str, Option] = {}
    for option in (option for analysis in _chosen(name) for option in analysis.options):
        options[option.name] = _join(options[option.name], option) if option.name in options else option
    return tuple(options.values())


def _join(one: Option, other: Option) -> Option:
    """Make one option of two analyses' that have the same name: what either knows may be chosen."""
    if one == other:
        return one
    choices = tuple(dict.fromkeys((*one.choices, *other.choices)))
    return replace(one, choices=choices, help=f"{one.help}; {other.help}")


def run(
    name: str,
    stores: Sequence[str],
    results_folder: Path,
    *,
    workers: int | None = None,
    memory: int,
    scheduler: str | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
    **options: Any,
) -> list[Path]:
    """Run one analysis, or all.

    Parameters
    ----------
    name : str
        A name of `ANALYSES`, ``"all"`` for those, or one that another package declares.
    stores : sequence of str
        Paths or URLs; their results stack.
    results_folder : Path
    workers : int, optional
        Threads of this process. By default one per CPU that this process may use, at most 8, and fewer where ``memory``
        is too small for so many.
    memory : int
        Bytes that may be used.
    scheduler : str, optional
        Address of a Dask scheduler.
    progress : callable, optional
        Called with the number of finished parts and of all parts.
    notify : callable, optional
        Called with sentences that whoever reads the results should know, each once: a store that is not complete.
    **options
        Those of `options_of`; a missing one has its default. With ``all``, each analysis takes its own, and of a choice
        that only another one knows its default.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    StrataError
        A wrong request, a store that cannot be analysed, or a folder that cannot be written.
    """
    known = {option.name: option for option in options_of(name)}
    for option in options:
        if option not in known:
            raise UsageError(f"{name} has no option {option!r}; it has {', '.join(known)}")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least one is needed")
    _refuse_file(Path(results_folder))
    resources = Resources(
        workers or min(_MOST_WORKERS, _usable_cpus()), memory, scheduler, progress, _once(notify), workers is None
    )
    chosen = _readable(_chosen(name), stores, resources) if name == ALL else _chosen(name)
    written: list[Path] = []
    refusals: list[UnfitStoreError] = []
    for analysis in chosen:
        own = {option.name: _value(option, options, known[option.name]) for option in analysis.options}
        function = import_module(analysis.module).run if analysis.name in ANALYSES else load_run(analysis)
        try:
            written += function(stores, Path(results_folder), resources, **own)
        except UnfitStoreError as error:
            if name != ALL:
                raise
            refusals.append(error)
            resources.tell(f"{analysis.name} is left out: {error}")
    if refusals and not written:
        raise refusals[0]
    from analyses.results_folder import name_outdated  # noqa: PLC0415  (zarr, which a help text does without)

    for sentence in name_outdated(Path(results_folder), written):
        resources.tell(sentence)
    return list(dict.fromkeys(written))


def _value(option: Option, given: Mapping[str, Any], joined: Option) -> Any:
    """Return what an analysis gets: the default where what is given can only be meant for another that runs with it."""
    value = given.get(option.name, option.default)
    return option.default if value in joined.choices and value not in option.choices else value


def _readable(analyses: Sequence[Analysis], stores: Sequence[str], resources: Resources) -> list[Analysis]:
    """Leave out analyses of what a store does not hold, and say so; where that would be all, leave it to them."""
    held = {url: _arrays_of_parts(open_store(url)) for url in stores}
    lacking = {
        analysis.name: [
            url
            for url, parts in held.items()
            if not all(any(arrays.issuperset(choice.split()) for choice in analysis.reads) for arrays in parts)
        ]
        for analysis in analyses
        if analysis.reads
    }
    readable = [analysis for analysis in analyses if not lacking.get(analysis.name)]
    if not readable:
        return list(analyses)
    for analysis in analyses:
        if analysis not in readable:
            urls = ", ".join(lacking[analysis.name])
            arrays = " and no ".join(choice.replace(" ", " with ") for choice in analysis.reads)
            resources.tell(f"{analysis.name} is left out: {urls} holds no {arrays}")
    return readable


def _arrays_of_parts(store: Store) -> list[set[str]]:
    """Arrays of every part, the model's among them."""
    model = {"model/unembedding"} if store.model.unembedding is not None else set()
    return [model | part.manifest["arrays"].keys() for part in store.parts]


def _refuse_file(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--out {folder}: {there} is a file, and results need a folder; choose another --out")


def _usable_cpus() -> int:
    # Only Linux knows which CPUs a job was given; elsewhere it is all of them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _once(notify: Notify | None) -> Notify | None:
    """Pass each sentence on once: with ``all``, several analyses find the same."""
    if notify is None:
        return None
    told: set[str] = set()

    def tell(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            notify(sentence)

    return tell


def _chosen(name: str) -> list[Analysis]:
    if name == ALL:
        return list(ANALYSES.values())
    if name in ANALYSES:
        return [ANALYSES[name]]
    others = [other for other in plugin_names() if other not in (*ANALYSES, ALL)]
    if name not in others:
        raise UsageError(f"there is no analysis {name!r}; choose from {', '.join([*ANALYSES, ALL, *others])}")
    return [load_plugin(name, {*ANALYSES, ALL})]
