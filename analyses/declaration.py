"""How an analysis says what it is: its name, its help, where it runs and which options it takes.

Declarations are data. The command line and the help text are made from them before the analysis itself is loaded.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["Analysis", "Option"]


@dataclass(frozen=True)
class Option:
    """One option of an analysis.

    Attributes
    ----------
    name
        As a Python keyword; ``--text-roles`` on the command line.
    type
        ``str``, ``int``, ``float``, ``bool`` (a flag), or ``tuple`` (names separated by commas, a tuple of str in
        Python).
    default
        Of that type.
    help
        One line.
    choices
        Allowed values, where they are few.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes
    ----------
    name
        What the user types, and what its results are called.
    help
        One line.
    module
        Where its ``run(stores, results_folder, resources, **options)`` is.
    options
    reads
        Arrays of parts (``token/hidden_states``) or of the model (``model/unembedding``), one of which it needs in
        every store; where it needs several together, their names with a blank between. Where a store has none of them,
        ``all`` leaves the analysis out and says so. Empty where that is not for `all` to decide.
    """

    name: str
    help: str
    module: str
    options: tuple[Option, ...] = ()
    reads: tuple[str, ...] = ()
