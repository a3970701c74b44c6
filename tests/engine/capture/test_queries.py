"""Queries by name: which position of a sample each one is, and which names are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.capture.queries import check_query_names, query_positions
from engine.errors import UsageError
from engine.vocabulary import ROLE_CODES, ROLES

ROLE = np.array([ROLE_CODES[name] for name in ("special", "preamble", "image", "image", "instruction", "template")])


def test_named_queries_are_the_last_positions_of_their_kind() -> None:
    assert query_positions(ROLE, ["last_text", "last_image"]).tolist() == [5, 3]
    image_last = ROLE[[0, 4, 2]]
    assert query_positions(image_last, ["last_image", "last_text"]).tolist() == [2, 1]


def test_a_query_that_the_sample_does_not_have_is_minus_one() -> None:
    names = ["last_image", "image:0", "template:1", "template:-2", "target:0", "template:0"]
    positions = query_positions(ROLE[[0, 1, 5]], names)
    assert positions.tolist() == [-1, -1, -1, -1, -1, 2]
    assert positions.dtype == np.int32


@given(
    role=st.lists(st.integers(0, len(ROLES) - 1), max_size=12).map(lambda codes: np.array(codes, dtype=np.int32)),
    name=st.sampled_from(ROLES),
    index=st.integers(-14, 14),
)
def test_role_and_index_count_as_a_list_does(role: np.ndarray, name: str, index: int) -> None:
    places = [place for place, code in enumerate(role.tolist()) if ROLES[code] == name]
    try:
        expected = places[index]
    except IndexError:
        expected = -1
    assert query_positions(role, [f"{name}:{index}"]).tolist() == [expected]


@pytest.mark.parametrize(
    "names", [("last_text", "last_image"), ("instruction:0", "template:-1"), tuple(f"{role}:3" for role in ROLES)]
)
def test_names_of_positions_pass(names: tuple[str, ...]) -> None:
    check_query_names(names)


@pytest.mark.parametrize(
    "name", ["first_text", "instruction", "instruction:", "instruction:1.5", "patch:0", "image: 0"]
)
def test_other_names_are_refused_with_what_can_be_written(name: str) -> None:
    with pytest.raises(UsageError, match=r"query .* is unknown: write last_text, last_image or ROLE:INDEX"):
        check_query_names(["last_text", name])


def test_a_name_twice_and_no_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'last_text' stands 2 times"):
        check_query_names(["last_text", "last_image", "last_text"])
    with pytest.raises(UsageError, match="no query is named"):
        check_query_names([])
