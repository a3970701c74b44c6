"""Source ``folder``: the images below a folder, with captions where there is a ``captions.jsonl``.

Every file with an image's extension counts, in subfolders too, sorted by its path with ``/`` as separator. Names that
start with a dot are left out (editors and archives leave such files beside images), and links to directories are not
followed. The image id is the path without its extension; two files that would share one (``a.png``, ``a.jpg``) are
refused, because any way of telling them apart would rename images when a file is added.

Captions come one JSON object per line, ``{"file_name": "a.jpg", "caption": "…"}`` or ``{"file_name": "a.jpg",
"captions": ["…", "…"]}``; several lines may speak of one image and add up in the order of the file. Without the file
all images simply have no captions.
"""

import hashlib
import os
from pathlib import Path

from engine.errors import StrataError
from engine.inputs import InputFile, is_text
from engine.sources.images import ImageFolder
from engine.sources.options import check_root, refuse_split, require_images
from engine.sources.records import ImageRecord, Source, relative_uri

__all__ = ["EXTENSIONS", "read_folder"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What counts as an image, in lower case."""

CAPTIONS = "captions.jsonl"
FORMAT = 'one JSON object per line, {"file_name": "…", "caption": "…"} or {"file_name": "…", "captions": ["…", …]}'


def read_folder(annotations: Path | None, images: Path | None, split: str | None) -> Source:
    """Read a folder of images.

    Parameters
    ----------
    annotations
        The captions file; None takes ``captions.jsonl`` of the folder if it is there.
    images
        The folder; required.
    split
        Must be None: a folder has no splits.

    Raises
    ------
    UsageError
        If ``images`` is None or ``split`` is not.
    StrataError
        If the folder is missing or holds no image, two images share an id, a name is not UTF-8, or the captions file
        is malformed or speaks of an image that is not there; the message has the number of the line.
    """
    refuse_split("folder", split)
    root = require_images("folder", images)
    uris = _image_uris(root)
    captions: dict[str, list[str]] = {uri: [] for uri in uris}
    sha256, warnings = None, []
    if annotations is not None or (root / CAPTIONS).exists():
        file = InputFile(annotations or root / CAPTIONS, "captions file", FORMAT, "--annotations and --images")
        data = file.read()
        _add_captions(file, data, captions)
        sha256 = hashlib.sha256(data).hexdigest()
        bare = sum(not lines for lines in captions.values())
        if bare:
            warnings.append(f"{bare} of {len(uris)} images have no caption in {file.path}; they are kept without one")
    records = tuple(ImageRecord(_image_id(uri), uri, tuple(captions[uri])) for uri in uris)
    return Source("folder", ImageFolder(root), records, sha256, tuple(warnings))


def _image_uris(root: Path) -> list[str]:
    """List the images below ``root``, sorted, with distinct ids."""
    check_root(root)
    uris = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                uris.append(Path(folder, name).relative_to(root).as_posix())
    if not uris:
        raise StrataError(f"the image folder {root} holds no image ({', '.join(sorted(EXTENSIONS))}); check --images")
    owners: dict[str, str] = {}
    for uri in sorted(uris):
        if not is_text(uri):
            raise StrataError(f"the file name {uri!r} below {root} is not UTF-8; rename the file")
        other = owners.setdefault(_image_id(uri), uri)
        if other != uri:
            raise StrataError(
                f"{other} and {uri} below {root} would both have the image id {_image_id(uri)} (the path without its "
                "extension); rename or remove one"
            )
    return sorted(uris)


def _image_id(uri: str) -> str:
    return os.path.splitext(uri)[0]


def _add_captions(file: InputFile, data: bytes, captions: dict[str, list[str]]) -> None:
    """Add every line's captions to its image."""
    for where, row in file.lines(data):
        if not isinstance(row, dict) or "file_name" not in row or ("caption" in row) == ("captions" in row):
            raise file.error(f"has no file name with either 'caption' or 'captions' {where}")
        texts = row["captions"] if "captions" in row else [row["caption"]]
        if not isinstance(texts, list) or not all(is_text(text) for text in texts):
            raise file.error(f"has a caption that is not text {where}")
        if not all(text.strip() for text in texts):
            raise file.error(f"has a blank caption {where}")
        try:
            uri = relative_uri(row["file_name"])
        except ValueError as error:
            raise file.error(f"is refused, because 'file_name' {where} {error}") from error
        if uri not in captions:
            raise file.error(f"speaks of {uri} {where}, which is not among the {len(captions)} images")
        captions[uri].extend(text.strip() for text in texts)
