"""A CPU node has neither torch nor transformers nor pillow; it opens, verifies and reads."""

import subprocess
import sys
from pathlib import Path

from tests.engine.store.builders import tiny_store

SCRIPT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "PIL", "safetensors"}:
            raise ModuleNotFoundError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
from engine.store import open_store, summarise, verify
assert verify(sys.argv[1]).problems == ()
store = open_store(sys.argv[1])
assert summarise(store).samples == 6
print(float(store.hidden_states.astype("f8").sum()), float(store.sample("001/normal-2").hidden_states.sum()))
assert not {"torch", "transformers", "PIL"} & set(sys.modules)
"""


def test_a_python_without_torch_reads(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tiny.path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[0]) != 0
