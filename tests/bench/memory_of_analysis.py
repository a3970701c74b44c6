"""Child process of the memory benchmark: ``python -m tests.bench.memory_of_analysis WARM_UP STORE WORKERS``.

Prints bytes as JSON: ``peak``, the high-water mark of resident memory during the analysis of STORE; ``before``, what
was resident when it began; ``predicted``, what the analysis predicts beyond the process itself. WARM_UP is a small
store that is analysed first, so that everything is imported. Reads ``/proc``, hence Linux only.
"""

import json
import sys

from analyses.contextualization import TEXT_ROLES, analyze_store
from analyses.memory import part_bytes, result_bytes
from analyses.part_task import PartTask
from analyses.resources import Resources
from engine.store import Store, open_store
from tests.bench.resident import reset_peak, resident


def main(warm_up: str, store: str, workers: int) -> None:
    """Measure one store."""
    resources = Resources(workers=workers)
    analyze_store(open_store(warm_up), resources=resources)
    reset_peak()
    before = resident("VmRSS")
    opened = open_store(store)
    analyze_store(opened, resources=resources)
    print(json.dumps({"peak": resident("VmHWM"), "before": before, "predicted": _predicted(opened, workers)}))


def _predicted(store: Store, workers: int) -> int:
    heaviest = max(store.parts, key=lambda part: part.tokens)
    task = PartTask(heaviest.url, heaviest.name, "hidden_states", TEXT_ROLES, False, True, None)
    return workers * part_bytes(heaviest, task) + result_bytes(store.parts, len(store.layers), self_pairs=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
