"""One image from its bytes to what a model's processor is given.

Pixels are upright (EXIF orientation applied) and RGB exactly as Pillow converts, nothing else: no resize, no alpha
blending, no stretching of 16-bit grey. Of an animation it is the first frame. An image is read once, so the hash is
of the very bytes that were decoded. Pillow is imported on the first call, not with this package: planning needs none.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.sources.records import ImageReader, ImageRecord, UnreadableImage

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFolder", "LoadedImage", "load_image"]


class LoadedImage(NamedTuple):
    """A decoded image.

    Attributes
    ----------
    pixels
        Mode RGB, upright.
    width, height
        Of ``pixels``.
    sha256
        Of the encoded bytes, in hexadecimal.
    """

    pixels: "Image"
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class ImageFolder:
    """Images that are files below a folder, at their ``uri``."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def read(self, record: ImageRecord) -> bytes:
        """Return the file's bytes; see `ImageReader`."""
        path = self.root / record.uri
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UnreadableImage(str(path), "no such file") from error
        except IsADirectoryError as error:
            raise UnreadableImage(str(path), "is a directory") from error
        except OSError as error:
            raise UnreadableImage(str(path), error.strerror or "read error") from error


def load_image(record: ImageRecord, images: ImageReader) -> LoadedImage:
    """Read and decode one image.

    Raises
    ------
    UnreadableImage
        If it is missing, empty, truncated, damaged, no image that Pillow knows, or has more pixels than Pillow's limit
        against decompression bombs.
    """
    name = f"{images}/{record.uri}"
    data = images.read(record)
    if not data:
        raise UnreadableImage(name, "empty file")
    pixels = _decode(name, data)
    return LoadedImage(pixels, pixels.width, pixels.height, hashlib.sha256(data).hexdigest())


def _decode(name: str, data: bytes) -> "Image":
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415

    too_large = f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow only warns up to twice its limit; one limit for all, whatever the warning filters.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise UnreadableImage(name, too_large)
            upright = ImageOps.exif_transpose(image)
            # The colours stay as they are; Pillow would warn that transparent entries of a palette are lost.
            upright.info.pop("transparency", None)
            return upright.convert("RGB")
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(name, too_large) from error
    except UnidentifiedImageError as error:
        # Its message has an object's address in it, different in every run.
        raise UnreadableImage(name, "no image format that Pillow knows") from error
    except Exception as error:  # a decoder at work on damaged bytes raises whatever it stumbles over
        raise UnreadableImage(name, str(error) or type(error).__name__) from error
