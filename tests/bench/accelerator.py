"""Extraction of LLaVA-1.5-7B at full size on one GPU: tokens per second, memory, and who holds up whom.

``python -m tests.bench.accelerator --out FILE.json`` needs a GPU with 24 GiB or more; absolute numbers, unlike
``make bench``. Tokens are positions of the language model, of every sample in full, also where an image's prompts share
a pass over its prefix. The bare rate is that of forward passes over batches that
lie on the GPU; a captured one is from the first image read to the last row on the host, with nothing written; an
extraction is all of it, to the last part committed. The sink's rate is that of writing such parts alone. Figures of one
machine are kept beside this file.
"""

import argparse
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.capture import Extraction
from engine.capture.extraction import extract_part
from engine.store import PartArray, PartContent, write_part
from tests.bench.full_size_llava import build_full_size_llava
from tests.bench.random_llava import (
    BenchModel,
    Silence,
    collated_batches,
    count_positions,
    extract_all,
    plan_extraction,
    write_images,
)
from tests.bench.resident import reset_peak, resident

GIB = 2**30


class Case(NamedTuple):
    """What is captured, of how many prompts per image."""

    tensors: tuple[str, ...]
    prompts: int = 1


CASES = {
    "pooled": Case(("pooled",)),
    "residual": Case(("residual",)),
    "residual and attention": Case(("residual", "attention")),
    "lens": Case(("lens",)),
    "residual of five prompts": Case(("residual",), 5),
}


class Settings(NamedTuple):
    """What is run: images, samples in a forward pass, images in a part."""

    images: int
    batch_size: int
    images_per_part: int


class Peak(NamedTuple):
    """What a run took: seconds, the GPU's and this process's highest memory in bytes."""

    seconds: float
    gpu: int
    host: int


def measure(run: Callable[[], object]) -> Peak:
    """Run once, waiting for the GPU at both ends."""
    reset_peak()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    gpu = 0
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        gpu = torch.cuda.max_memory_allocated()
    return Peak(time.perf_counter() - began, gpu, resident("VmHWM"))


def main() -> None:
    """Measure every case and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accelerator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images-per-part", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two narrow blocks: shows that it runs, measures nothing")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = {"blocks": 2, "dim": 512} if arguments.quick else {}
    model = build_full_size_llava(device, arguments.dtype, **size)
    settings = Settings(arguments.images, arguments.batch_size, arguments.images_per_part)
    with tempfile.TemporaryDirectory(prefix="accelerator-", dir=".") as folder:
        rows = list(_rows(model, Path(folder), settings))
    figures = {
        "model": f"LLaVA-1.5-7B, real configuration, random weights, {arguments.dtype}" + " (quick)" * arguments.quick,
        "settings": settings._asdict(),
        "command": "python -m tests.bench.accelerator --out FILE.json"
        f" --dtype {arguments.dtype} --images {settings.images} --batch-size {settings.batch_size}"
        f" --images-per-part {settings.images_per_part}",
        "machine": _machine(device),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _rows(model: BenchModel, folder: Path, settings: Settings) -> Iterator[dict[str, Any]]:
    images = write_images(folder / "images", settings.images)
    number = count()

    def plan(case: Case) -> Extraction:
        return plan_extraction(
            model,
            folder / f"store-{next(number)}",
            folder / "images",
            images,
            prompts=case.prompts,
            images_per_part=settings.images_per_part,
            batch_size=settings.batch_size,
            tensors=case.tensors,
        )

    batches = collated_batches(plan(CASES["pooled"]))
    bare_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)

    def forward() -> None:
        with torch.inference_mode():
            for inputs in batches:
                model.loaded.model(**inputs, use_cache=False, logits_to_keep=1)

    forward()  # kernels are chosen in the first pass
    bare = measure(forward)
    yield _show({"case": "no capture", "tokens": bare_tokens, "model": _rate(bare_tokens, bare), **_memory(bare)})
    for name, case in CASES.items():
        kept: list[PartContent] = []

        def capture(case: Case = case, kept: list[PartContent] = kept) -> None:
            extraction = plan(case)
            for part in extraction.plan.parts:
                content = extract_part(extraction, part, Silence())
                kept[:] = [content]

        capture()
        captured = measure(capture)
        raw = sum(_captured_bytes(array) for array in kept[0].arrays)
        sink = measure(lambda kept=kept: _write(folder / "alone", kept.pop()))
        extraction = plan(case)
        tokens = count_positions(extraction)
        part_tokens = tokens * settings.images_per_part // settings.images
        shutil.rmtree(folder / "alone")
        whole = measure(lambda extraction=extraction: extract_all(extraction))
        on_disk = sum(file.stat().st_size for file in (extraction.store / "parts").rglob("*") if file.is_file())
        shutil.rmtree(extraction.store)
        sink_rate = part_tokens / sink.seconds
        yield _show(
            {
                "case": name,
                "tokens": tokens,
                "captured": _rate(tokens, captured),
                "extraction": _rate(tokens, whole),
                "sink": sink_rate,
                "sink_raw_bytes_per_second": raw / sink.seconds,
                "part_raw_bytes": raw,
                "bytes_on_disk": on_disk,
                **(_against(_rate(bare_tokens, bare), sink_rate, _rate(tokens, whole)) if case.prompts == 1 else {}),
                **_memory(whole),
            }
        )


def _against(model: float, sink: float, whole: float) -> dict[str, Any]:
    """How near an extraction is to the slower of the model, which runs bare passes here, and the sink."""
    return {
        "slower_of_model_and_sink": "model" if model < sink else "sink",
        "share_of_slower": whole / min(model, sink),
    }


def _show(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def _rate(tokens: int, peak: Peak) -> float:
    return tokens / peak.seconds


def _memory(peak: Peak) -> dict[str, float]:
    return {"gpu_peak_gib": peak.gpu / GIB, "host_peak_gib": peak.host / GIB}


def _captured_bytes(array: PartArray) -> int:
    return math.prod(array.shape) * getattr(torch, array.attributes.get("captured_dtype", array.dtype)).itemsize


def _write(store: Path, content: PartContent) -> None:
    store.mkdir()
    write_part(store, content, plan_sha256="0" * 64)


def _machine(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_gib": None if gpu is None else round(gpu.total_memory / GIB, 1),
        "cores": os.cpu_count(),
        "host_memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "zarr", "numcodecs")},
    }


if __name__ == "__main__":
    main()
