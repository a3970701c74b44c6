"""No attack: all readers do their work on the store that the others spoil, in the memory that they are given."""

from pathlib import Path

from tests.attacks.harness import Refusals, make_store, withstand


def test_a_sound_store_is_refused_by_nobody(tmp_path: Path) -> None:
    withstand(make_store(tmp_path), Refusals(None, None, None, None, None), tmp_path / "results")
