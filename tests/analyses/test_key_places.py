import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.key_places import SEGMENTS, find_sinks, key_places
from engine.vocabulary import ROLES
from tests.analyses.attention_builders import Spec

LETTERS = st.text("spint", min_size=1, max_size=30)


def placed(roles: str) -> str:
    own = key_places(Spec("", "", roles).codes)
    return " ".join(f"{SEGMENTS[segment][0]}{offset}" for segment, offset in zip(own.segment, own.offset, strict=True))


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("spiiitnnt", "b0 b1 i0 i1 i2 a0 a1 a2 e-1"),
        ("spiiitnnnntt", "b0 b1 i0 i1 i2 a0 a1 a2 a3 a4 e-2 e-1"),
        ("spiiitt", "b0 b1 i0 i1 i2 e-2 e-1"),  # no instruction: all behind the image is the template's end
        ("iisnnn", "i0 i1 a0 a1 a2 a3"),
        ("siptis", "b0 i0 i1 i2 i3 e-1"),  # what lies between tiles is of the image's stretch
        ("snt", "a0 a1 e-1"),
    ],
)
def test_places_of_known_sequences(roles: str, expected: str) -> None:
    assert placed(roles) == expected


@given(LETTERS)
def test_every_key_has_its_own_place_and_order_is_kept(roles: str) -> None:
    own = key_places(Spec("", "", roles).codes)
    places = list(zip(own.segment.tolist(), own.offset.tolist(), strict=True))
    assert len(set(places)) == len(roles)
    assert places == sorted(places)
    assert all((offset < 0) == (SEGMENTS[segment] == "end") for segment, offset in places)


@given(LETTERS, st.integers(0, 5))
def test_a_longer_instruction_moves_no_other_key(template: str, more: int) -> None:
    head, tail = "spii", template.replace("i", "t").replace("n", "t")
    short, long = (placed(f"{head}n{'n' * extra}{tail}").split() for extra in (0, more))
    assert short == long[:5] + long[5 + more :]


@given(LETTERS)
def test_sinks_are_position_0_and_the_first_special_token(roles: str) -> None:
    codes = Spec("", "", roles).codes
    expected = {0} | ({roles.index("s")} if "s" in roles else set())
    assert set(np.flatnonzero(find_sinks(codes)).tolist()) == expected
    assert ROLES[0] == "special"
