"""Kills ``strata extract`` at many moments and resumes it: ``python -m tests.crashes FOLDER KILLS SEED``.

One process imports everything once; each run of the command line is a fork of it, which SIGKILL ends: at a moment of
the clock, at a step of its writing (half of a write is then made), or in the middle of a step that another thread
goes on with. Some steps are chosen, because they are short; the others are random. Prints one line of JSON per kill:
when it was, what then lay on the disk, and what was wrong after the resume.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner, Result

from engine.cli.main import main as strata
from engine.store import committed_parts, open_store, verify
from tests.engine.cli.conftest import write_images
from tests.faults import Faults, Step, faulty_files
from tests.tiny_llava import TinyShape, save_checkpoint

__all__ = ["SHORT_STATES", "STATES", "crash_often", "find_state"]

PARTS = 3
ROOT = Path(__file__).parents[1]
# What may lie on the disk, by how far the furthest work had come.
STATES = (
    "nothing",
    "common files",
    "arrays of a part",
    "a whole part, staged",
    "arrays without table",
    "table without manifest",
    "manifest, not yet cleared away",
    "whole parts alone",
    "everything",
)
SHORT_STATES = ("common files", "arrays without table", "table without manifest", "manifest, not yet cleared away")
"""States that last for an instant, which is why kills aim at them."""


def crash_often(folder: Path, kills: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Run this module in a process of its own.

    Returns
    -------
    list of dict
        One per kill: ``state``, one of ``STATES``, and ``wrong``, what was not as it should be after the resume.
    """
    command = [sys.executable, "-m", "tests.crashes", str(folder.absolute()), str(kills), str(seed)]
    # Threads of torch's own would not be there in a fork, and be waited for.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


class Kill(NamedTuple):
    """When a run ends.

    Attributes
    ----------
    seconds, step
        After so many seconds, or at the step of this number.
    during
        Whether a thread ends the process while another makes the step.
    again
        Whether the run is the resume of the one that was killed last, instead of one from the beginning.
    """

    seconds: float | None = None
    step: int | None = None
    during: bool = False
    again: bool = False


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill as often as asked for, and resume on a copy of what each kill left."""
    command = _prepare(folder)
    store, whole, resumed = folder / "store", folder / "whole", folder / "resumed"
    steps, seconds = _run_whole(command, whole)
    chosen = _choose(steps, seconds, random.Random(seed))
    while kills:
        kill = next(chosen)
        if not kill.again:
            shutil.rmtree(store, ignore_errors=True)
        if not _kill(kill, lambda: command(store)):
            continue  # it had ended before
        kills -= 1
        shutil.rmtree(resumed, ignore_errors=True)
        if store.exists():
            shutil.copytree(store, resumed)
        wrong = _in_fork(lambda: _resume(command, resumed, whole))
        print(json.dumps({**kill._asdict(), "state": find_state(store), "wrong": wrong}), flush=True)


def _prepare(folder: Path) -> Callable[[Path], Result]:
    """Make a model and images, and import what a run imports by running once."""
    model = save_checkpoint(folder / "model", TinyShape(blocks=2, dim=16, heads=2, key_value_heads=1))
    captions = write_images(folder / "images", 2 * PARTS)
    named = ["--model", model, "--source", "coco", "--annotations", captions, "--images", folder / "images"]
    options = ["--prompts", "normal:2", "--samples-per-part", "4", "--capture", "residual", "--device", "cpu"]

    def command(store: Path) -> Result:
        return CliRunner().invoke(strata, [str(word) for word in ("extract", *named, *options, "--out", store)])

    command(folder / "first")
    return command


def _run_whole(command: Callable[[Path], Result], store: Path) -> tuple[list[Step], float]:
    """Run without a kill; return the steps that it takes, and its seconds."""
    began = time.perf_counter()
    with faulty_files(Faults(None)) as faults:
        result = command(store)
    assert result.exit_code == 0, result.output
    return faults.steps, time.perf_counter() - began


def _choose(steps: list[Step], seconds: float, rng: random.Random) -> Iterator[Kill]:
    """First every short state, with both ends of a manifest's rename and its middle; then at random, for ever."""
    part = f"whole/parts/{1:08d}"
    manifest = _find(steps, "rename", f"{part}.json")
    yield Kill(step=_find(steps, "link", "whole/plan.parquet") + 1)
    yield Kill(step=_find(steps, "write", "hidden_states/c/0/"))
    yield Kill(step=_find(steps, "rename", f"{part}.parquet"))
    yield Kill(step=manifest)
    yield Kill(step=manifest, during=True)
    yield Kill(step=manifest + 1)
    while True:
        again = rng.random() < 0.3
        if rng.random() < 0.5:
            yield Kill(seconds=rng.uniform(0, seconds), again=again)
        else:
            yield Kill(step=rng.randrange(len(steps)), during=rng.random() < 0.3, again=again)


