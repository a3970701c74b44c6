"""Small sources on disk."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

Row = dict[str, object]

IMAGES: list[Row] = [
    {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 6, "width": 8},
    {"id": 139, "file_name": "000000000139.jpg", "height": 6, "width": 8},
    {"id": "seven", "file_name": "sub/seven.jpg"},
]
ANNOTATIONS: list[Row] = [
    {"id": 12, "image_id": 139, "caption": "A room with a table. \n"},
    {"id": 9, "image_id": 139, "caption": "  a living room"},
    {"id": 100, "image_id": 391895, "caption": "A man on a moped"},
    {"id": "b", "image_id": "seven", "caption": "second"},
    {"id": "a", "image_id": "seven", "caption": "first"},
]


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (10, 20, 30)).save(path)


def write_coco(
    folder: Path, images: Sequence[object] = IMAGES, annotations: Sequence[object] = ANNOTATIONS
) -> tuple[Path, Path]:
    """Write a captions file and its image root; return both. Only images that can lie in the root are written."""
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for row in images:
        name = row.get("file_name") if isinstance(row, dict) else None
        if isinstance(name, str) and re.fullmatch(r"\w[\w/]*\.jpg", name, re.ASCII):
            write_image(root / name)
    path = folder / "captions.json"
    path.write_text(json.dumps({"info": {}, "images": list(images), "annotations": list(annotations)}))
    return path, root


def write_folder(root: Path, names: Sequence[str], lines: Sequence[str] | None = None) -> Path:
    for name in names:
        write_image(root / name)
    if lines is not None:
        (root / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root
