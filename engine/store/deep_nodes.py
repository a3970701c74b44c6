"""A part's Zarr metadata, which its manifest and its root repeat: all must say the same."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engine.store.array_metadata import StoredLayout, check_array_metadata, check_group_metadata
from engine.store.choices import lens_layers, state_layers
from engine.store.deep_axes import Axes
from engine.store.inventory import Problem
from engine.store.layout import PARTS_FOLDER
from engine.store.limits import METADATA_BYTES, RECORD_BYTES
from engine.store.manifest import parse_json
from engine.store.part import Part

__all__ = ["check_nodes", "check_numbers"]


def check_nodes(part: Part) -> Iterator[Problem]:
    """Compare each array's own metadata with the manifest's entry and with the consolidated copy in the root.

    Raises
    ------
    StrataError
        When metadata cannot be read.
    """
    folder = f"{PARTS_FOLDER}/{part.name}.zarr"
    root = _read(part, f"{folder}/zarr.json", RECORD_BYTES)
    check_group_metadata(root, f"{folder}/zarr.json")
    copy = root.get("consolidated_metadata")
    copies = copy.get("metadata") if isinstance(copy, dict) else None
    if not isinstance(copies, dict):
        yield Problem(f"{folder}/zarr.json", "has no consolidated metadata")
        copies = {}
    named: dict[str, set[str]] = {}
    for path, entry in part.manifest["arrays"].items():
        file = f"{folder}/{path}/zarr.json"
        node = _read(part, file, METADATA_BYTES)
        found = check_array_metadata(node, file)
        if (found.layout, found.attributes) != (StoredLayout.of(entry), entry["attributes"]):
            yield Problem(file, "describes another array, or other attributes, than the manifest")
        if copies.get(path, node) != node:
            yield Problem(f"{folder}/zarr.json", f"repeats {path} otherwise than it describes itself")
        if entry["coordinate"]:
            named.setdefault(path.split("/")[0], set()).add(path.split("/")[1])
    for group, names in named.items():
        file = f"{folder}/{group}/zarr.json"
        said = check_group_metadata(_read(part, file, METADATA_BYTES), file).get("coordinates")
        if set(str(said).split()) != names:
            yield Problem(file, f"names the coordinates {said}, the manifest {' '.join(sorted(names))}")


def check_numbers(part: Part, axes: Axes, capture: Mapping[str, Any]) -> Iterator[Problem]:
    """Compare the layers, blocks and queries of a part's axes with those that were captured."""
    states = state_layers(capture) if "residual" in capture.get("tensors", ()) else lens_layers(capture)
    blocks = capture.get("blocks", [])
    expected = {
        "token/layer": states,
        "sample/layer": capture["layers"],
        "token/block": blocks,
        "key/block": capture.get("tensor_blocks", {}).get("attention", blocks),
        "key/query": list(range(len(capture.get("queries", [])))),
    }
    for path, numbers in expected.items():
        found = axes.coordinates.get(path)
        if found is not None and not np.array_equal(found, numbers):
            file = f"{PARTS_FOLDER}/{part.name}.zarr/{path}/zarr.json"
            yield Problem(file, f"has {found.tolist()}, captured were {list(numbers)}")


def _read(part: Part, name: str, limit: int) -> dict[str, Any]:
    return parse_json(part.location.read(name, limit), f"{part.url}/{name}")
