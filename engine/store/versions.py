"""Versions of the format that records state, and which of them this version reads.

Every minor version only adds, so that all stores up to this major version are read; a greater one may mean anything.
"""

import re

from engine.errors import StrataError
from engine.store.layout import FORMAT_VERSION

__all__ = ["is_version", "refuse_newer"]

_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


def is_version(value: object) -> bool:
    """Whether a JSON value states a version: ``MAJOR.MINOR``."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def refuse_newer(value: object, origin: str) -> None:
    """Refuse what a later format may mean otherwise; what is no version at all is not looked at here.

    Parameters
    ----------
    value
        The ``format_version`` of a record.
    origin
        What has it, for the message.

    Raises
    ------
    StrataError
        When its major version is greater than this one's.
    """
    if is_version(value) and _major(str(value)) > _major(FORMAT_VERSION):
        raise StrataError(f"{origin} has format {value}, this strata reads up to {FORMAT_VERSION}: upgrade strata")


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])
