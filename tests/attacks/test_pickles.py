"""Pickles that run a program when they are loaded, under every name that a careless reader might load.

Nobody loads them: strays are named by ``verify``; what a record lists is hashed and otherwise ignored.
"""

import os
import pickle
from pathlib import Path

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import reseal

NAMES = (".zmetadata", "token/.zattrs", "token/hidden_states/.zarray", "token/role/c/1", "token/objects/c/0")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.proof),)


def plant(store: Path, proof: Path) -> None:
    for name in NAMES:
        path = store / f"{PART}.zarr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Payload(proof)))


def test_strays(store: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    plant(store, proof)
    said = "is listed by no manifest"
    withstand(store, Refusals(None, said, said, None, None), tmp_path / "results")
    assert not proof.exists()


def test_listed(store: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    plant(store, proof)
    reseal(store)
    withstand(store, Refusals(None, None, None, None, None), tmp_path / "results")
    assert not proof.exists()
    pickle.loads((store / f"{PART}.zarr/.zmetadata").read_bytes())
    assert proof.exists(), "the attack itself works"
