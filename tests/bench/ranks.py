"""Four processes that fill one store on this machine, against one process that fills the same.

Measured from a common start signal, which processes wait for with their model loaded and warm, to the last part
committed: start-up is left out on both sides. The fastest rounds count. Ranks are told of each other as torchrun tells
them, by ``LOCAL_WORLD_SIZE``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from tests.bench.random_llava import write_images
from tests.bench.rows import Row, at_most
from tests.bench.timing import take_turns

__all__ = ["run"]

RANKS = 4


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure one plan of eight parts."""
    dim, blocks, images = (128, 2, 8) if quick else (768, 8, 32)
    write_images(folder / "images", images)
    store = count()
    with ExitStack() as stack:
        # Every round needs stores of its own; processes stay, so that each is started and warm once.
        teams = {
            world: [stack.enter_context(_started(folder, rank, world, dim, blocks, images)) for rank in range(world)]
            for world in (1, RANKS)
        }

        def fill(world: int) -> None:
            target = f"store-{next(store)}"
            for process in teams[world]:
                print(target, file=process.stdin, flush=True)
            for process in teams[world]:
                assert process.stdout.readline() == "done\n", "a rank failed"

        times = take_turns({str(world): lambda world=world: fill(world) for world in teams}, rounds=1 if quick else 4)
        for process in (process for team in teams.values() for process in team):
            process.stdin.close()
    yield Row(
        f"{RANKS} ranks on this machine, time",
        times.ratio_of_best(str(RANKS), "1"),
        f"one process over the same plan ({os.cpu_count()} cores, {images} images, width {dim}, {blocks} blocks, "
        f"float32), start-up left out of both; {times.best('1')} against {times.best(str(RANKS))}",
        at_most(1.0),
    )


def _started(folder: Path, *arguments: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.rank_process", *map(str, (folder, *arguments))]
    environment = {**os.environ, "LOCAL_WORLD_SIZE": str(arguments[1])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
