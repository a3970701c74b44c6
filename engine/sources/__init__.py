"""Where images and captions come from: readers by kind, the choice of images, the image loader."""

from engine.sources.choose import choose
from engine.sources.images import ImageFolder, LoadedImage, load_image
from engine.sources.records import ImageReader, ImageRecord, Source, UnreadableImage
from engine.sources.registry import SOURCES, read_source

__all__ = [
    "SOURCES",
    "ImageFolder",
    "ImageReader",
    "ImageRecord",
    "LoadedImage",
    "Source",
    "UnreadableImage",
    "choose",
    "load_image",
    "read_source",
]
