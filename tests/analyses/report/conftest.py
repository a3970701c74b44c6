"""Results that the tests of the report share, analysed once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from analyses.report import make_report
from tests.analyses.report.builders import HOSTILE, analyse, write_store

IMAGES = (HOSTILE[0], "plain", HOSTILE[1], HOSTILE[4])
Open = Callable[..., Any]
_READY = "html[data-ready]"
# Gives tests what the page keeps to itself: its drawings by name, as `views`.
_WATCH = """
window.views = {};
let embed;
Object.defineProperty(window, "vegaEmbed", {
  set: (value) => (embed = value),
  get: () => async (place, spec) => {
    const made = await embed(place, spec);
    views[place.replace("#plot-", "")] = made.view;
    return made;
  },
});
"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Analysed(NamedTuple):
    """A results folder, and the stores of its results."""

    results: Path
    stores: tuple[Path, ...]


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Every analysis of one store whose texts would act if a page let them; one image is bad."""
    folder = tmp_path_factory.mktemp("hostile")
    store = write_store(folder / "store", IMAGES, model=f"evil/{HOSTILE[0]}", bad=["broken"])
    return Analysed(analyse([store], folder / "results"), (store,))


@pytest.fixture(scope="session")
def deep_and_flat(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Every analysis of two stores of models of 6 and 9 blocks; the second keeps no thumbnails."""
    folder = tmp_path_factory.mktemp("two")
    stores = (
        write_store(folder / "flat", ["1", "2"], model="tiny/flat"),
        write_store(folder / "deep", ["2", "3"], model="tiny/deep", blocks=9, thumbnails=False, seed=1),
    )
    return Analysed(analyse(stores, folder / "results"), stores)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Images of 24 × 24 patches in 33 layers, as LLaVA-1.5-7B has them."""
    folder = tmp_path_factory.mktemp("large")
    store = write_store(folder / "store", ["1", "2"], model="tiny/large", blocks=32, side=24, dim=2)
    return Analysed(analyse([store], folder / "results", ("norm-attention", "logit-lens")), (store,))


@pytest.fixture(scope="module")
def chromium(hostile_page: Path, two_page: Path, large_page: Path) -> Iterator[Any]:
    """The system's Chromium, without a window; pages are made before, because it waits for this process meanwhile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is missing")
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser to open reports in: install one of {', '.join(_BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def hostile_page(hostile: Analysed) -> Path:
    """The report of `hostile`, beside its results."""
    page = hostile.results.parent / "report.html"
    page.write_text(make_report(hostile.results, [str(hostile.stores[0])]).html, encoding="utf-8")
    return page


@pytest.fixture(scope="session")
def two_page(deep_and_flat: Analysed) -> Path:
    """The report of `deep_and_flat`, beside its results."""
    page = deep_and_flat.results.parent / "report.html"
    report = make_report(deep_and_flat.results, [str(store) for store in deep_and_flat.stores], verified=False)
    page.write_text(report.html, encoding="utf-8")
    return page


@pytest.fixture(scope="session")
def large_page(large: Analysed) -> Path:
    """The report of `large`, beside its results."""
    page = large.results.parent / "report.html"
    page.write_text(make_report(large.results, [str(large.stores[0])], verified=False).html, encoding="utf-8")
    return page


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Open a page from disk; whatever it asks for, logs or throws is kept on it and must be nothing."""
    contexts = []

    def open_page(path: Path, *, width: int = 1200, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(_WATCH)
        page.set_default_timeout(60_000)  # a busy machine is no failure
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector(_READY, state="attached")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.said == []
            assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
            assert sum(url.startswith("file:") for url in page.asked) == 1
        context.close()


def show(page: Any, **choice: str) -> None:
    """Choose a picture and wait until it is there."""
    (chosen,) = page.select_option("#explorer-picture", **choice)
    page.wait_for_selector(f"#explorer-grid[data-picture='{chosen}']")