def _find(steps: list[Step], kind: str, path: str) -> int:
    return next(number for number, step in enumerate(steps) if step.kind == kind and path in step.path)


def _kill(kill: Kill, run: Callable[[], object]) -> bool:
    """Fork a run and kill it; False where it ended before."""
    child = os.fork()
    if child == 0:
        pid = os.getpid()

        def end() -> None:
            if kill.during:
                threading.Thread(target=os.kill, args=(pid, signal.SIGKILL)).start()
            else:
                os.kill(pid, signal.SIGKILL)

        with faulty_files(Faults(kill.step, "death", end=end)):
            run()
        os._exit(0)
    if kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with {code} before it was killed")
    return code != 0


def _in_fork(check: Callable[[], list[str]]) -> list[str]:
    """Call in a fork, so that this process stays without threads; return what it returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = check()
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}"]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return list(json.loads(answer)) if answer else ["the resume died"]


def find_state(store: Path) -> str:
    """Tell from the files how far a run had come."""
    names = {path.relative_to(store).as_posix() for path in store.rglob("*")}
    staged = {name for name in names if name.startswith(".staging/")}
    if not (names - {".staging", "parts"}):
        return "nothing"
    if "store.json" not in names or any(name.startswith(".staging/store-") for name in staged):
        return "common files"
    for number in range(PARTS):
        part = f"parts/{number:08d}"
        committed = f"{part}.json" in names
        own = {name for name in staged if name.startswith(f".staging/{number:08d}-")}
        if committed and own:
            return "manifest, not yet cleared away"
        if not committed and f"{part}.zarr" in names:
            return "table without manifest" if f"{part}.parquet" in names else "arrays without table"
        if own:
            whole = any(name.endswith(f"/{number:08d}.json") for name in own)
            return "a whole part, staged" if whole else "arrays of a part"
    return "everything" if f"parts/{PARTS - 1:08d}.json" in names else "whole parts alone"


def _manifests(store: Path) -> dict[str, int]:
    """When each manifest was written."""
    return {path.name: path.stat().st_mtime_ns for path in (store / "parts").glob("*.json")}


def _resume(command: Callable[[Path], Result], store: Path, whole: Path) -> list[str]:
    """Run the command again; return everything that is then not as if it had never been killed."""
    committed = _manifests(store)
    result = command(store)
    wrong = [] if result.exit_code == 0 else [f"exit code {result.exit_code}: {result.output}"]
    wrong += [f"{problem.file} {problem.message}" for problem in verify(store).problems]
    wrong += [f"{name} was written again" for name, at in committed.items() if _manifests(store).get(name) != at]
    if list(open_store(store).samples["sample_id"]) != list(open_store(whole).plan["sample_id"]):
        wrong.append("samples are lost or stored twice")
    found, expected = _contents(store), _contents(whole)
    wrong += [f"{name} is another" for name, content in expected.items() if found.get(name) != content]
    wrong += [f"{name} is left" for name in found.keys() - expected.keys()]
    wrong += [f"{left} is left" for left in (store / ".staging").iterdir()]
    return wrong


def _contents(store: Path) -> dict[str, Any]:
    """Every file's bytes; of manifests all but the time that the part took."""
    contents: dict[str, Any] = {
        path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()
    }
    for number, manifest in committed_parts(store).items():
        own = {key: value for key, value in manifest.items() if key not in ("seconds", "sha256")}
        contents[f"parts/{number:08d}.json"] = own
    return contents


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
