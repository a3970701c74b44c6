import contextlib
import hashlib
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.sources import ImageFolder, ImageRecord, LoadedImage, UnreadableImage, load_image

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 9, 4), dtype=np.uint8)
RGB = Image.fromarray(PIXELS[..., :3])

UPRIGHT = {  # EXIF orientation → what brings the stored pixels upright, as the EXIF standard defines it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def load(path: Path) -> LoadedImage:
    return load_image(ImageRecord("a", path.name, ()), ImageFolder(path.parent))


def check(path: Path, expected: np.ndarray) -> None:
    image = load(path)
    np.testing.assert_array_equal(np.asarray(image.pixels), expected)
    assert image.pixels.mode == "RGB"
    assert (image.width, image.height) == (expected.shape[1], expected.shape[0])
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    RGB.save(path, exif=exif)
    check(path, UPRIGHT[orientation](PIXELS[..., :3]))


def grey16() -> Image.Image:
    return Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 37)


@pytest.mark.parametrize(
    ("image", "extension"),
    [
        (Image.fromarray(PIXELS, "RGBA"), "png"),
        (Image.fromarray(PIXELS[..., 0]), "png"),
        (Image.fromarray(PIXELS[..., 0]).convert("LA"), "png"),
        (Image.fromarray(PIXELS[..., 0] > 99), "png"),
        (grey16(), "png"),
        (grey16(), "tif"),
        (RGB.quantize(7), "png"),
        (RGB.quantize(7), "gif"),
        (RGB.convert("CMYK"), "jpg"),
        (RGB.convert("CMYK"), "tif"),
        (RGB, "webp"),
        (RGB, "bmp"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_every_mode_becomes_rgb_as_pillow_converts(tmp_path: Path, image: Image.Image, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    image.save(path)
    with Image.open(path) as stored:
        check(path, np.asarray(stored.convert("RGB")))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS, "RGBA").save(path)
    check(path, PIXELS[..., :3])


def test_grey16_saturates(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey16().save(path)
    clipped = np.minimum(np.arange(54).reshape(6, 9) * 37, 255).astype(np.uint8)
    check(path, np.repeat(clipped[..., None], 3, axis=2))


@pytest.mark.parametrize("transparency", [bytes([0, 128, 255]), 2])
def test_transparent_palette_entries_keep_their_colour(tmp_path: Path, transparency: bytes | int) -> None:
    palette = RGB.quantize(7)
    path = tmp_path / "a.png"
    palette.save(path, transparency=transparency)
    with Image.open(path) as stored:
        assert "transparency" in stored.info
    colours = np.asarray(palette.getpalette()).reshape(-1, 3)
    check(path, colours[np.asarray(palette)].astype(np.uint8))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load(path).pixels.getcolors() == [(16, (255, 0, 0))]


def png_header(width: int, height: int) -> bytes:
    """Make a PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(tmp_path: Path, extension: str) -> bytes:
    path = tmp_path / f"whole.{extension}"
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def refusal(path: Path) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        load(path)
    error = caught.value
    assert str(path) in str(error)
    assert error.reason in str(error)
    assert str(path.parent) not in error.reason
    assert 0 < len(error.reason) < 100
    assert "0x" not in error.reason
    assert error.exit_code == 1
    return error


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated(tmp_path: Path, extension: str, share: float) -> None:
    data = encoded(tmp_path, extension)
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image at all")
    (tmp_path / "folder.png").mkdir()
    assert refusal(tmp_path / "zero.png").reason == "empty file"
    assert refusal(tmp_path / "text.png").reason == "no image format that Pillow knows"
    assert refusal(tmp_path / "folder.png").reason == "is a directory"
    assert refusal(tmp_path / "missing.png").reason == "no such file"


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decompression_bomb(tmp_path: Path, side: int, action: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        assert refusal(path).reason == f"more than {Image.MAX_IMAGE_PIXELS} pixels"


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    for extension in ("png", "jpg", "gif", "tif", "webp"):
        data = np.frombuffer(encoded(tmp_path, extension), np.uint8)
        for _ in range(20):
            damaged = data.copy()
            damaged[RANDOM.integers(0, min(len(data), 200), 8)] = RANDOM.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(UnreadableImage):
                assert load(path).pixels.mode == "RGB"


def test_pillow_waits_for_the_first_image() -> None:
    code = "import sys, engine.sources, engine.prompts; print({'PIL', 'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "set()"
