"""Where images and captions come from: readers by kind, the choice of images, the image loader."""

from engine.sources.choose import choose
from engine.sources.images import LoadedImage, UnreadableImage, load_image
from engine.sources.records import ImageRecord, Source
from engine.sources.registry import SOURCES, read_source

__all__ = [
    "SOURCES",
    "ImageRecord",
    "LoadedImage",
    "Source",
    "UnreadableImage",
    "choose",
    "load_image",
    "read_source",
]
