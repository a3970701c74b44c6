"""Reports as files: whole, offline, honest about what is missing, and within their size."""

import base64
import hashlib
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from analyses.report import make_report
from analyses.report.commands import analyze_command, extract_command
from engine.cli.main import main
from engine.errors import UsageError
from engine.store import open_store
from tests.analyses.report.builders import HOSTILE, analyse, write_store
from tests.analyses.report.conftest import IMAGES, Analysed

VERIFIED = re.compile(r"verified on \d{4}-\d\d-\d\d \d\d:\d\d UTC: (.*)")


class Page(HTMLParser):
    """Elements of a page with their attributes, its scripts, and its text without scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script" and not attrs:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            if self.elements[-1] == ("script", {}):
                self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def fact(self, name: str) -> str:
        """What stands beside a name of the provenance."""
        texts = [text.strip() for text in self.texts if text.strip()]
        return texts[texts.index(name) + 1]


def report(results: Path, *stores: Path, **options: object) -> Page:
    return Page(make_report(results, [str(store) for store in stores], **options).html)  # type: ignore[arg-type]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_only_its_own_scripts_may_run_and_nothing_is_loaded(hostile_page: Path) -> None:
    page = Page(hostile_page.read_text(encoding="utf-8"))
    (policy,) = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv")]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts}
    assert len(hashes) == 3
    assert set(rules["script-src"].split()) == hashes
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, attrs in page.elements:
        assert not attrs.keys() & {"src", "srcset", "action", "data", "background"}, (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
        address = attrs.get("href") or "#"
        assert address.startswith("#") or (address.startswith("data:text/csv;base64,") and "download" in attrs)
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base"} == set()


def test_provenance_is_that_of_the_store(hostile: Analysed) -> None:
    (store,) = hostile.stores
    page = report(hostile.results, store)
    record, run = open_store(store).record, open_store(store).parts[0].manifest["run"]
    assert page.fact("Revision") == record["model"]["revision"]
    assert page.fact("Format version") == record["format_version"]
    assert page.fact("Plan") == record["plan_sha256"]
    assert page.fact("Samples") == "8 of 10 planned samples, in 1 of 1 parts"
    assert page.fact("Bad samples") == "2"
    assert page.fact("Extracted with").startswith(", ".join(f"{k} {v}" for k, v in run["versions"].items()))
    assert VERIFIED.match(page.fact("Store"))[1].startswith("every planned part")  # type: ignore[index]
    assert page.fact("Images shown") == "4 of 4 images, chosen by seed 0"
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[3], "broken/normal-1", "noisy-1"):  # prompts, reasons of bad samples
        assert " ".join(text.split()) in page.text
    assert report(hostile.results, store, verified=False).fact("Store") == "not verified"


def test_without_its_store_a_report_says_what_it_does_not_know(hostile: Analysed) -> None:
    page = report(hostile.results)
    assert page.fact("Store") == "not verified"
    assert "--store" in page.fact("Revision")
    assert "The explorer of patches is not there: strata report --store STORE" in page.text
    assert "Single images are not there" in page.text
    assert not [attrs for tag, attrs in page.elements if attrs.get("id") == "explorer"]
    assert len(page.scripts) == 2


@pytest.mark.parametrize("left_out", ["contextualization", "phases", "logit-lens", "norm-attention"])
def test_a_missing_analysis_is_named_with_its_command(hostile: Analysed, tmp_path: Path, left_out: str) -> None:
    folder = tmp_path / "results"
    shutil.copytree(hostile.results, folder)
    shutil.rmtree(folder / f"{left_out}.zarr")
    page = report(folder, *hostile.stores, verified=False)
    assert f"strata analyze {left_out.replace('contextualization', 'phases')} STORE --out {folder}" in page.text
    figures = {attrs["id"] for tag, attrs in page.elements if tag == "figure"}
    gone = {
        "contextualization": {"figure-phase-diagram", "figure-phase-comparison"},
        "phases": set(),
        "logit-lens": {"figure-lens-curves", "figure-lens-explorer"},
        "norm-attention": {"figure-attention-roles", "figure-attention-maps"},
    }
    assert figures == {name for own in gone.values() for name in own} - gone[left_out]


def test_a_damaged_dataset_is_named_and_the_rest_is_shown(hostile: Analysed, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(hostile.results, folder)
    (folder / "logit-lens.zarr" / "zarr.json").write_text("{")
    made = make_report(folder)
    assert made.notes[0].startswith("logit-lens.zarr cannot be read")
    assert "run strata analyze logit-lens again" in Page(made.html).text


def test_without_the_table_of_words_there_is_no_explorer_and_the_page_says_why(
    hostile: Analysed, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(hostile.results, folder)
    (folder / "logit-lens-words.parquet").unlink()
    page = report(folder, *hostile.stores, verified=False)
    assert "logit-lens-words.parquet is missing: strata analyze logit-lens --words all writes it" in page.text


def test_a_damaged_store_is_reported_and_the_page_says_so(hostile: Analysed, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(hostile.stores[0], store)
    (store / "parts" / "stray.bin").write_bytes(b"?")
    run = command(hostile.results, "--store", store, "--out", tmp_path / "r.html")
    assert run.exit_code == 0
    assert "note: " in run.stderr
    assert "1 problem: parts/stray.bin" in run.stderr
    assert "1 problem: parts/stray.bin" in Page((tmp_path / "r.html").read_text(encoding="utf-8")).fact("Store")


def test_wrong_requests_are_refused_with_the_next_step(hostile: Analysed, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    run = command(tmp_path / "empty", "--out", out)
    assert (run.exit_code, "run strata analyze all STORE --out" in run.stderr) == (2, True)
    run = command(hostile.results, "--out", tmp_path / "r.pdf")
    assert (run.exit_code, "browsers open files that end with .html" in run.stderr) == (2, True)
    other = write_store(tmp_path / "other", ["x"], seed=5)
    run = command(hostile.results, "--store", other, "--out", out)
    assert (run.exit_code, "name the stores of these results" in run.stderr) == (2, True)
    run = command(hostile.results, "--store", hostile.stores[0], "--store", hostile.stores[0], "--out", out)
    assert (run.exit_code, "name each store once" in run.stderr) == (2, True)
    assert not out.exists()


def test_without_the_charting_library_the_extra_is_named(
    hostile: Analysed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("analyses.report", "engine.cli.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    run = command(hostile.results, "--out", tmp_path / "r.html")
    assert run.exit_code == 2
    assert "vl_convert, which is not installed" in run.stderr
    assert "'activation-strata[report]'" in run.stderr


def test_a_store_that_grew_is_noted(hostile: Analysed, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(hostile.results, folder)
    for path in folder.glob("*.zarr/zarr.json"):
        path.write_text(re.sub(r'(parts_sha256\\": \\")\w{4}', r"\g<1>0000", path.read_text()))
    made = make_report(folder, [str(hostile.stores[0])], verified=False)
    assert [note for note in made.notes if "has other parts than when its results were computed" in note]


def test_the_commands_give_the_same_results_again(hostile: Analysed, tmp_path: Path) -> None:
    options = {"pattern": "auto", "text_roles": ("instruction",), "include_layer_0": True, "seed": 3}
    folder = analyse(hostile.stores, tmp_path / "results", ["phases"], **options)
    again = tmp_path / "a folder"
    settings = {
        name: xr.open_zarr(folder / f"{name}.zarr").attrs["settings"] for name in ("contextualization", "phases")
    }
    for name, own in settings.items():
        words = shlex.split(analyze_command(name, own, [str(hostile.stores[0])], str(again)))
        assert words[:2] == ["strata", "analyze"]
        run = CliRunner().invoke(main, words[1:])
        assert run.exit_code == 0, run.output
        assert xr.open_zarr(again / f"{name}.zarr").attrs["settings"] == own
    words = analyze_command(
        "logit-lens", '{"layers": [["0", "4"], ["0", "4"]], "source": ["lens", "hidden_states"]}', ["s"], "r"
    )
    assert words == "strata analyze logit-lens s --out r --layers 0,4"


def test_the_command_that_extracts_is_one(hostile: Analysed) -> None:
    words = shlex.split(extract_command(open_store(hostile.stores[0]).record, "out dir"))
    extract = main.get_command(click.Context(main), words[1])
    assert extract is not None
    parameters = extract.make_context("extract", words[2:]).params
    assert parameters["model"] == f"evil/{HOSTILE[0]}"
    assert parameters["prompts"] == ("normal:1", "noisy:1")
    assert (parameters["capture"], parameters["out"]) == ("residual,pooled,attention", Path("out dir"))
    assert parameters["thumbnails"]


def test_the_subset_is_seeded_and_the_page_stays_small(tmp_path: Path) -> None:
    """5,000 images with two prompts each are 10,000 samples."""
    images = [f"{number:05d}" for number in range(5000)]
    store = write_store(tmp_path / "store", images, dim=2, blocks=1, thumbnails=False)
    results = analyse([store], tmp_path / "results", ["logit-lens"], layers=("1",), topk=1)
    made = make_report(results, [str(store)], verified=False)
    page = Page(made.html)
    assert page.fact("Samples").startswith("10,000 of 10,000")
    assert page.fact("Images shown") == "12 of 5000 images, chosen by seed 0"
    assert len(made.html.encode()) < 2 * 2**20
    packed = [attrs for tag, attrs in page.elements if attrs.get("class") == "words"]
    assert len(packed) == 12


def test_the_same_results_make_the_same_page(hostile: Analysed) -> None:
    pages = [
        make_report(hostile.results, [str(hostile.stores[0])], verified=False, seed=seed).html for seed in (0, 0, 1)
    ]
    assert pages[0] == pages[1] != pages[2]


def test_more_images_than_fit_are_left_out_and_the_page_says_so(
    hostile: Analysed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyses.report.assemble._WORD_BYTES", 1)
    page = report(hostile.results, *hostile.stores, verified=False)
    assert f"The page has room for 1 of {len(IMAGES)} chosen images." in page.text
    assert len([attrs for tag, attrs in page.elements if attrs.get("class") == "words"]) == 1
    monkeypatch.setattr("analyses.report.assemble._ATTENTION_VALUES", 1)
    page = report(hostile.results, *hostile.stores, verified=False)
    assert "The page has room for the attention of 1 of the images that it shows." in page.text


def test_the_command_that_makes_the_page_makes_it_again(hostile: Analysed, tmp_path: Path) -> None:
    made = make_report(hostile.results, [str(hostile.stores[0])], verified=False, seed=3, images=2)
    words = shlex.split(Page(made.html).fact("Made by"))
    assert words[:2] == ["strata", "report"]
    out = tmp_path / "again.html"
    assert command(*words[2:-1], out).exit_code == 0
    assert out.read_text(encoding="utf-8") == made.html


def test_no_image_at_all_cannot_be_asked() -> None:
    with pytest.raises(UsageError, match="--images 0: at least one is shown"):
        make_report(Path(), images=0)
