"""Thumbnails: upright, small, without metadata, once per image and part, read back by image; only where asked for."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from engine.capture.thumbnails import LONGEST_SIDE, make_thumbnail
from engine.cli.main import main
from engine.errors import UsageError
from engine.store import open_store, verify
from tests.engine.capture.conftest import PROMPTS, SIZES, Extract


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8))


def decoded(thumbnail: bytes | None) -> Image.Image:
    assert thumbnail is not None
    image = Image.open(BytesIO(thumbnail))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


@pytest.mark.parametrize(
    ("size", "small"),
    [((900, 600), (448, 299)), ((600, 900), (299, 448)), ((448, 448), (448, 448)), ((3000, 500), (448, 75))],
)
def test_the_longest_side_is_bounded_and_the_picture_stays(size: tuple[int, int], small: tuple[int, int]) -> None:
    image = decoded(make_thumbnail(gradient(*size)))
    assert image.size == small
    assert max(image.size) <= LONGEST_SIDE
    expected = np.asarray(gradient(*small), np.float64)
    assert np.abs(np.asarray(image, np.float64) - expected).mean() < 4


def test_a_long_line_of_pixels_stays_a_line() -> None:
    assert decoded(make_thumbnail(gradient(5000, 2))).size == (448, 1)


def test_a_small_image_is_never_enlarged_and_stays_as_it_was() -> None:
    pixels = gradient(31, 17)
    before = pixels.tobytes()
    assert decoded(make_thumbnail(pixels)).size == (31, 17)
    assert (pixels.size, pixels.tobytes()) == ((31, 17), before)


def test_nothing_but_pixels_gets_into_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    gradient(60, 40).save(tmp_path / "a.jpg", comment="a secret name", exif=exif, icc_profile=b"secret profile")
    opened = Image.open(tmp_path / "a.jpg")
    opened.load()
    assert "comment" in opened.info
    assert b"secret" not in make_thumbnail(opened)


def test_they_are_stored_upright_once_per_image_and_part(extract: Extract, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = gradient(600, 900).transpose(Image.Transpose.ROTATE_90)
    turned.save(images / "turned.jpg", exif=exif, quality=95)
    gradient(40, 30).save(images / "plain.png")
    (images / "broken.png").write_bytes(b"no image")
    run = extract("--thumbnails", "--samples-per-part", "8", "--skip-bad-samples", images=images)
    assert run.exit_code == 0, run.output
    store = run.store
    assert verify(run.path).problems == ()
    rows = 0
    for part in store.parts:
        table = pq.read_table(run.path / "parts" / f"{part.name}.parquet").to_pylist()
        rows += len(table)
        firsts = {row["image_id"]: row["sample_id"] for row in reversed(table)}
        assert [row["sample_id"] for row in table if row["thumbnail"] is not None] == list(firsts.values())[::-1]
    assert rows == 2 * (len(PROMPTS) + 1)
    assert "thumbnail" not in store.samples
    image = decoded(store.thumbnail("turned"))
    assert image.size == (299, 448)
    expected = np.asarray(gradient(299, 448), np.float64)
    assert np.abs(np.asarray(image, np.float64) - expected).mean() < 4
    assert decoded(store.thumbnail("plain")).size == (40, 30)
    with pytest.raises(UsageError, match="is of image 'plane': did you mean plain"):
        store.thumbnail("plane")
    with pytest.raises(UsageError, match="is of image 'broken'"):
        store.thumbnail("broken")
    assert "shared prefix stored once; thumbnails" in CliRunner().invoke(main, ["inspect", str(run.path)]).output


def test_without_the_option_there_is_no_column_and_the_plan_is_another(extract: Extract) -> None:
    run = extract("--limit", "2")
    assert "thumbnail" not in pq.read_schema(run.path / "parts" / "00000000.parquet").names
    assert run.store.thumbnail(str(run.store.samples["image_id"].iloc[0])) is None
    again = extract("--limit", "2", "--thumbnails")
    assert again.exit_code != 0
    assert "capture.thumbnails: stored False, asked True" in again.output


def test_values_and_the_audit_are_as_without(extract: Extract, checkpoints: dict[str, Path], pictures: Path) -> None:
    run = extract("--thumbnails", "--limit", "2")
    store = run.store
    for row in store.samples.drop_duplicates("image_id").itertuples():
        width, height = SIZES[int(row.image_id.removeprefix("picture-"))]
        assert decoded(store.thumbnail(row.image_id)).size == (width, height)
    named = [run.path, "--model", checkpoints["float32"], "--images", pictures, "--samples", 2]
    audited = CliRunner().invoke(main, ["audit", *map(str, named)])
    assert audited.exit_code == 0, audited.output
    sample = open_store(run.path).sample(str(store.samples["sample_id"].iloc[0]))
    assert "thumbnail" not in sample.attrs


def test_estimate_says_that_they_are_not_counted(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path
) -> None:
    named = ["--model", checkpoints["float32"], "--source", "folder", "--images", pictures]
    said = [CliRunner().invoke(main, ["estimate", *map(str, named), *more]).output for more in ((), ("--thumbnails",))]
    assert ["thumbnails are not counted" in text for text in said] == [False, True]
