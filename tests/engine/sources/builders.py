"""Small sources on disk."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


KARPATHY: list[Row] = [
    {
        "filepath": "val2014",
        "sentids": [681330, 686718],
        "filename": "COCO_val2014_000000522418.jpg",
        "imgid": 1,
        "split": "val",
        "sentences": [
            {"tokens": ["a", "woman"], "raw": " A woman cutting a cake. \n", "imgid": 1, "sentid": 681330},
            {"tokens": ["a", "cake"], "raw": "A cake", "imgid": 1, "sentid": 686718},
        ],
        "cocoid": 522418,
    },
    {
        "filepath": "val2014",
        "sentids": [1, 2, 3, 4, 5, 6],
        "filename": "COCO_val2014_000000318219.jpg",
        "imgid": 0,
        "split": "restval",
        "sentences": [
            {"tokens": [], "raw": f"caption {number}", "imgid": 0, "sentid": number} for number in (6, 5, 4, 3, 2, 1)
        ],
        "cocoid": 318219,
    },
    {
        "filepath": "train2014",
        "sentids": [7],
        "filename": "COCO_train2014_000000057870.jpg",
        "imgid": 2,
        "split": "train",
        "sentences": [
            {"tokens": [], "raw": "a table", "imgid": 2, "sentid": 7},
            {"tokens": [], "raw": " \n", "imgid": 2, "sentid": 8},
        ],
        "cocoid": 57870,
    },
]
FLICKR: list[Row] = [
    {
        "sentids": [0, 1],
        "imgid": number,
        "sentences": [
            {"tokens": ["two", "men"], "raw": f"Two young guys {number}", "imgid": number, "sentid": 5 * number}
        ],
        "split": split,
        "filename": f"100009279{number}.jpg",
    }
    for number, split in enumerate(("train", "val", "test", "test"))
]


def write_karpathy(folder: Path, rows: Sequence[object] = KARPATHY, *, dataset: str = "coco") -> tuple[Path, Path]:
    """Write a Karpathy split and its images; return both."""
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if isinstance(row, dict) and re.fullmatch(r"\w+\.jpg", str(row.get("filename")), re.ASCII):
            write_image(root / str(row.get("filepath") or ".") / str(row["filename"]))
    path = folder / f"dataset_{dataset}.json"
    path.write_text(json.dumps({"images": list(rows), "dataset": dataset}))
    return path, root


def png(number: int) -> bytes:
    """An encoded image like no other."""
    stream = io.BytesIO()
    Image.new("RGB", (20 + number % 7, 18), (number % 256, 40, 200)).save(stream, "PNG")
    return stream.getvalue()


IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How Hugging Face datasets stores its Image feature."""
IMAGE_COLUMNS = ("image", "image_0", "image_1")


def write_parquet(path: Path, columns: dict[str, pa.Array | list[object]], **options: object) -> Path:
    """Write a Parquet file; a list under ``image``, ``image_0`` or ``image_1`` becomes a column of image structs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: pa.array(values, IMAGE_STRUCT) if name in IMAGE_COLUMNS and isinstance(values, list) else values
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path, **options)
    return path


def winoground_items(count: int) -> list[Row]:
    """Lines of ``examples.jsonl``, as published."""
    return [
        {
            "id": number,
            "image_0": f"ex_{number}_img_0",
            "image_1": f"ex_{number}_img_1",
            "caption_0": f"some plants surrounding lightbulb {number}",
            "caption_1": f"a lightbulb {number} surrounding some plants",
            "tag": "Noun",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": "Object",
        }
        for number in range(count)
    ]


def write_winoground(folder: Path, items: Sequence[Row]) -> tuple[Path, Path]:
    """Write ``examples.jsonl`` and the images that its items name; return file and folder."""
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for place, item in enumerate(items):
        for side in (0, 1):
            name = item.get(f"image_{side}")
            if isinstance(name, str) and re.fullmatch(r"\w+", name):
                number = item["id"] if isinstance(item.get("id"), int) else place
                (root / f"{name}.png").write_bytes(png(2 * number + side))
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path, root


def write_winoground_parquet(
    path: Path, items: Sequence[Row], *, images: dict[str, list[object]] | None = None
) -> Path:
    """Write the Parquet export of the same items, images embedded; ``images`` replaces one or both of the columns."""
    columns: dict[str, pa.Array | list[object]] = {key: [item[key] for item in items] for key in items[0]}
    for side in (0, 1):
        columns[f"image_{side}"] = [
            {"bytes": png(2 * int(str(item["id"])) + side), "path": f"{item[f'image_{side}']}.png"} for item in items
        ]
    return write_parquet(path, columns | (images or {}))
