"""The errors strata raises on purpose.

Every message names the value, the rule it breaks and the next step. The command line prints it without a traceback
and exits with the class's ``exit_code``; everything else that is raised is a bug and keeps its traceback.
"""

__all__ = ["StrataError", "UnfitStoreError", "UsageError"]


class StrataError(Exception):
    """The work could not be done: unreadable input, damaged store, full disk."""

    exit_code = 1


class UsageError(StrataError):
    """The request itself is wrong: an unknown option value, a plan that does not fit the store."""

    exit_code = 2


class UnfitStoreError(UsageError):
    """A store does not hold what one analysis asks of it; others may do."""
