"""What the progress of an extraction says, above all what the run waits for."""

import pytest

from engine.cli import progress as module
from engine.cli.progress import ExtractionProgress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def line_of(progress: ExtractionProgress, capsys: pytest.CaptureFixture[str]) -> str:
    progress.part_done({"part": 7, "samples": 3, "tokens": 90})
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("waited", "words"),
    [
        ({"model": 6.0, "images": 3.0, "writer": 1.0}, "waits 60% of the time for the model"),
        ({"model": 3.0, "images": 5.0}, "waits 50% of the time for images"),
        ({"model": 2.0, "writer": 7.5}, "waits 75% of the time for the writer"),
        ({"model": 2.0, "copies": 4.0, "images": 3.0}, "waits 40% of the time for copies to the host"),
    ],
)
def test_a_line_names_what_the_run_waits_for_most(
    clock: Clock, capsys: pytest.CaptureFixture[str], waited: dict[str, float], words: str
) -> None:
    progress = ExtractionProgress(None, samples=12, parts=4)
    for what, seconds in waited.items():
        progress.waited(what, seconds / 2)
        progress.waited(what, seconds / 2)
    progress.batch_done(20, 30 * 2**20)
    clock.now += 10
    line = line_of(progress, capsys)
    assert line.startswith("part 7 committed (1 of 4): 3 samples, 90 tokens; 2.0 samples/s, 3.0 MiB/s")
    assert line.rstrip().endswith(words)
