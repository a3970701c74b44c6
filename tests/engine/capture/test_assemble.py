"""The token axis against a list of tokens that is put together one by one."""

from hypothesis import given
from hypothesis import strategies as st

from engine.capture.assemble import StoredSample, lay_token_axis

# Per image: rows of its shared prefix, and for each stored prompt how many rows of its own.
IMAGES = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=4)), min_size=0, max_size=5
)


@given(IMAGES)
def test_every_sample_finds_its_prefix_and_its_own_rows_and_nothing_else_is_there(
    images: list[tuple[int, list[int]]],
) -> None:
    samples: list[StoredSample] = []
    axis: list[tuple[object, ...]] = []
    sequences: list[list[tuple[object, ...]]] = []
    for image, (prefix, prompts) in enumerate(images):
        shared: list[tuple[object, ...]] = [("shared", image, row) for row in range(prefix)]
        axis += shared
        for prompt, own in enumerate(prompts):
            rows: list[tuple[object, ...]] = [("own", image, prompt, row) for row in range(own)]
            axis += rows
            samples.append(StoredSample(image, prefix, own))
            sequences.append(shared + rows)
    segments, length = lay_token_axis(samples)
    assert length == len(axis)
    assert len(segments) == len(samples)
    for own_segments, sequence in zip(segments, sequences, strict=True):
        assert [row for start, stop in own_segments for row in axis[start:stop]] == sequence
        assert all(stop > start for start, stop in own_segments)
        assert len(own_segments) <= 2


def test_samples_without_any_stored_token_have_no_segment() -> None:
    assert lay_token_axis([StoredSample(0, 0, 0), StoredSample(1, 0, 2)]) == (((), ((0, 2),)), 2)


def test_nothing_stored_is_an_empty_axis() -> None:
    assert lay_token_axis([]) == ((), 0)
