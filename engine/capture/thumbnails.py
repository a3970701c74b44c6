"""A small copy of an image, for figures that are drawn where the data set is not."""

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LONGEST_SIDE", "make_thumbnail"]

LONGEST_SIDE = 448
_QUALITY = 85


def make_thumbnail(pixels: "Image") -> bytes:
    """Encode an upright RGB image as a JPEG whose longest side is at most :data:`LONGEST_SIDE`; never enlarged.

    Nothing but pixels gets into it: no EXIF, no comment.
    """
    small = pixels.copy()
    small.info = {}
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    encoded = BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()
