"""Where an image grid lies on the image: the box of pixels that a processor's resize and centre crop keep.

CLIP-style processors resize (to a shortest edge, or to an exact size) and cut the centre out. Both are linear maps with
integer rounding, so the kept box is known from the sizes alone, and a patch of the grid is a rectangle in it. Boxes are
in pixels of the upright original with continuous edges: pixel i spans [i, i + 1). Where a crop is larger than the
resized image the processor pads with black, and the box reaches outside the image.

Rounding follows transformers' Pillow processors. The torchvision ones differ in one case: where a crop is larger than
the resized image by an odd number, their box starts one resized pixel later.
"""

from typing import NamedTuple

from engine.errors import StrataError

__all__ = ["Box", "Exact", "Preprocessing", "ShortestEdge", "covered_box", "preprocessing_of"]


class ShortestEdge(NamedTuple):
    """Resize so that the shorter side has ``size`` pixels, keeping the aspect ratio."""

    size: int

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing; the longer side is rounded down."""
        short, long = min(width, height), max(width, height)
        new_long = int(self.size * long / short)
        return (self.size, new_long) if width <= height else (new_long, self.size)


class Exact(NamedTuple):
    """Resize to this size, whatever the aspect ratio."""

    height: int
    width: int

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing, the same for every image."""
        return self.width, self.height


class Box(NamedTuple):
    """A rectangle, in pixels of the upright original: ``x`` to the right, ``y`` down."""

    x0: float
    y0: float
    x1: float
    y1: float


class Preprocessing(NamedTuple):
    """What an image processor does to the place of pixels, in this order.

    Attributes
    ----------
    square
        First pad the shorter side on both ends to a square (LLaVA's processor with ``do_pad``).
    resize
        Then resize; None leaves the size.
    crop
        Then cut (height, width) out of the centre; None keeps all.
    """

    square: bool
    resize: ShortestEdge | Exact | None
    crop: tuple[int, int] | None


def covered_box(
    width: int,
    height: int,
    *,
    resize: ShortestEdge | Exact | None,
    crop: tuple[int, int] | None,
    square: bool = False,
) -> Box:
    """Compute which box of the image is seen.

    Parameters
    ----------
    width, height
        Of the upright original, in pixels.
    resize, crop, square
        As in `Preprocessing`.

    Returns
    -------
    Box
        Its corners are the corners of the processor's output.
    """
    side = max(width, height)
    pad_x, pad_y = ((side - width) // 2, (side - height) // 2) if square else (0, 0)
    if square:
        width = height = side
    new_width, new_height = (width, height) if resize is None else resize.target(width, height)
    crop_height, crop_width = (new_height, new_width) if crop is None else crop
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    scale_x, scale_y = width / new_width, height / new_height
    return Box(
        left * scale_x - pad_x,
        top * scale_y - pad_y,
        (left + crop_width) * scale_x - pad_x,
        (top + crop_height) * scale_y - pad_y,
    )


def preprocessing_of(processor: object) -> Preprocessing:
    """Read the geometry from a transformers image processor; its fields are `covered_box`'s keywords.

    Parameters
    ----------
    processor
        Anything with the attributes ``do_resize``, ``size``, ``do_center_crop``, ``crop_size`` and ``do_pad`` in their
        usual meaning; a missing or empty one counts as switched off.

    Raises
    ------
    StrataError
        If a switched-on step has settings whose geometry is not known: a size that is neither a shortest edge nor
        height and width, or padding that is not to a square.
    """
    resize: ShortestEdge | Exact | None = None
    crop = None
    if getattr(processor, "do_resize", None):
        edge, height, width, others = _sizes(processor, "size")
        if edge is not None and height is None and width is None and not others:
            resize = ShortestEdge(edge)
        elif edge is None and height is not None and width is not None and not others:
            resize = Exact(height, width)
        else:
            raise _unknown(processor, "size", "shortest_edge alone, or height and width")
    if getattr(processor, "do_center_crop", None):
        edge, height, width, others = _sizes(processor, "crop_size")
        if height is None or width is None or edge is not None or others:
            raise _unknown(processor, "crop_size", "height and width")
        crop = (height, width)
    square = bool(getattr(processor, "do_pad", None))
    if square and not hasattr(processor, "pad_to_square"):
        raise _unknown(processor, "do_pad", "false, or to pad to a square")
    return Preprocessing(square, resize, crop)


def _sizes(processor: object, name: str) -> tuple[int | None, int | None, int | None, bool]:
    """Return shortest edge, height and width of a size, and whether it asks for anything else."""
    value = getattr(processor, name, None)
    entries: dict[str, int | None] = {} if value is None or isinstance(value, int) else dict(value)
    known = [entries.pop(key, None) for key in ("shortest_edge", "height", "width")]
    return known[0], known[1], known[2], any(entry is not None for entry in entries.values())


def _unknown(processor: object, name: str, rule: str) -> StrataError:
    return StrataError(
        f"the image processor {type(processor).__name__} has {name} = {getattr(processor, name, None)}, but where a "
        f"patch lies on the image is known for {rule}; check preprocessor_config.json of the model"
    )
