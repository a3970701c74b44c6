"""Extracted stores of tiny models, audits of them, and ways to spoil a copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

from engine.cli.main import main
from engine.store import Store, open_store
from tests import tiny_gemma_llava, tiny_instructblip, tiny_llava
from tests.engine.cli.conftest import write_images

BLOCKS = 3
FAMILIES: dict[str, Any] = {
    "llava": tiny_llava,
    "eager-llava": tiny_llava,
    "gemma-llava": tiny_gemma_llava,
    "instructblip": tiny_instructblip,
}
PROMPTS = ("--prompts", "normal:2", "--prompts", "empty")


class Audit(NamedTuple):
    """How ``strata audit`` ended and what it said, on stdout and stderr."""

    exit_code: int
    text: str

    def line(self, tensor: str) -> str:
        """Return the line of one tensor."""
        return next(line for line in self.text.splitlines() if line.startswith(tensor))


class Extracted(NamedTuple):
    """A store, the model that made it, and its images."""

    path: Path
    model: Path
    images: Path

    @property
    def store(self) -> Store:
        return open_store(self.path)

    def audit(self, *options: object) -> Audit:
        named = [self.path, "--model", self.model, "--images", self.images, "--device", "cpu", *options]
        result = CliRunner().invoke(main, ["audit", *map(str, named)], env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Audit(result.exit_code, result.stdout + result.stderr)

    def copy(self, folder: Path) -> "Extracted":
        shutil.copytree(self.path, folder)
        return self._replace(path=folder)

    def change(self, path: str, change: Callable[[np.ndarray], np.ndarray], part: int = 0) -> None:
        """Rewrite an array of one part, whose records stay as they are."""
        group = zarr.open_group(self.path / "parts" / f"{part:08d}.zarr", mode="r+", use_consolidated=False)
        array = group[path]
        assert isinstance(array, zarr.Array)
        # As the store was written: chunks of fill values are there too.
        array.with_config({"write_empty_chunks": True})[...] = change(np.asarray(array[...]))


ExtractOnce = Callable[..., Extracted]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    return write_images(folder / "images", 3).parent


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a checkpoint, each kind once; ``seed`` gives other weights."""
    saved: dict[tuple[str, str, int], Path] = {}

    def save(family: str = "llava", dtype: str = "float32", seed: int = 0) -> Path:
        key = (family, dtype, seed)
        if key not in saved:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            tiny = FAMILIES[family]
            torch_dtype = getattr(torch, dtype)
            saved[key] = tiny.save_checkpoint(folder, tiny.TinyShape(blocks=BLOCKS), dtype=torch_dtype, seed=seed)
            if family == "eager-llava":
                configuration = json.loads((folder / "config.json").read_text())
                text = json.dumps({**configuration, "attn_implementation": "eager"})
                (folder / "config.json").write_text(text)
        return saved[key]

    return save


@pytest.fixture(scope="session")
def extract(tmp_path_factory: pytest.TempPathFactory, pictures: Path, checkpoint: Callable[..., Path]) -> ExtractOnce:
    """Extract in padded batches that cross images, the same command once."""
    kept: dict[tuple[str, ...], Extracted] = {}

    def run(*options: str, family: str = "llava", dtype: str = "float32", seed: int = 0) -> Extracted:
        key = (family, dtype, str(seed), *options)
        if key not in kept:
            model, images = checkpoint(family, dtype, seed), pictures / "images"
            out = tmp_path_factory.mktemp("stores") / "store"
            source = ["--source", "coco", "--annotations", pictures / "captions.json", "--images", images]
            named = ["--model", model, *source, *PROMPTS, "--samples-per-part", 6, "--batch-size", 5, "--out", out]
            result = CliRunner().invoke(main, ["extract", *map(str, named), "--device", "cpu", *options])
            assert result.exit_code == 0, result.output
            kept[key] = Extracted(out, model, images)
        return kept[key]

    return run


@pytest.fixture
def spoilt(extract: ExtractOnce, tmp_path: Path) -> Extracted:
    """A copy of the float32 LLaVA store, to be spoilt."""
    return extract().copy(tmp_path / "store")
