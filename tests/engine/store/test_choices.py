import numpy as np
import pytest

from engine.errors import UsageError
from engine.store.choices import kept_roles, layer_indices, role_codes
from engine.vocabulary import ROLES


def test_layers_are_found_by_number_in_the_order_asked() -> None:
    assert layer_indices([0, 2, 5], None) == (0, 1, 2)
    assert layer_indices([0, 2, 5], 5) == (2,)
    assert layer_indices([0, 2, 5], np.int32(2)) == (1,)
    assert layer_indices([0, 2, 5], np.array([5, 0], np.int32)) == (2, 0)


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        ([0, 2, 5], 1, "layer 1 is not stored: stored are 0, 2, 5"),
        (range(41), [3, 41], "layer 41 is not stored: stored are 0 to 40"),
        ([4], -1, "layer -1 is not stored: stored are 4"),
        ([3, 4], [], "no layer is named: stored are 3, 4"),
    ],
)
def test_other_layers_are_refused_with_those_there_are(stored: list[int], asked: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        layer_indices(stored, asked)


def test_a_tensor_without_a_choice_of_its_own_has_that_of_all() -> None:
    capture = {
        "roles": ["image", "template"],
        "tensor_roles": {"residual": ["image"]},
    }
    assert kept_roles(capture, "residual") == ("image",)
    assert kept_roles(capture, "attention") == ("image", "template")
    assert kept_roles({"roles": None}, "residual") is None
    assert kept_roles({}, "residual") is None


def test_roles_are_found_by_name() -> None:
    assert role_codes(None, None) is None
    assert role_codes(None, "image") == (2,)
    assert role_codes(["image", "instruction"], ("instruction", "image")) == (3, 2)


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        (None, "picture", f"tokens of role 'picture' are not stored: stored are {', '.join(ROLES)}"),
        (["image"], ["image", "template"], "tokens of role 'template' are not stored: stored are image"),
        (None, [], f"no role is named: stored are {', '.join(ROLES)}"),
    ],
)
def test_other_roles_are_refused_with_those_there_are(stored: list[str] | None, asked: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        role_codes(stored, asked)
