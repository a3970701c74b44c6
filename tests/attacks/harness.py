"""Runs every reader of strata against a store that was made to do harm, in bounded memory."""

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from engine.cli import main
from engine.errors import StrataError
from engine.store import open_store, verify
from tests.bench.resident import reset_peak, resident

__all__ = ["PART", "Refusals", "withstand"]

PART = "parts/00000000"

_ADDRESS_BYTES = 2 * 2**30  # an address space that no bomb fits into, and every thread's stack does
_RESIDENT_BYTES = 300 * 2**20


class Refusals(NamedTuple):
    """What each reader must say, as a pattern; None where the attack cannot reach it and it does its work.

    Attributes
    ----------
    opened, inspected, analysed
        Of ``open_store``, ``strata inspect`` and ``strata analyze contextualization --source hidden_states``.
    verified, deep
        Of a problem that ``verify`` and ``verify --deep`` find, or of the error where they cannot even begin.
    """

    opened: str | None
    verified: str | None
    deep: str | None
    inspected: str | None
    analysed: str | None

    @classmethod
    def everywhere(cls, pattern: str) -> "Refusals":
        """Say the same to everyone."""
        return cls(*[pattern] * 5)


def withstand(store: Path, refusals: Refusals, results: Path) -> None:
    """Let every reader loose on a store; each must refuse as it should, or work, and none may take much memory."""
    with _bounded_memory():
        _expect("open_store", refusals.opened, _error_of(open_store, store))
        _expect("verify", refusals.verified, _findings(store))
        _expect("verify --deep", refusals.deep, _findings(store, deep=True))
        _expect("inspect", refusals.inspected, _command("inspect", store))
        arguments = ("contextualization", store, "--source", "hidden_states", "--out", results, "--workers", 1)
        _expect("analyze", refusals.analysed, _command("analyze", *arguments))


def _expect(reader: str, pattern: str | None, said: str | None) -> None:
    if pattern is None:
        assert said is None, f"{reader} said {said}"
    else:
        assert said is not None, f"{reader} refused nothing"
        assert re.search(pattern, said, re.DOTALL), f"{reader} said {said}"


def _error_of(function: Callable[..., object], *arguments: object) -> str | None:
    try:
        function(*arguments)
    except StrataError as error:
        return str(error)
    return None


def _findings(store: Path, **options: Any) -> str | None:
    try:
        found = verify(store, **options)
    except StrataError as error:
        return str(error)
    return "\n".join(f"{file}: {message}" for file, message in found.problems) or None


def _command(*arguments: object) -> str | None:
    """What a command says on failure; a traceback is none of strata's."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exit_code == 0:
        return None
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Make allocations fail that are too large, and fail where all together were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    reset_peak()
    before = resident("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + _ADDRESS_BYTES, hard))
    try:
        yield
    except MemoryError:
        pytest.fail("a reader asked for gigabytes")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert resident("VmHWM") - before < _RESIDENT_BYTES
