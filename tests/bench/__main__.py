"""``python -m tests.bench [NAME…] [--quick]``: run benchmarks, print one table and write ``out/bench.json``."""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from engine.cli.console import stdout_console
from tests.bench.report import make_table, write_json
from tests.bench.rows import Row

BENCHMARKS = (
    "contextualization",
    "one_layer",
    "logit_lens",
    "memory",
    "extraction",
    "prompts",
    "ranks",
    "attention",
    "sink",
    "size",
    "prefix",
    "many_images",
    "crashes",
)
OUTPUT = Path("out")


def main() -> None:
    """Run the benchmarks that were named, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, measures nothing")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"{unknown[0]} is no benchmark: choose from {', '.join(BENCHMARKS)}")
    # Read when torch is loaded: threads that wait for each other sleep, else a machine with anything else to do spends
    # most of its time on their spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    console = stdout_console()
    rows: list[Row] = []
    OUTPUT.mkdir(exist_ok=True)
    for name in arguments.names or BENCHMARKS:
        console.print(f"{name} …")
        run: Callable[..., Iterator[Row]] = import_module(f"tests.bench.{name}").run
        # Beside the results, because a temporary folder is often memory, and files on a disk are what is measured.
        with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
            rows += run(Path(folder), quick=arguments.quick)
    console.print(make_table(rows))
    write_json(OUTPUT / "bench.json", rows)


if __name__ == "__main__":
    main()
