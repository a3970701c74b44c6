"""strata's analyses: everything after the store. They read stores and never run a model.

`analyses.plugins` says how other packages add theirs, and what they may rely on.
"""

from analyses.registry import ALL, ANALYSES, Analysis, Option, options_of, run

__all__ = ["ALL", "ANALYSES", "Analysis", "Option", "options_of", "run"]
