"""The collector rests meanwhile, and is as it was afterwards, whatever happens."""

import gc

import pytest

from engine.garbage import uncollected


@uncollected()
def work() -> None:
    assert not gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert not gc.isenabled(), "the outer one goes on"
    raise ValueError("of the work")


def test_it_goes_on_afterwards() -> None:
    with pytest.raises(ValueError, match="of the work"):
        work()
    assert gc.isenabled()


def test_who_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
