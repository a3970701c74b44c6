"""One image from its file to what a model's processor is given.

Pixels are upright (EXIF orientation applied) and RGB exactly as Pillow converts, nothing else: no resize, no alpha
blending, no stretching of 16-bit grey. Of an animation it is the first frame. The file is read once, so the hash is of
the very bytes that were decoded. Pillow is imported on the first call, not with this package: planning needs none.
"""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import StrataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LoadedImage", "UnreadableImage", "load_image"]


class LoadedImage(NamedTuple):
    """A decoded image.

    Attributes
    ----------
    pixels
        Mode RGB, upright.
    width, height
        Of ``pixels``.
    sha256
        Of the file's bytes, in hexadecimal.
    """

    pixels: "Image"
    width: int
    height: int
    sha256: str


class UnreadableImage(StrataError):  # noqa: N818 - says what the image is
    """An image that cannot be decoded; ``reason`` says why in a few words, without a path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the image {path} cannot be read: {reason}; replace the file or take it out of the source")
        self.reason = reason


def load_image(path: Path) -> LoadedImage:
    """Read and decode one image.

    Raises
    ------
    UnreadableImage
        If the file is missing, a directory, empty, truncated, damaged, no image that Pillow knows, or has more pixels
        than Pillow's limit against decompression bombs.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UnreadableImage(path, "no such file") from error
    except IsADirectoryError as error:
        raise UnreadableImage(path, "is a directory") from error
    except OSError as error:
        raise UnreadableImage(path, error.strerror or "read error") from error
    if not data:
        raise UnreadableImage(path, "empty file")
    pixels = _decode(path, data)
    return LoadedImage(pixels, pixels.width, pixels.height, hashlib.sha256(data).hexdigest())


def _decode(path: Path, data: bytes) -> "Image":
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415

    too_large = f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow only warns up to twice its limit; one limit for all, whatever the warning filters.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise UnreadableImage(path, too_large)
            upright = ImageOps.exif_transpose(image)
            # The colours stay as they are; Pillow would warn that transparent entries of a palette are lost.
            upright.info.pop("transparency", None)
            return upright.convert("RGB")
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(path, too_large) from error
    except UnidentifiedImageError as error:
        # Its message has an object's address in it, different in every run.
        raise UnreadableImage(path, "no image format that Pillow knows") from error
    except Exception as error:  # a decoder at work on damaged bytes raises whatever it stumbles over
        raise UnreadableImage(path, str(error) or type(error).__name__) from error
