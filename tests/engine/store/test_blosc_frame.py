"""Frames are decoded by Blosc itself, and by hand from the bytes as its format has them."""

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from numcodecs.blosc import Blosc

from engine.store import blosc_frame, widen_bfloat16
from engine.store.blosc_frame import BLOCK_BYTES, encode_frame
from engine.store.codecs import states_sizes

RNG = np.random.default_rng
CONTENTS = {
    "normal": lambda shape: RNG(0).standard_normal(shape).astype(np.float32),
    "bits": lambda shape: RNG(1).integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),
    "zeros": lambda shape: np.zeros(shape, np.float32),
    "nan": lambda shape: np.full(shape, np.nan, np.float32),
    "equal rows": lambda shape: np.broadcast_to(RNG(2).standard_normal(shape[1:], dtype=np.float32), shape),
    "late zeros": lambda shape: np.where(np.arange(shape[0])[:, None] % 3, 0, RNG(3).standard_normal(shape)),
}


def make(content: str, dtype: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What is encoded, and what it is to be decoded to."""
    values = np.ascontiguousarray(CONTENTS[content](shape), np.float32)
    if dtype == "bfloat16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits, widen_bfloat16(bits)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.view(np.int32) if dtype == "int32" else values.astype(dtype)
    return stored, stored


def decode(frame: np.ndarray, like: np.ndarray) -> np.ndarray:
    decoded = np.empty_like(like)
    blosc.decompress(frame.tobytes(), decoded)
    return decoded


@pytest.fixture(params=[BLOCK_BYTES, 3000, 512])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blosc_frame, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_blocks")
@settings(max_examples=60)
@given(
    st.sampled_from(sorted(CONTENTS)),
    st.sampled_from(["float16", "bfloat16", "float32", "int32"]),
    st.tuples(st.integers(1, 60), st.one_of(st.integers(1, 9), st.integers(100, 140))),
)
def test_blosc_decodes_every_frame(content: str, dtype: str, shape: tuple[int, int]) -> None:
    values, expected = make(content, dtype, shape)
    frame = encode_frame(values, expected.itemsize)
    assert decode(frame, expected).tobytes() == expected.tobytes()
    assert states_sizes(frame, expected.nbytes)
    assert len(frame) <= expected.nbytes + blosc.MAX_OVERHEAD
    assert int.from_bytes(frame[8:12].tobytes(), "little") <= blosc_frame.BLOCK_BYTES


@pytest.mark.parametrize("content", sorted(CONTENTS))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32"])
@pytest.mark.parametrize(("shape", "share"), [((2048, 1024), 1.001), ((383, 4096), 1.005)])
def test_chunks_of_full_size_are_no_longer_than_bloscs_own(
    content: str, dtype: str, shape: tuple[int, int], share: float
) -> None:
    """The second shape's last block is shorter, so that all its planes are one stream."""
    values, expected = make(content, dtype, (shape[0] // (1 if dtype == "float16" else 2), shape[1]))
    frame = encode_frame(values, expected.itemsize)
    assert decode(frame, expected).tobytes() == expected.tobytes()
    theirs = Blosc(cname="zstd", clevel=1, shuffle=1, blocksize=BLOCK_BYTES).encode(expected)
    streams = expected.itemsize * -(-expected.nbytes // BLOCK_BYTES)
    assert len(frame) <= share * len(theirs) + 20 * streams  # what begins and ends each


def read_by_hand(frame: bytes) -> tuple[np.ndarray, list[int]]:
    """Bytes (value, byte of value) and the length of each stream of a frame whose blocks are all equally long."""
    version, zstd, flags, itemsize = frame[:4]
    size, block, end = struct.unpack("<3i", frame[4:16])
    assert (version, zstd, flags, end, size % block) == (2, 1, 0x81, len(frame), 0)
    length, lengths, blocks = block // itemsize, [], []
    for at in struct.unpack_from(f"<{size // block}i", frame, 16):
        planes, place = [], at
        for _ in range(itemsize):
            (taken,) = struct.unpack_from("<i", frame, place)
            stream = frame[place + 4 : place + 4 + taken]
            planes.append(stream if taken == length else zstandard.decompress(stream))
            lengths.append(taken)
            place += 4 + taken
        blocks.append(np.array([np.frombuffer(plane, np.uint8) for plane in planes]).T)
    return np.concatenate(blocks), lengths


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_planes_are_streams_of_their_own_and_mantissas_stay_as_they_are(dtype: str) -> None:
    values, expected = make("normal", dtype, (512, 1024))
    decoded, lengths = read_by_hand(encode_frame(values, expected.itemsize).tobytes())
    assert decoded.tobytes() == expected.tobytes()
    blocks = -(-expected.nbytes // BLOCK_BYTES)
    length = values.size // blocks
    *low, exponent = np.array(lengths).reshape(blocks, expected.itemsize).T
    assert (exponent < 0.8 * length).all()
    if dtype == "bfloat16":
        assert (np.array(low[:2]) < 40).all()
    assert (low[-1] == length).all()


def test_a_plane_that_gains_only_in_places_is_compressed() -> None:
    """What is not kept is NaN, whose mantissas are all alike, while those of the others do not compress."""
    values, _ = make("normal", "float16", (512, 1024))
    values[100:] = np.nan
    _, lengths = read_by_hand(encode_frame(values, 2).tobytes())
    assert lengths[0] < 0.25 * values.size


def test_repeated_rows_are_found_however_far_apart() -> None:
    rows, _ = make("normal", "bfloat16", (32, 1024))
    once, again = (len(encode_frame(np.tile(rows, (times, 1)), 4)) for times in (1, 8))
    assert again < 1.5 * once


@pytest.mark.parametrize("noise", [slice(0, 2**19), slice(2**19, 2**20)])
def test_what_a_plane_gains_is_not_judged_by_one_end(noise: slice) -> None:
    """Half of the values are noise in both bytes, the others in the low one alone."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**16, 2**20, dtype=np.uint16)
    plain = np.ones(len(bits), bool)
    plain[noise] = False
    bits[plain] = bits[plain] & 0x03FF | 0x3C00
    frame = encode_frame(bits.reshape(-1, 4096), 2)
    np.testing.assert_array_equal(np.frombuffer(Blosc().decode(frame), np.uint16), bits)
    assert len(frame) < 0.85 * bits.nbytes, "of the high byte a quarter is left where it is not noise: 13/16"
