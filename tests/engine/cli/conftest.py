"""A tiny checkpoint with images and captions on disk, and the command line to run on them."""

import json
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.tiny_llava import save_checkpoint


class Dataset(NamedTuple):
    """A model folder, a COCO captions file and its images."""

    model: Path
    annotations: Path
    images: Path

    def arguments(self, *more: object) -> list[str]:
        """Options of extract and estimate for this data set."""
        named = ["--model", self.model, "--source", "coco", "--annotations", self.annotations, "--images", self.images]
        return [str(argument) for argument in (*named, *more)]


def write_images(folder: Path, count: int) -> Path:
    """COCO images of different shapes with one caption each; returns the captions file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        name = f"COCO_val2014_{number:012d}.jpg"
        height, width = 18 + number, 30 - number
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.append({"id": number, "image_id": number, "caption": f"a small thing, number {number}"})
    path = folder.parent / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture
def dataset(checkpoint: Path, tmp_path: Path) -> Dataset:
    images = tmp_path / "images"
    return Dataset(checkpoint, write_images(images, 5), images)


@pytest.fixture(scope="session")
def strata() -> Callable[..., Result]:
    """Run the installed console script's function in this process, with stdout and stderr apart."""
    (script,) = entry_points(group="console_scripts", name="strata")
    main = script.load()

    def run(*arguments: object) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run
