"""No attack: all readers do their work on the store that the others spoil, in the memory that they are given."""

from pathlib import Path

from tests.attacks.harness import Refusals, withstand


def test_a_sound_store_is_refused_by_nobody(store: Path, tmp_path: Path) -> None:
    withstand(store, Refusals(None, None, None, None, None), tmp_path / "results")
