"""Consolidated metadata of a finished Zarr group, as zarr-python writes it.

zarr's own function warns that the convention is not yet in the specification, and silencing a warning is a change to
the whole process, which a writer thread must not make. So the nodes' ``zarr.json`` files are put together here.
"""

import json
from pathlib import Path

__all__ = ["consolidate"]


def consolidate(root: Path) -> None:
    """Put the metadata of every node below a Zarr v3 group into the group's own ``zarr.json``.

    Parameters
    ----------
    root
        Folder of the group. Readers that do not know consolidated metadata ignore it (``must_understand`` is false).
    """
    nodes = {}
    for folder in sorted(path.parent for path in root.glob("*/**/zarr.json")):
        node = json.loads((folder / "zarr.json").read_bytes())
        if node["node_type"] == "group":
            node["consolidated_metadata"] = _inline({})
        nodes[folder.relative_to(root).as_posix()] = node
    own = json.loads((root / "zarr.json").read_bytes())
    own["consolidated_metadata"] = _inline(nodes)
    (root / "zarr.json").write_text(json.dumps(own, indent=2))


def _inline(nodes: dict[str, object]) -> dict[str, object]:
    return {"kind": "inline", "must_understand": False, "metadata": nodes}
