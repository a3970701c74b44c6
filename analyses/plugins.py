"""Analyses of other packages, by the entry point group ``strata.analyses``.

A package declares in its ``pyproject.toml``::

    [project.entry-points."strata.analyses"]
    my-analysis = "my_package.declaration:ANALYSIS"

where ``ANALYSIS`` is an `analyses.Analysis` of the same name. ``strata analyze my-analysis STORE --out RESULTS`` and
`analyses.run` then run it like one of ours: ``ANALYSIS.module`` is imported and its
``run(stores, results_folder, resources, **options)`` called, which returns the paths that it wrote. ``ANALYSIS`` should
lie in a module of its own that imports little, because ``strata analyze --help`` loads it; what computes is imported
only when it runs. ``all`` runs our own analyses only.

What such a package may rely on:

- `analyses.Analysis`, `analyses.Option`: the declaration;
- `engine.store.open_store` and the `engine.store.Store` that it gives: reading, ``map_samples``, ``tokens``;
- `analyses.resources.Resources`: what ``run`` is given: workers, memory, a cluster's address, whom to tell;
- `analyses.execution.run_tasks`: one function over many parts, on those resources;
- `analyses.identity.identify`: names of stores for the first columns of a table (store, model, source, then
  prompt_kind and prompt_id, so that tables of several stores stack);
- `analyses.results.write_table`, ``write_dataset``, ``write_figure``, ``open_dataset``: files that appear whole or not;
- `engine.errors.StrataError`, ``UsageError``: raised, they end the command with their message, exit code 1 or 2;
- `engine.vocabulary.ROLES`, ``ROLE_CODES``.

A package that is broken breaks nothing but itself. Our own names cannot be taken, nor one name by two packages.
"""

from collections.abc import Callable, Collection
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from analyses.declaration import Analysis, Option
from engine.errors import UsageError

__all__ = ["GROUP", "load_plugin", "load_run", "plugin_names", "survey"]

GROUP = "strata.analyses"

_TYPES = (str, int, float, bool, tuple)
_COMMON = (
    "name",
    "stores",
    "out",
    "results_folder",
    "resources",
    "workers",
    "memory",
    "scheduler",
    "progress",
    "notify",
    "help",
)
"""What every analysis is given already."""

_OPTION_RULES: tuple[tuple[Callable[[Option], bool], str], ...] = (
    (
        lambda option: str(option.name).isidentifier() and str(option.name).islower(),
        "that is no lower-case Python name",
    ),
    (lambda option: option.name not in _COMMON, "whose name every analysis uses already"),
    (lambda option: option.type in _TYPES, f"of another type than {', '.join(kind.__name__ for kind in _TYPES)}"),
    (lambda option: isinstance(option.default, option.type), "whose default is of another type"),
    (lambda option: not option.choices or option.default in option.choices, "whose default is none of its choices"),
    (lambda option: isinstance(option.help, str) and option.help != "", "without help"),
)
"""What must hold of an option, in this order, and what is said where it does not."""


def plugin_names() -> tuple[str, ...]:
    """Names that installed packages declare, in order; nothing of them is loaded."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load_plugin(name: str, own: Collection[str]) -> Analysis:
    """Load one declaration.

    Parameters
    ----------
    name
        One of `plugin_names`.
    own
        Names that no package may take.

    Raises
    ------
    UsageError
        It cannot be used; the message names the distribution and the reason, in one line.
    """
    entries = list(entry_points(group=GROUP, name=name))
    packages = " and ".join(_distribution(entry) for entry in entries)
    if name in own:
        raise UsageError(f"analysis {name!r} of {packages} is not used: strata's own names cannot be replaced")
    if len(entries) > 1:
        raise UsageError(f"analysis {name!r} is declared by {packages}: uninstall all but one")
    (entry,) = entries
    try:
        analysis = entry.load()
    except (Exception, SystemExit) as error:  # whatever another package's import does
        raise UsageError(_unusable(entry, f"{entry.value} cannot be imported ({_one_line(error)})")) from error
    problem = _problem(name, analysis)
    if problem:
        raise UsageError(_unusable(entry, f"{entry.value} {problem}"))
    assert isinstance(analysis, Analysis)
    return analysis


def load_run(analysis: Analysis) -> Callable[..., list[Path]]:
    """Import what computes.

    Raises
    ------
    UsageError
        It cannot be imported, or has no function ``run``.
    """
    (entry,) = entry_points(group=GROUP, name=analysis.name)
    try:
        function: Callable[..., list[Path]] = import_module(analysis.module).run
    except (Exception, SystemExit) as error:  # whatever another package's import does
        raise UsageError(_unusable(entry, f"{analysis.module}.run cannot be imported ({_one_line(error)})")) from error
    return function


def survey(own: Collection[str]) -> tuple[list[Analysis], list[str]]:
    """Load every declaration.

    Returns
    -------
    usable : list of Analysis
    problems : list of str
        One line for each that is not.
    """
    usable, problems = [], []
    for name in plugin_names():
        try:
            usable.append(load_plugin(name, own))
        except UsageError as error:
            problems.append(str(error))
    return usable, problems


def _problem(name: str, analysis: Any) -> str | None:
    """Say what makes a declaration unusable."""
    if not isinstance(analysis, Analysis):
        return f"is no analyses.Analysis but {type(analysis).__name__}"
    if analysis.name != name:
        return f"calls itself {analysis.name!r}: entry point and Analysis.name must be the same"
    if not all(isinstance(text, str) and text for text in (analysis.help, analysis.module)):
        return "needs texts for help and module"
    if not isinstance(analysis.options, tuple):
        return "needs a tuple of options"
    for option in analysis.options:
        problem = _option_problem(option)
        if problem:
            return problem
    names = [option.name for option in analysis.options]
    return "declares an option twice" if len(set(names)) < len(names) else None


def _option_problem(option: Any) -> str | None:
    if not isinstance(option, Option):
        return f"has an option that is no analyses.Option but {type(option).__name__}"
    broken = (text for holds, text in _OPTION_RULES if not holds(option))
    return next((f"has an option {option.name!r} {text}" for text in broken), None)


def _unusable(entry: EntryPoint, reason: str) -> str:
    return f"analysis {entry.name!r} of {_distribution(entry)} cannot be used: {reason}"


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
