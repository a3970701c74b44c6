"""The token axis against a list of captured rows that is cut by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.capture.assemble import CapturedSample, lay_token_axis

Row = tuple[str, int, int, int]

# Per image: its shared prefix, and for each prompt how many own rows and whether the sample is usable.
IMAGES = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=4)),
    max_size=5,
)


@given(IMAGES)
def test_every_good_sample_finds_its_rows_and_nothing_else_is_kept(
    images: list[tuple[int, list[tuple[int, bool]]]],
) -> None:
    samples: list[CapturedSample] = []
    captured: list[Row] = []
    sequences: list[list[Row]] = []
    for image, (prefix, prompts) in enumerate(images):
        shared: list[Row] = [("shared", image, 0, row) for row in range(prefix)]
        captured += shared
        for prompt, (own, good) in enumerate(prompts):
            rows: list[Row] = [("own", image, prompt, row) for row in range(own)]
            captured += rows
            samples.append(CapturedSample(image, prefix, own, good))
            if good:
                sequences.append(shared + rows)
    axis = lay_token_axis(samples)
    kept = captured if axis.rows is None else [captured[row] for row in axis.rows]
    assert len(kept) == axis.length == len(set(kept))
    assert len(axis.segments) == len(sequences)
    for segments, sequence in zip(axis.segments, sequences, strict=True):
        assert [row for start, stop in segments for row in kept[start:stop]] == sequence
        assert all(stop > start for start, stop in segments)
        assert len(segments) <= 2
    assert set(kept) == {row for sequence in sequences for row in sequence}
    assert kept == [row for row in captured if row in set(kept)], "the order of capture stays"


@given(IMAGES)
def test_without_bad_samples_no_row_is_copied(images: list[tuple[int, list[tuple[int, bool]]]]) -> None:
    samples = [
        CapturedSample(image, prefix, own, True) for image, (prefix, prompts) in enumerate(images) for own, _ in prompts
    ]
    assert lay_token_axis(samples).rows is None


def test_a_prefix_stays_when_the_sample_it_was_captured_with_is_bad() -> None:
    axis = lay_token_axis([CapturedSample(0, 4, 2, False), CapturedSample(0, 4, 3, True)])
    assert axis.segments == (((0, 4), (4, 7)),)
    np.testing.assert_array_equal(axis.rows, [0, 1, 2, 3, 6, 7, 8])


def test_nothing_is_left_of_an_image_whose_samples_are_all_bad() -> None:
    axis = lay_token_axis(
        [CapturedSample(0, 4, 2, False), CapturedSample(0, 4, 3, False), CapturedSample(1, 0, 2, True)]
    )
    assert axis.segments == (((0, 2),),)
    np.testing.assert_array_equal(axis.rows, [9, 10])
