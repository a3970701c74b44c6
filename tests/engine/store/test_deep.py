"""What was wrong when it was hashed: verify finds nothing, verify --deep names it by file, array, layer and sample."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.store import verify
from engine.vocabulary import ROLE_CODES
from tests.engine.store.builders import tiny_store
from tests.engine.store.forge import change_array, change_json, change_record, change_table, reseal
from tests.engine.store.test_verify import flip

EVERYTHING = ("attention", "attention-mass", "attention-output", "mlp-output")
ZARR = "parts/00000000.zarr"
TABLE = "parts/00000000.parquet"
MANIFEST = "parts/00000000.json"
SECOND = "000/normal-2"
BAD = "NaN or infinity where a value is kept"
IMAGE, TARGET, TEMPLATE = (ROLE_CODES[name] for name in ("image", "target", "template"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep") / "store"
    return tiny_store(folder, layers=3, dim=8, empty_parts=1, capture=EVERYTHING).path


@pytest.fixture
def store(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "store"))


@pytest.mark.parametrize(
    "options",
    [
        {"capture": EVERYTHING, "empty_parts": 1},
        {"dtype": "bfloat16", "mantissa_bits": 4},
        {"roles": ("image", "instruction"), "capture": ("attention",)},
        {"shared_prefix": False, "residual": False},
        {"pooled": False, "layers": (0, 3), "unembedding": False},
    ],
    ids="-".join,
)
def test_a_sound_store(tmp_path: Path, options: dict[str, Any]) -> None:
    reports: list[tuple[int, int]] = []
    path = tiny_store(tmp_path / "store", dim=8, **({"layers": 3} | options)).path
    assert verify(path, lambda done, total: reports.append((done, total)), deep=True) == ((), ())
    assert reports[-1][0] == reports[-1][1] > 0
    assert len({total for _, total in reports}) == 2, "of hashing, then of decoding"


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.4", "1.0"])
def test_stores_of_every_version(version: str) -> None:
    found = verify(Path(__file__).parents[2] / "golden" / version, deep=True)
    # The attention_mass of two of them counts up, to be recognised: it is no attention.
    assert all(problem.message.startswith("token/attention_mass") for problem in found.problems)
    assert (len(found.problems), found.notes) == (2 if version in ("0.3", "0.4") else 0, ())


def put(*place: int | slice, value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(place, value)


def swap_masses(values: np.ndarray) -> None:
    """Of the last position of the first sample, which has a row: they still add up to 1."""
    values[1, :, 8, :] = values[1, :, 8, ::-1]


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("token/hidden_states", put(2, 7, 3, value=np.nan), f"layer 2 holds {BAD}: sample 000/normal-1, token 7"),
        ("token/hidden_states", put(1, 10, 0, value=np.inf), f"layer 1 holds {BAD}: sample {SECOND}, token 10"),
        ("token/value_norm", put(1, 0, 3, value=-1), "block 2 holds a negative value: sample 000/normal-1, head 0"),
        ("token/attention_mass", put(0, 1, 2, 3, value=np.nan), "block 1 holds NaN or infinity"),
        ("token/attention_mass", put(0, 1, 3, 0, value=0.9), "block 1 holds masses that do not add up to 1: sample"),
        ("token/attention_mass", swap_masses, "block 2 is not the sum of the row of key/attention beside it: sample"),
        ("sample/mean", put(1, IMAGE, 0, 2, value=0.7), "layer 1 is not the mean of the hidden states beside it: "
         "sample 000/normal-1, role image, dim 2 is 0.7, not "),
        ("sample/unit_mean", put(2, TEMPLATE, 1, 5, value=0.3), "layer 2 is not the mean of unit vectors of the hidden "
         f"states beside it: sample {SECOND}, role template, dim 5 is 0.3, not "),
        ("token/mlp_output", put(1, 2, 3, value=-np.inf), "block 2 holds NaN or infinity"),
        ("key/attention", put(1, 0, 1, 2, value=0.9), "block 2 has a row that sums to"),
        ("key/attention", put(0, 0, 0, 12, value=np.nan), f"block 1 holds {BAD}: sample {SECOND}, query 0"),
        ("key/attention_norm", put(0, 0, 12, value=-1), f"block 1 holds a negative value: sample {SECOND}"),
        ("sample/unit_mean", put(0, IMAGE, 1, slice(None), value=2), "layer 0 holds a mean of unit vectors that is"),
        ("sample/unit_mean", put(2, TARGET, 1, 0, value=0), "layer 2 holds a value where none is kept: sample"),
        ("sample/mean", put(1, IMAGE, 0, 0, value=np.nan), "layer 1 holds NaN or infinity"),
        ("sample/normed_unit_mean", put(IMAGE, 0, 0, value=np.nan), f"holds {BAD}: sample 000/normal-1"),
    ],
)  # fmt: skip
def test_values(store: Path, array: str, change: Callable[[np.ndarray], None], message: str) -> None:
    change_array(store, array, change)
    problem, *more = verify(store, deep=True).problems
    assert problem.file == f"{ZARR}/{array}/c/0" + "/0" * (len(array_dims(array)) - 1)
    assert problem.message.startswith(f"{array} {message}")
    assert {other.file for other in more} <= {problem.file}


def array_dims(array: str) -> tuple[str, ...]:
    name = array.split("/")[1]
    lengths = {"attention": 4, "attention_mass": 4, "unit_mean": 4, "mean": 4}
    return ("any",) * lengths.get(name, 3)


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("token/role", put(0, value=ROLE_CODES["preamble"]), "other counts than its tokens' roles"),
        ("token/role", put(9, value=ROLE_CODES["special"]), f"token 9 of sample {SECOND} is special, which vocab"),
        ("token/role", put(0, value=99), "token 0 of sample 000/normal-1 has a role that is not stored (99)"),
        ("token/token_id", put(8, value=8), "id outside of the vocabulary (8)"),
        ("token/position", put(1, value=5), "positions that do not run"),
        ("token/grid", put(0, value=0), "lies on a grid and is no image token"),
        ("token/patch_row", put(2, value=2), "token outside of its grids"),
        ("token/patch_col", put(2, value=1), "two tokens on one patch"),
        ("token/layer", put(0, value=1), "has [1, 1, 2], captured were [0, 1, 2]"),
        ("key/block", put(0, value=2), "has [2, 2], captured were [1, 2]"),
        ("key/token", put(1, value=0), "sample 000/normal-1 has keys that are not its tokens"),
        ("key/role", put(9, value=1), "keys that are not what their tokens are"),
        ("sample/token_count", put(IMAGE, 1, value=9), "sample 000/normal-2 has other counts"),
    ],
)  # fmt: skip
def test_coordinates(store: Path, array: str, change: Callable[[np.ndarray], None], message: str) -> None:
    change_array(store, array, change)
    found = verify(store, deep=True).problems
    assert any(message in problem.message for problem in found), found
    named = "token/grid" if "patch" in array else "sample/token_count" if "counts" in message else array
    assert any(problem.file == f"{ZARR}/{named}/zarr.json" for problem in found)


def row(number: int, **changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[number].update(changes)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (TABLE, row(0, segments=[{"start": 0, "stop": 99}]), "sample 000/normal-1 has a segment 0:99 on an axis of"),
        (TABLE, row(1, segments=[]), "tokens that belong to no sample"),
        (TABLE, row(0, image_id="001"), "another image"),
        (TABLE, row(0, key_start=1), "sample 000/normal-1 has the keys 1:"),
        (TABLE, row(0, query_positions=[99, 0]), "has queries at [99, 0] of"),
        (TABLE, row(0, query_positions=None), "sample 000/normal-1 has the keys 0:0"),
        (TABLE, row(0, sample_id=SECOND), "accounts for no sample 000/normal-1"),
        (TABLE, row(0, sample_id=SECOND), f"holds sample {SECOND} twice"),
        ("plan.parquet", row(0, sample_id=SECOND), f"plans sample {SECOND} twice"),
        ("plan.parquet", row(0, sample_id="x/y"), "calls a sample x/y, which is not its image and prompt"),
        ("vocab.parquet", row(3, token_id=4), "one row per token id"),
        ("vocab.parquet", row(0, kind="normal"), "is special, which vocab.parquet does not say of its id (0)"),
        ("vocab.parquet", row(3, kind="odd"), "knows a kind 'odd' of pieces"),
        ("vocab.parquet", lambda rows: rows.pop(), "has 7 pieces for 8 rows of the unembedding"),
    ],
)  # fmt: skip
def test_tables(store: Path, table: str, change: Callable[[list[dict[str, Any]]], object], message: str) -> None:
    change_table(store, table, change)
    found = verify(store, deep=True).problems
    assert any(message in problem.message for problem in found), found


def test_hashes_alone_do_not_find_it(store: Path) -> None:
    change_array(store, "token/hidden_states", put(2, 7, 3, value=np.nan))
    change_table(store, TABLE, row(1, segments=[]))
    assert verify(store) == ((), ())
    assert len(verify(store, deep=True).problems) > 1


def test_the_models_weights(store: Path) -> None:
    change_array(store, "unembedding", put(5, 1, value=np.nan), "model.zarr")
    change_array(store, "final_norm_weight", put(1, value=np.inf), "model.zarr")
    assert {problem.file: problem.message for problem in verify(store, deep=True).problems} == {
        "model.zarr/unembedding/c/0/0": "holds a value that is not finite",
        "model.zarr/final_norm_weight/zarr.json": "holds a weight that is not finite, or has another width",
    }


def test_bfloat16_has_no_low_bits(tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "store", layers=3, dim=8, dtype="bfloat16").path
    change_array(path, "token/hidden_states", put(1, 2, 3, value=1.0001))
    *means, problem = verify(path, deep=True).problems
    assert all("of the hidden states beside it" in mean.message for mean in means)
    assert (
        problem.message
        == "token/hidden_states layer 1 holds a value that no bfloat16 has: sample 000/normal-1, token 2, dim 3"
    )


def test_what_is_not_kept_holds_nothing(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden/1.0"
    path = Path(shutil.copytree(golden, tmp_path / "store"))
    change_array(path, "token/lens_token_id", put(0, 0, 0, value=5))
    change_array(path, "token/lens_logit", put(slice(None), slice(None), 1, value=99))
    messages = [problem.message for problem in verify(path, deep=True).problems]
    assert any(
        message.startswith("token/lens_token_id layer 0 holds a value where none is kept") for message in messages
    )
    assert any("holds a logit above the one before it" in message for message in messages)


def test_metadata_that_says_two_things(store: Path) -> None:
    change_json(store, "token/hidden_states", lambda node: node["attributes"].update(units="m"))
    (problem,) = verify(store, deep=True).problems
    assert (problem.file, "other attributes" in problem.message) == (f"{ZARR}/token/hidden_states/zarr.json", True)
    change_json(store, "token/hidden_states", lambda node: node["attributes"].update(units="1"), copy=False)
    (problem,) = verify(store, deep=True).problems
    assert (problem.file, "repeats token/hidden_states otherwise" in problem.message) == (f"{ZARR}/zarr.json", True)


def test_an_array_that_was_captured_and_is_not_there(store: Path) -> None:
    shutil.rmtree(store / ZARR / "token/mlp_output")
    change_record(store / MANIFEST, lambda record: record["arrays"].pop("token/mlp_output"))
    reseal(store)
    messages = [problem.message for problem in verify(store, deep=True).problems]
    assert "has no token/mlp_output, although mlp-output was captured" in messages


def test_a_chunk_that_cannot_be_decoded(store: Path) -> None:
    flip(store / ZARR / "token/hidden_states/c/0/0/0")
    assert "another sha256" in verify(store, deep=True).problems[0].message
    assert "values were not looked at" in verify(store, deep=True).notes[0]
    reseal(store)
    (problem,) = verify(store, deep=True).problems
    assert problem.file == f"{ZARR}/token/hidden_states/c/0/0/0"
    assert "cannot be decoded" in problem.message


def test_a_part_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", layers=2, dim=4, images=2, parts=2).path
    change_json(store, "token/hidden_states", lambda node: node.update(dimension_names=["layer", "token", "width"]))
    change_array(store, "token/hidden_states", lambda values: values.fill(np.inf), "parts/00000001.zarr")
    found = verify(store, deep=True).problems
    assert {file.split("/")[1].partition(".")[0] for file, _ in found} == {"00000000", "00000001"}
