"""Chunks that decompress to more than they should: a Blosc header that claims gigabytes, or honestly holds them.

The length that the header claims is compared with the chunk's shape before a byte is allocated for it, and the chunk's
own length with the bytes that there are, because Blosc follows its header out of its buffer. A shard's index may only
point into its file.
"""

from pathlib import Path

import numpy as np
import pytest
from numcodecs.blosc import Blosc

from engine.store.codecs import checksum
from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import reseal

STATES, ROLE = f"{PART}.zarr/token/hidden_states/c/0/0/0", f"{PART}.zarr/token/role/c/0"


def claim(content: bytes) -> bytes:
    return content[:4] + (2**31 - 64).to_bytes(4, "little") + content[8:]


def hold(_content: bytes) -> bytes:
    return bytes(Blosc(cname="zstd", clevel=1, shuffle=1, blocksize=2**20).encode(np.zeros(2**27, np.uint8)))


def lead_astray(content: bytes) -> bytes:
    """Place the first block 1.5 GiB behind the chunk's start, in a chunk that says it is longer than that."""
    flags, first = content[2] & ~2, 3 * 2**29  # compressed, not stored as it is
    ends = (2**31 - 1).to_bytes(4, "little") + first.to_bytes(4, "little")
    return content[:2] + bytes([flags]) + content[3:12] + ends + content[20:]


@pytest.mark.parametrize("bomb", [claim, hold, lead_astray])
def test_a_coordinate(store: Path, tmp_path: Path, bomb: object) -> None:
    assert callable(bomb)
    encoded = bomb((store / ROLE).read_bytes()[:-4])
    (store / ROLE).write_bytes(encoded + checksum(encoded))
    reseal(store)
    said = "token/role.*(does not hold the .* bytes that its array's shape needs|are the most)"
    withstand(store, Refusals(None, None, said, None, said), tmp_path / "results")


@pytest.mark.parametrize("bomb", [claim, hold, lead_astray])
def test_a_chunk_of_a_shard(store: Path, tmp_path: Path, bomb: object) -> None:
    assert callable(bomb)
    content = (store / STATES).read_bytes()
    index = np.frombuffer(content[-36:-4], "<u8").copy()
    encoded = bomb(content[: index[1] - 4])
    index[:] = 0, len(encoded) + 4, 0, len(encoded) + 4
    end = index.tobytes()
    (store / STATES).write_bytes(encoded + checksum(encoded) + end + checksum(end))
    reseal(store)
    said = "hidden_states.*(of another size|does not hold the|are the most)"
    withstand(store, Refusals(None, None, said, None, said), tmp_path / "results")


@pytest.mark.parametrize("entry", [(0, 2**62), (2**62, 100), (0, 2**33)])
def test_an_index_that_leads_elsewhere(store: Path, tmp_path: Path, entry: tuple[int, int]) -> None:
    content = (store / STATES).read_bytes()
    end = np.array([entry, entry], "<u8").tobytes()
    (store / STATES).write_bytes(content[:-36] + end + checksum(end))
    reseal(store)
    withstand(store, Refusals(None, None, "hidden_states", None, "hidden_states"), tmp_path / "results")


def test_a_file_of_a_terabyte(store: Path, tmp_path: Path) -> None:
    with (store / STATES).open("r+b") as file:
        file.truncate(2**40)
    said = "has 1099511627776 bytes"
    withstand(store, Refusals(None, said, said, None, "1,099,511,627,776 bytes, .* are the most"), tmp_path / "results")
