"""A store against a dictionary, whatever happens to it: extract, die, fail, resume, damage, verify, repair.

The dictionary says which parts are committed and which files are damaged; a sample's states are those of an extraction
that nothing happened to. Extraction is the real one, with the model held in memory.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.capture import Extraction, extract_parts
from engine.cli import extract as extract_command
from engine.cli.main import main
from engine.errors import StrataError
from engine.store import committed_parts, create_store, is_same_store, open_store, remove_leftovers, repair, verify
from tests.bench.random_llava import Silence
from tests.engine.cli.conftest import write_images
from tests.faults import WRITING, Death, Faults, faulty_files
from tests.tiny_llava import TinyShape, save_checkpoint

PARTS = 3
COMMON = ("plan.parquet", "vocab.parquet", "model.zarr")
MOMENTS = st.one_of(st.none(), st.integers(0, 450))  # a whole extraction makes about 420 steps
STRAYS = ("model.zarr/stray", "parts/stray", *(f"parts/{number:08d}.zarr/token/stray" for number in range(PARTS)))


class Case(NamedTuple):
    """A run without its store: what it needs, and the states (layer, token, dim) of each sample that it extracts."""

    extraction: Extraction
    tables: Mapping[str, Any]
    states: Mapping[str, np.ndarray]
    parts: Mapping[str, int]


@cache
def case() -> Case:
    """Extract once on the command line, and keep what it was made from."""
    folder = Path(tempfile.mkdtemp(prefix="strata-stateful-"))
    atexit.register(shutil.rmtree, folder)
    model = save_checkpoint(folder / "model", TinyShape(blocks=1, dim=16, heads=2, key_value_heads=1))
    captions = write_images(folder / "images", PARTS)
    kept: dict[str, Any] = {}

    def keep(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **options: Any) -> Any:
            kept[name] = (first, options)
            return original(first, *others, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("extract_parts", "create_store"):
            patch.setattr(extract_command, name, keep(name, getattr(extract_command, name)))
        named = ["--model", model, "--source", "coco", "--annotations", captions, "--images", folder / "images"]
        options = ["--samples-per-part", 1, "--capture", "residual", "--device", "cpu", "--out", folder / "store"]
        result = CliRunner().invoke(main, list(map(str, ["extract", *named, *options])))
    assert result.exit_code == 0, result.output
    store = open_store(folder / "store")
    states = {name: store.sample(name).hidden_states.values for name in store.samples["sample_id"]}
    parts = {sample: part.number for part in store.parts for sample in part.samples["sample_id"]}
    return Case(kept["extract_parts"][0], kept["create_store"][1], states, parts)


def extract(path: Path) -> None:
    """Do what the command does once its model is loaded."""
    extraction, tables, *_ = case()
    plan = extraction.plan
    is_same_store(path, plan.record)
    remove_leftovers(path)
    done = committed_parts(path, plan.sha256)
    create_store(path, **tables)
    todo = [part for part in plan.parts if part.number not in done]
    extract_parts(replace(extraction, store=path), todo, Silence())


def part_of(file: str) -> int | None:
    return int(file[6:14]) if file[6:14].isdecimal() else None


class StoreMachine(RuleBasedStateMachine):
    """Commands and accidents in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="strata-stateful-"))
        self.path = self.folder / "store"
        self.committed: set[int] = set()
        self.damaged: dict[str, str] = {}  # file: flipped, or deleted
        self.strays: set[str] = set()

    @property
    def created(self) -> bool:
        return (self.path / "store.json").exists()

    @property
    def unreadable(self) -> set[int]:
        """Committed parts whose manifest is damaged."""
        return {number for number in self.committed if f"parts/{number:08d}.json" in self.damaged}

    @property
    def hurt(self) -> set[int]:
        """Committed parts of which anything is damaged."""
        return {number for number in map(part_of, self.damaged) if number is not None}

    def intact(self) -> list[str]:
        """Files that can be damaged: those of committed parts and the common ones, once."""
        files = [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]
        mine = [file for file in files if file.startswith(COMMON) or part_of(file) in self.committed]
        return sorted(set(mine) - self.damaged.keys() - self.strays)

    def manifests(self) -> set[int]:
        return {number for number in range(PARTS) if (self.path / f"parts/{number:08d}.json").exists()}

    @initialize(at=MOMENTS)
    def begin(self, at: int | None) -> None:
        self.extract("death", at)

    @rule(kind=st.sampled_from(["death", "error", "full"]), at=MOMENTS)
    def extract(self, kind: Any, at: int | None) -> None:
        faults = Faults(at, kind)
        raised = None
        with faulty_files(faults):
            try:
                extract(self.path)
            except (StrataError, Death) as error:
                raised = error
        if self.unreadable:
            assert "strata repair" in str(raised)
            assert not faults.steps
            return
        assert (raised is not None) == faults.struck
        missing = sorted(set(range(PARTS)) - self.committed)
        done = self.manifests()
        assert done >= self.committed
        assert sorted(done - self.committed) == missing[: len(done - self.committed)], "one after the other"
        self.committed = done
        self.restore()
        if not faults.struck:
            assert self.committed == set(range(PARTS))
            assert "deleted" not in {how for file, how in self.damaged.items() if file.startswith(COMMON)}
        self.strays = {file for file in self.strays if (self.path / file).exists()}

    def restore(self) -> None:
        """Forget what was deleted of the common files and is there again."""
        back = {file for file, how in self.damaged.items() if how == "deleted" and (self.path / file).exists()}
        self.damaged = {file: how for file, how in self.damaged.items() if file not in back}

    @precondition(lambda self: self.created)
    @rule(at=st.one_of(st.none(), st.integers(0, 10)))
    def repair(self, at: int | None) -> None:
        faults = Faults(at, "death", counted=(*WRITING, "remove"))
        hurt = self.hurt
        with faulty_files(faults), suppress(Death):
            repair(self.path)
        left = self.manifests()
        assert self.committed - hurt <= left <= self.committed, "what is sound stays"
        if not faults.struck:
            assert left == self.committed - hurt
            assert not [file for file in self.strays if (self.path / file).exists()]
        self.forget(self.committed - left)
        assert faults.struck or not self.leftovers()
        self.strays = {file for file in self.strays if (self.path / file).exists()}
        for file in self.damaged:
            if file.startswith(COMMON) and not (self.path / file).exists():
                self.damaged[file] = "deleted"

    def forget(self, parts: set[int]) -> None:
        """Parts are no longer committed, so nothing of them is damaged."""
        self.committed -= parts
        self.damaged = {file: how for file, how in self.damaged.items() if part_of(file) not in parts}
        self.strays = {file for file in self.strays if part_of(file) not in parts}

    def leftovers(self) -> set[str]:
        """Entries of parts/ that no manifest covers."""
        names = {path.name for path in (self.path / "parts").glob("*.*")}
        return {f"parts/{name}" for name in names if part_of(f"parts/{name}") not in self.committed}

    @precondition(lambda self: self.created and self.intact())
    @rule(choice=st.integers(0, 10**6), place=st.integers(0, 10**6))
    def flip_a_byte(self, choice: int, place: int) -> None:
        file = self.intact()[choice % len(self.intact())]
        content = bytearray((self.path / file).read_bytes())
        content[place % len(content)] ^= 1 << place % 8
        (self.path / file).write_bytes(content)
        self.damaged[file] = "flipped"

    @precondition(lambda self: self.created and self.intact())
    @rule(choice=st.integers(0, 10**6))
    def delete_a_file(self, choice: int) -> None:
        file = self.intact()[choice % len(self.intact())]
        (self.path / file).unlink()
        if file.endswith(".json") and "zarr" not in file:
            self.forget({int(part_of(file) or 0)})
        else:
            self.damaged[file] = "deleted"

    @precondition(lambda self: self.created)
    @rule(file=st.sampled_from(STRAYS))
    def add_a_stray_file(self, file: str) -> None:
        if part_of(file) is None or part_of(file) in self.committed - self.hurt:
            (self.path / file).write_text("mine")
            self.strays.add(file)

    @invariant()
    def verify_names_exactly_what_is_wrong(self) -> None:
        if not self.created:
            return
        found = {problem.file for problem in verify(self.path).problems}
        wrong = self.damaged.keys() | self.strays
        if "plan.parquet" not in self.damaged:
            wrong |= {f"parts/{number:08d}.json" for number in set(range(PARTS)) - self.committed}
        # Where a manifest is damaged, its part's own files cannot be told from leftovers.
        unsure = {file for file in wrong | found if part_of(file) in self.unreadable} - {
            f"parts/{number:08d}.json" for number in self.unreadable
        }
        assert wrong - unsure <= found
        assert found <= wrong | unsure | self.leftovers()

    @invariant()
    def committed_samples_are_there_once_with_their_states(self) -> None:
        if not self.created or not self.committed or self.unreadable or self.hurt:
            return
        if any(file.startswith(COMMON) for file in self.damaged):
            return
        store = open_store(self.path)
        _, _, states, parts = case()
        stored = [name for name in states if parts[name] in self.committed]
        assert list(store.samples["sample_id"]) == stored
        for name in stored:
            np.testing.assert_array_equal(store.sample(name).hidden_states.values, states[name])

    def teardown(self) -> None:
        """Whatever happened, repair and extract make it whole."""
        try:
            if self.created:
                self.repair(None)
            self.extract("error", None)
            assert verify(self.path).problems == ()
            assert all(left.name.startswith("new-") for left in (self.path / ".staging").iterdir())
            assert self.committed == set(range(PARTS))
            self.committed_samples_are_there_once_with_their_states()
        finally:
            shutil.rmtree(self.folder)


TestStore = StoreMachine.TestCase
# A failure is told after its first example: making it shorter takes many minutes of extractions.
TestStore.settings = settings(
    max_examples=6, stateful_step_count=10, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
