"""A saved checkpoint per dtype, a folder of images, and the extraction command on them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from PIL import Image

from engine.cli.main import main
from engine.store import Store, open_store
from tests.tiny_llava import TinyShape, save_checkpoint

SIZES = ((20, 20), (31, 17), (18, 40), (25, 24))
PROMPTS = {"short": "What?", "long": "Sum up what is shown in the 犬 image briefly.", "other": "Briefly describe it."}


@dataclass(frozen=True)
class Run:
    """One extraction that has ended: exit code, what it said, and the store it left."""

    exit_code: int
    output: str
    path: Path

    @property
    def store(self) -> Store:
        return open_store(self.path)


Extract = Callable[..., Run]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        dtype: save_checkpoint(folder / dtype / "tiny-llava", TinyShape(blocks=3), dtype=getattr(torch, dtype))
        for dtype in ("float32", "bfloat16", "float16")
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture-{number}.png")
    lines = [json.dumps({"file_name": f"picture-{number}.png", "caption": f"noise {number}"}) for number in (0, 2)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture(scope="session")
def extract_to(checkpoints: dict[str, Path], pictures: Path, prompt_file: Path) -> Extract:
    """Run ``strata extract`` in this process into ``out``; the checkpoint and the images may be others."""

    def run(out: Path, *options: str, model: Path = checkpoints["float32"], images: Path = pictures) -> Run:
        arguments = ["--model", str(model), "--source", "folder", "--images", str(images), "--out", str(out)]
        prompts = [] if "--prompts" in options else ["--prompts", str(prompt_file), "--prompts", "empty"]
        result = CliRunner().invoke(main, ["--debug", "extract", *arguments, *prompts, "--device", "cpu", *options])
        return Run(result.exit_code, result.output + str(result.exception or ""), out)

    return run


@pytest.fixture
def extract(extract_to: Extract, tmp_path: Path) -> Extract:
    """The same, into ``tmp_path / "store"`` unless told."""

    def run(*options: str, out: Path = tmp_path / "store", **others: Path) -> Run:
        return extract_to(out, *options, **others)

    return run


def sequences(store: Store) -> dict[str, xr.Dataset]:
    """Every sample's own sequence, put together from the segments in its table."""
    assembled = {}
    for part in store.parts:
        tokens = part.open("token").load()
        for row in part.samples.itertuples():
            places = [place for segment in row.segments for place in range(segment["start"], segment["stop"])]
            assembled[row.sample_id] = tokens.isel(token=places)
    return assembled
