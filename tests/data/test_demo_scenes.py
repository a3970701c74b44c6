"""The shipped scenes and captions: official COCO format, and exactly what the script draws."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data.train.captions import CAPTIONS, parse
from data.train.demo import demo_scenes, write_demo_scenes
from data.train.scenes import SIDE, draw

FOLDER = Path(__file__).resolve().parents[2] / "data" / "demo"
DOCUMENT = json.loads((FOLDER / "captions.json").read_text(encoding="utf-8"))


def test_the_document_has_the_official_layout() -> None:
    assert {"info", "licenses", "images", "annotations"} <= set(DOCUMENT)
    assert all({"id", "file_name", "width", "height"} <= set(image) for image in DOCUMENT["images"])
    assert all(set(annotation) == {"id", "image_id", "caption"} for annotation in DOCUMENT["annotations"])
    for key in ("images", "annotations"):
        ids = [entry["id"] for entry in DOCUMENT[key]]
        assert len(set(ids)) == len(ids)


def test_every_image_exists_and_has_five_captions() -> None:
    assert len(DOCUMENT["images"]) >= 64
    files = {path.name for path in (FOLDER / "images").iterdir()}
    assert files == {image["file_name"] for image in DOCUMENT["images"]}
    counts = Counter(annotation["image_id"] for annotation in DOCUMENT["annotations"])
    assert counts == {image["id"]: CAPTIONS for image in DOCUMENT["images"]}
    assert CAPTIONS == 5


def test_files_are_the_drawn_scenes_and_captions_name_them() -> None:
    said: dict[int, list[str]] = {}
    for annotation in DOCUMENT["annotations"]:
        said.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for image, scene in zip(DOCUMENT["images"], demo_scenes(), strict=True):
        with Image.open(FOLDER / "images" / image["file_name"]) as file:
            assert (file.format, file.mode, file.size) == ("PNG", "RGB", (SIDE, SIDE))
            assert (image["width"], image["height"]) == file.size
            assert np.array_equal(np.asarray(file), np.asarray(draw(scene)))
        for text in said[image["id"]]:
            claim = parse(text)
            assert claim is not None
            assert claim.objects == tuple(item.kind for item in scene.objects)


def test_writing_again_gives_the_same_captions_file(tmp_path: Path) -> None:
    write_demo_scenes(tmp_path)
    assert (tmp_path / "captions.json").read_bytes() == (FOLDER / "captions.json").read_bytes()
    assert len(list((tmp_path / "images").iterdir())) == len(DOCUMENT["images"])
