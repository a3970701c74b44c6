"""Child process of the benchmark of many images: ``python -m tests.bench.work_on_many_images STEP WARM_UP WHERE``.

Does a step on WARM_UP, so that everything is imported, then on WHERE, and prints as JSON the ``seconds`` of that and
``peak``, the high-water mark of the process's resident memory in bytes. A step is done from the path on: whatever it
needs is opened again. Reads ``/proc``, hence Linux only.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from engine.cli.main import main
from engine.store import open_store
from tests.bench.resident import reset_peak, resident

__all__ = ["STEPS"]


def _plan(folder: Path) -> object:
    """From an annotation file to ``plan.parquet``; ``folder`` holds what ``tests.bench.many_images`` puts there."""
    # Torch and transformers, which no other step needs.
    from engine.cli.estimate import command as estimate  # noqa: PLC0415
    from engine.cli.options import RunOptions  # noqa: PLC0415
    from engine.cli.planning import plan_run  # noqa: PLC0415

    options = ["--model", folder.parent / "tiny-llava", "--source", "coco", "--annotations", folder / "captions.json"]
    options += ["--images", folder, "--samples-per-part", "50"]
    with estimate.make_context("estimate", list(map(str, options))) as context:
        plan = plan_run(RunOptions.from_click(context.params), revision=lambda _: "").plan
    return plan.table(), plan.parts


def _look_up(path: Path) -> object:
    store = open_store(path)
    return store.sample(str(store.plan["sample_id"].iloc[-1])).load()


STEPS: Mapping[str, Callable[[Path], object]] = {
    "planning": _plan,
    "opening a store": open_store,
    "strata inspect": lambda path: main(["inspect", str(path)], standalone_mode=False),
    "one sample, by its id": _look_up,
    "the first tokens, in stored order": lambda path: next(open_store(path).tokens(layer=2)),
    "the table of all samples": lambda path: open_store(path).samples,
    "states over all parts, with coordinates": lambda path: open_store(path).hidden_states,
    "the first tokens, shuffled (reads all that memory holds)": lambda path: next(
        open_store(path).tokens(layer=2, shuffle=0)
    ),
    "strata verify": lambda path: main(["verify", str(path)], standalone_mode=False),
}


def _measure(step: str, warm_up: Path, where: Path) -> dict[str, float]:
    with redirect_stdout(StringIO()):
        STEPS[step](warm_up)
        reset_peak()
        began = time.perf_counter()
        STEPS[step](where)
    return {"seconds": time.perf_counter() - began, "peak": resident("VmHWM")}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
