"""The scenes that are shipped: PNG files and their captions in the official COCO format."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from data.train.captions import CAPTIONS, caption
from data.train.scenes import SIDE, Scene, draw, scenes

__all__ = ["DEMO_SCENES", "DEMO_SEED", "demo_scenes", "write_demo_scenes"]

DEMO_SEED = 4
DEMO_SCENES = 96


def demo_scenes() -> list[Scene]:
    """Return the shipped scenes, in the order of their ids (1, 2, …)."""
    return list(islice(scenes(DEMO_SEED), DEMO_SCENES))


def write_demo_scenes(folder: Path) -> None:
    """Write ``images/*.png`` and ``captions.json`` into ``folder``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, scene in enumerate(demo_scenes(), start=1):
        name = f"COCO_demo2014_{image_id:012d}.png"
        draw(scene).save(folder / "images" / name, optimize=True)
        images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE, "license": 1})
        for style in range(CAPTIONS):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption(scene, style)})
    document = {
        "info": {"description": "Synthetic scenes of coloured shapes", "version": "1.0", "year": 2026},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / "captions.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
