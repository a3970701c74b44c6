import json
from pathlib import Path

import pytest

from engine.errors import StrataError, UsageError
from engine.prompts import Prompt, read_prompts


def read(*specs: str, family: str = "llava") -> tuple[Prompt, ...]:
    return read_prompts(specs, family=family, vocabulary=None, seed=0)


@pytest.mark.parametrize(
    ("family", "last", "question"),
    [
        ("llava", "Sum up what is shown in the image briefly.", "What is the content of the image?"),
        ("instructblip", "Sum up what is shown in the image briefly:", "What is depicted in the image?"),
    ],
)
def test_published(family: str, last: str, question: str) -> None:
    prompts = read("normal", "question", "empty", family=family)
    assert [prompt.prompt_id for prompt in prompts] == [*(f"normal-{n}" for n in (1, 2, 3, 4)), "question-1", "empty"]
    assert [prompt.kind for prompt in prompts] == ["normal"] * 4 + ["question", "empty"]
    assert [prompt.text for prompt in prompts[3:]] == [last, question, ""]
    assert len({prompt.text for prompt in prompts}) == 6


def test_the_noisy_strings_of_the_thesis_are_a_prompt_file() -> None:
    prompts = read(str(Path(__file__).parents[3] / "data" / "prompts" / "thesis" / "noisy.json"))
    assert [prompt.prompt_id for prompt in prompts] == [f"thesis-noisy-{number}" for number in range(1, 10)]
    assert prompts[0].text == "env вне Časyidenseдиищ aqu Angnihkins CV pendant"
    assert all(prompt.text.isprintable() and "\\" not in prompt.text for prompt in prompts)


def test_tables_name_their_source() -> None:
    tables = sorted((Path(__file__).parents[3] / "data" / "prompts").glob("*.json"))
    assert [table.stem for table in tables] == ["instructblip", "llava"]
    for table in tables:
        content = json.loads(table.read_text(encoding="utf-8"))
        assert content["family"] == table.stem
        assert "10119/19792" in content["source"]
        for text in content["normal"] + content["question"]:
            assert text == text.strip()
            assert "USER" not in text
            assert "<image" not in text


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_count_takes_the_first(count: int) -> None:
    assert read(f"normal:{count}") == read("normal")[:count]


def test_order_is_the_command_line_s() -> None:
    assert [prompt.prompt_id for prompt in read("empty", "question:1", "normal:1")] == [
        "empty",
        "question-1",
        "normal-1",
    ]


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"b": " What colour? ", "a.1 ü": "Count\\nthem 🦔"}', encoding="utf-8")
    assert read(str(path), "normal:1") == (
        Prompt("b", "custom", " What colour? "),
        Prompt("a.1 ü", "custom", "Count\nthem 🦔"),
        *read("normal:1"),
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{", "not JSON (line 1"),
        ('{"a": "x",\n}', "not JSON (line 2"),
        ('["x"]', "list"),
        ('"x"', "str"),
        ("{}", "holds no prompt"),
        ('{"a": 3}', "3 under 'a'"),
        ('{"a": null}', "None under 'a'"),
        ('{"a": "\\ud83d"}', "under 'a', which is not text"),
        ('{"a": "x", "b": ""}', "no text under 'b'"),
        ('{"a": " \\n"}', "no text under 'a'"),
        ('{"a/b": "x"}', "id 'a/b'"),
        ('{"": "x"}', "id ''"),
        ('{" a": "x"}', "id ' a'"),
        ('{"a\\n": "x"}', "id 'a\\n'"),
        ('{"\\ud83d": "x"}', "id '\\ud83d'"),
        ('{"a": "x", "a": "y"}', "key a more than once"),
    ],
)
def test_malformed_file(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(StrataError) as caught:
        read(str(path))
    assert words in str(caught.value)
    assert f"the prompt file {path}" in str(caught.value)
    assert "--prompts" in str(caught.value)


def test_directory_as_file(tmp_path: Path) -> None:
    with pytest.raises(StrataError, match="is a directory"):
        read(str(tmp_path))


@pytest.mark.parametrize("spec", ["nromal", "mine.json", "normal-1", "", "noise:3", "Normal"])
def test_unknown_spec_lists_what_is_known(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"normal, question, noisy .* empty, or the path of a JSON file \{id: text\}"):
        read(spec or "missing/")


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "1.5", " 1", "1\n", "99999", "²"])
@pytest.mark.parametrize("kind", ["normal", "question", "noisy", "empty"])
def test_bad_count(kind: str, count: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        read(f"{kind}:{count}")


def test_count_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match="more than the 4 that are published for llava"):
        read("normal:5")
    with pytest.raises(UsageError, match="one empty prompt"):
        read("empty:1")


def test_ids_occur_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"normal-2": "x"}')
    for specs in (["normal", "normal:1"], ["empty", "empty"], ["normal", str(path)], [str(path), str(path)]):
        with pytest.raises(UsageError, match="more than once"):
            read(*specs)


def test_no_spec() -> None:
    with pytest.raises(UsageError, match="no prompts"):
        read()


def test_family_without_table() -> None:
    with pytest.raises(UsageError, match=r"'paligemma' .*instructblip, llava"):
        read("normal", family="paligemma")
    assert read("empty", family="paligemma") == (Prompt("empty", "empty", ""),)
