"""What the benchmark reports: ratios, goals and the shape of the table and of bench.json. Nothing here is timed."""

import json
from collections import Counter
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import timing
from tests.bench.__main__ import BENCHMARKS
from tests.bench.report import make_table, write_json
from tests.bench.rows import NO_GOAL, Goal, Row, at_least, at_most
from tests.bench.timing import Times, take_turns

ROWS = [
    Row("fast enough", 0.75, "plain reading", at_least(0.6)),
    Row("too large", 1.2, "the prediction", at_most(1.0)),
    Row("bare rate", 2.0, "plain reading"),
    Row("not measured", float("nan"), "nothing", Goal(0.97, 1.03)),
]


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (at_least(0.6), 0.6, True),
        (at_least(0.6), 0.5999, False),
        (at_most(1.25), 1.25, True),
        (at_most(1.25), 1.2501, False),
        (Goal(0.97, 1.03), 1.0, True),
        (Goal(0.97, 1.03), 0.96, False),
        (Goal(0.97, 1.03), 1.04, False),
        (NO_GOAL, 0.0, None),
        (at_most(1.0), float("nan"), False),
        (at_least(1.0), float("nan"), False),
    ],
)
def test_a_goal_includes_its_bounds(goal: Goal, value: float, met: bool | None) -> None:
    assert goal.met(value) is met


def test_the_file_holds_the_agreed_fields(tmp_path: Path) -> None:
    write_json(tmp_path / "out" / "bench.json", ROWS)
    assert json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8")) == [
        {"name": "fast enough", "value": 0.75, "goal": "≥ 0.6", "met": True, "against": "plain reading"},
        {"name": "too large", "value": 1.2, "goal": "≤ 1", "met": False, "against": "the prediction"},
        {"name": "bare rate", "value": 2.0, "goal": None, "met": None, "against": "plain reading"},
        {"name": "not measured", "value": None, "goal": "0.97 to 1.03", "met": False, "against": "nothing"},
    ]


def test_the_table_has_a_line_per_row() -> None:
    console = Console(width=120, file=StringIO())
    console.print(make_table(ROWS))
    lines = console.file.getvalue().splitlines()
    for row, mark in zip(ROWS, ("met", "missed", "", "missed"), strict=True):
        (line,) = [line for line in lines if row.name in line]
        assert f"{row.value:.3f}" in line
        assert line.split("│")[4].strip() == mark


def test_ratios_are_medians_of_rounds() -> None:
    times = Times({"a": [1.0, 10.0, 6.0], "b": [2.0, 5.0, 2.0]})
    assert times.ratio("a", "b") == 2.0
    assert times.ratio("b", "a") == 0.5
    assert times.ratio_of_best("a", "b") == 0.5
    assert times.rate("a", 12e6) == "2 MB/s"
    assert times.best("b") == "2.00 s"


def test_contestants_take_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 10 * next(clock))

    def clear() -> None:
        calls.append("-")
        next(clock)

    times = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, clear=clear)
    assert "".join(calls) == "a-b-" + "a-b-" + "b-a-" + "a-b-"
    assert times.best("a") == times.best("b") == "10.00 s", "without the clearing"


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_each_contestant_follows_every_other_equally_often(count: int) -> None:
    rounds = count * (1 + count % 2)
    calls: list[int] = []
    take_turns({str(number): partial(calls.append, number) for number in range(count)}, rounds=rounds)
    orders = [calls[start : start + count] for start in range(count, len(calls), count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert set(follows.values()) == {rounds // count}
    assert len(follows) == count * (count - 1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_file(name: str) -> None:
    assert (Path(__file__).parent / f"{name}.py").is_file()
