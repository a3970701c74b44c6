"""How a notebook shows a store."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from engine.store import open_store, summarise
from engine.store.notebook import store_html
from tests.engine.store.builders import tiny_store


class Cells(HTMLParser):
    """Texts of table cells, and every element's name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def facts(self) -> Mapping[str, str]:
        return dict(zip(self.texts, self.texts[1:], strict=False))


def test_a_store_shows_what_is_in_it(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "s", capture=("attention",), empty_parts=1).path)
    shown = Cells(store._repr_html_())
    assert shown.facts["model"] == "tiny/llava, float16, 4 blocks"
    assert shown.facts["samples"].startswith("6 of 8 planned, 2 bad; ")
    assert shown.facts["parts"].startswith("3 of 3, ")
    for name, dims in (
        ("token/hidden_states", "layer 5 × token"),
        ("key/attention", "block 4 × query 2 × head 2 × key"),
    ):
        assert shown.facts[name].startswith(dims)
    on_disk = [array.stored_bytes for array in summarise(store).arrays if len(array.dims) > 1]
    sizes = [text for text in shown.texts if re.fullmatch(r"[\d.]+ k?B", text)]
    assert f"{len(on_disk)} arrays, beside coordinates" in shown.texts
    assert [float(size.split()[0]) * (1000 if "k" in size else 1) for size in sizes] == [
        float(f"{count:.3g}") for count in on_disk
    ]


def test_names_cannot_act(tmp_path: Path) -> None:
    summary = summarise(open_store(tiny_store(tmp_path / "s").path))
    name = "</td><script>alert(1)</script>"
    record = {**summary.record, "model": {**summary.record["model"], "id": name}}
    shown = Cells(store_html(replace(summary, record=record, url=name)))
    assert set(shown.tags) == {"div", "b", "table", "tr", "th", "td", "details", "summary"}
    assert shown.facts["model"].startswith(name)
