"""Child process of memory benchmarks: ``python -m tests.bench.memory_of_command ARGUMENT…``.

Runs ``strata ARGUMENT…`` and prints the high-water mark of resident memory of the whole process in bytes, on the last
line. Linux only.
"""

import sys

from engine.cli.main import main
from tests.bench.resident import resident

if __name__ == "__main__":
    main(sys.argv[1:], prog_name="strata", standalone_mode=False)
    print(resident("VmHWM"))
