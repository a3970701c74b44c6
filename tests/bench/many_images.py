"""What 100,000 images cost before any state is read: time, memory, and how both grow.

Every measurement is a fresh process that has done the same on a small input before; of several, the fastest counts.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.bench.many_parts import image_name, write_many_parts
from tests.bench.rows import NO_GOAL, Row, at_most
from tests.bench.work_on_many_images import STEPS
from tests.tiny_llava import save_checkpoint

__all__ = ["run"]

SECONDS, BYTES = 5, 2**30
SAMPLES_PER_PART, IN_LARGE_PARTS = 50, 5000
CAPTIONS = 5
READ_ALL = 2  # the last steps read the bytes of all parts: no goal is set for their time, only for its growth
GROWTH = at_most(1.3)  # of the time per image; linear is 1


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure every step on three sizes, and on the largest in few large parts too."""
    sizes = (100, 300, 1000) if quick else (1000, 10_000, 100_000)
    save_checkpoint(folder / "tiny-llava")
    peaks = {}
    for number, step in enumerate(STEPS):
        if step == "planning":
            inputs = [_write_source(folder / f"source-{size}", size) for size in sizes]
        else:
            inputs = [_store(folder, size, SAMPLES_PER_PART) for size in sizes]
            inputs.append(_store(folder, sizes[-1], IN_LARGE_PARTS))
        found = [_measure(step, inputs[0], path, 1 if quick else 3) for path in inputs]
        peaks[step] = max(measured.peak for measured in found)
        yield from _rows(step, sizes, [measured.seconds for measured in found], limited=number < len(STEPS) - READ_ALL)
    step, peak = max(peaks.items(), key=lambda item: item[1])
    yield Row(
        f"memory over {sizes[-1]:,} images, the most of any step",
        peak / BYTES,
        f"1 GiB; the whole process had {peak / 2**20:.0f} MiB in {step}",
        at_most(1.0),
    )


def _rows(step: str, sizes: tuple[int, ...], seconds: list[float], *, limited: bool) -> Iterator[Row]:
    of_sizes = seconds[: len(sizes)]
    told = ", ".join(f"{time:.2f} s of {size:,}" for time, size in zip(of_sizes, sizes, strict=True))
    large = "".join(f"; {time:.2f} s in parts of {IN_LARGE_PARTS:,}" for time in seconds[len(sizes) :])
    yield Row(
        f"time of {step}",
        max(seconds) / SECONDS,
        f"{SECONDS} s; {told}{large}",
        at_most(1.0) if limited else NO_GOAL,
    )
    per_image = [time / size for time, size in zip(of_sizes, sizes, strict=True)]
    yield Row(
        f"growth of {step}",
        per_image[2] / per_image[1],
        f"time per image of {sizes[1]:,}; of {sizes[0]:,} it is {per_image[0] / per_image[1]:.2f} × that",
        GROWTH,
    )


class _Measured(NamedTuple):
    seconds: float
    peak: float


def _measure(step: str, warm_up: Path, where: Path, rounds: int) -> _Measured:
    command = [sys.executable, "-m", "tests.bench.work_on_many_images", step, str(warm_up), str(where)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds)]
    return _Measured(min(one["seconds"] for one in runs), max(one["peak"] for one in runs))


def _store(folder: Path, images: int, images_per_part: int) -> Path:
    path = folder / f"store-{images}-{images_per_part}"
    return path if path.exists() else write_many_parts(path, images=images, images_per_part=images_per_part)


def _write_source(folder: Path, images: int) -> Path:
    """Write a captions file as COCO's, and the first image: planning looks for no other."""
    folder.mkdir()
    Image.new("RGB", (20, 16)).save(folder / f"{image_name(0)}.jpg")
    rows = [{"id": n, "file_name": f"{image_name(n)}.jpg", "height": 16, "width": 20} for n in range(images)]
    annotations = [
        {"id": CAPTIONS * n + k, "image_id": n, "caption": f"Caption {k} of image {n}, as long as they usually are."}
        for n in range(images)
        for k in range(CAPTIONS)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": rows, "annotations": annotations}))
    return folder
