import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inputs import InputFile
from engine.sources import ImageRecord, UnreadableImage
from engine.sources.image_column import Embedded
from engine.sources.parquet_images import ParquetImages
from engine.sources.shards import open_shard
from tests.engine.sources.builders import IMAGE_STRUCT, write_parquet

ROOT = Path(__file__).parents[3]


def write(folder: Path, images: list[bytes], **options: object) -> dict[str, Embedded | Path]:
    """Write images into a shard; return the place of each under its number."""
    column = pa.array([{"bytes": image, "path": None} for image in images], IMAGE_STRUCT)
    path = write_parquet(folder / "a.parquet", {"image": column}, **options)
    shard = open_shard("a.parquet", InputFile(path, "file", "Parquet", "--annotations"))
    return {str(row): Embedded(shard, "image", row) for row in range(len(images))}


def record(number: int) -> ImageRecord:
    return ImageRecord(str(number), f"{number}.png", ())


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=20),
    group=st.integers(1, 8),
    block_bytes=st.integers(1, 500),
    cache_bytes=st.integers(0, 2000),
    data=st.data(),
)
def test_every_row_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    group: int,
    block_bytes: int,
    cache_bytes: int,
    data: st.DataObject,
) -> None:
    random = np.random.default_rng(0)
    images = [random.bytes(size) for size in sizes]
    places = write(tmp_path_factory.mktemp("rows"), images, row_group_size=group)
    reader = ParquetImages(Path("x"), places, block_bytes=block_bytes, cache_bytes=cache_bytes)
    for number in data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=30)):
        assert reader.read(record(number)) == images[number]
        assert reader.cached_bytes <= cache_bytes


def test_many_threads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.bytes(500) for _ in range(200)]
    reader = ParquetImages(Path("x"), write(tmp_path, images, row_group_size=30), block_bytes=4000, cache_bytes=20_000)
    order = random.integers(0, 200, 1000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: reader.read(record(number)), order)) == [images[n] for n in order]
    assert 0 < reader.cached_bytes <= 20_000


def test_what_was_decoded_last_is_kept(tmp_path: Path) -> None:
    images = [bytes([number]) * 1000 for number in range(40)]
    reader = ParquetImages(Path("x"), write(tmp_path, images, row_group_size=10), cache_bytes=25_000)
    assert reader.read(record(0)) == images[0]
    (tmp_path / "a.parquet").unlink()
    assert reader.read(record(9)) == images[9], "the same row group needs no file"
    with pytest.raises(UnreadableImage) as caught:
        reader.read(record(10))
    assert caught.value.reason == "no such file"


def test_file_that_changed_after_planning(tmp_path: Path) -> None:
    places = write(tmp_path, [b"abc" * 50] * 6, compression="none", use_dictionary=False)
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnreadableImage) as caught:
        ParquetImages(path, places).read(record(3))
    assert caught.value.reason == "damaged row group of a.parquet"


def test_a_large_row_group_stays_out_of_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.bytes(100_000) for _ in range(400)]
    write(tmp_path, images, row_group_size=400, use_dictionary=False, write_batch_size=1, data_page_size=2**17)
    code = """
import sys, pyarrow as pa
from pathlib import Path
from engine.inputs import InputFile
from engine.sources import ImageRecord
from engine.sources.image_column import Embedded
from engine.sources.parquet_images import ParquetImages
from engine.sources.shards import open_shard
shard = open_shard("a", InputFile(Path(sys.argv[1]), "file", "Parquet", "--annotations"))
places = {str(row): Embedded(shard, "image", row) for row in range(400)}
reader = ParquetImages(Path("a"), places, block_bytes=2**20, cache_bytes=4 * 2**20)
for row in range(0, 400, 37):
    assert len(reader.read(ImageRecord(str(row), "a", ()))) == 100_000
print(pa.default_memory_pool().max_memory())
"""
    command = [sys.executable, "-c", code, tmp_path / "a.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 12 * 2**20, "40 MB of images, of which 4 MiB are kept and blocks of 1 MiB decoded"
