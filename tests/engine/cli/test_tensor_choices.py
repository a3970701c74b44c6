"""Tables of the TOML file: finer choices for one tensor, what they cost and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from engine.cli.sizes import format_bytes
from engine.errors import UsageError
from engine.store import open_store, verify
from tests.engine.cli.conftest import Dataset

Strata = Callable[..., Result]

OF_BLOCKS = ("attention", "mlp-output")
TABLES = """
capture = ["residual", "attention", "mlp-output"]
queries = "last_image"
[residual]
dtype = "float16"
[attention]
blocks = "2:"
queries = ["last_text", "instruction:-1"]
dtype = "float16"
[mlp-output]
blocks = [2, 3, 4]
dtype = "float32"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TABLES)
    return path


def test_tables_choose_and_estimate_prices_them(strata: Strata, dataset: Dataset, tmp_path: Path, config: Path) -> None:
    options = dataset.arguments("--config", config)
    extracted = strata("extract", *options, "--out", tmp_path / "fine")
    assert extracted.exit_code == 0, extracted.output
    whole = [*dataset.arguments("--capture", "residual,attention,mlp-output", "--queries", "last_text,instruction:-1")]
    assert strata("extract", *whole, "--out", tmp_path / "whole").exit_code == 0
    assert verify(tmp_path / "fine").problems == ()
    fine, coarse = open_store(tmp_path / "fine"), open_store(tmp_path / "whole")
    assert fine.queries == ("last_text", "instruction:-1")
    for name, blocks in (("attention", 1), ("attention_norm", 1), ("value_norm", 1), ("hidden_states", 0)):
        stored, captured = getattr(fine, name), getattr(coarse, name)
        assert (stored.dtype, stored.attrs["captured_dtype"]) == (np.float16, "float32")
        exact = captured.values[blocks:]
        np.testing.assert_array_equal(stored, exact.astype(np.float16))
        error = np.nanmax(np.abs(stored.values.astype(np.float64) - exact))
        assert stored.attrs["rounding_max_absolute_error"] == error > 0
    np.testing.assert_array_equal(fine.mlp_output, coarse.mlp_output[1:])
    assert fine.record["capture"]["dtypes"] == {"residual": "float16", "attention": "float16"}

    estimate = strata("estimate", *options).stdout
    rows = {line.split()[0]: line for line in estimate.splitlines() if line}
    for path, entry in fine.parts[0].manifest["arrays"].items():
        if len(entry["shape"]) > 1:
            size = int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize
            assert f"  {entry['dtype']}  " in rows[path]
            assert f"  {format_bytes(size)}  " in rows[path]

    inspected = strata("inspect", tmp_path / "fine").stdout
    assert "blocks 2..4; attention of last_text, instruction:-1; attention as float16, residual as float16" in inspected


def test_the_command_line_wins_over_a_table(strata: Strata, dataset: Dataset, tmp_path: Path, config: Path) -> None:
    out = tmp_path / "store"
    result = strata("extract", *dataset.arguments("--config", config, "--queries", "template:0", "--out", out))
    assert result.exit_code == 0, result.output
    assert open_store(out).queries == ("template:0",)
    other = strata("extract", *dataset.arguments("--config", config, "--out", out))
    assert other.exit_code == 2
    assert "capture.queries: stored template:0, asked last_text, instruction:-1" in other.stderr


def test_hidden_states_of_fewer_layers_than_pooled_states(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[residual]\nlayers = [1, 4]\n")
    out, options = tmp_path / "fine", dataset.arguments("--config", config)
    assert strata("extract", *options, "--out", out).exit_code == 0
    assert strata("extract", *dataset.arguments("--out", tmp_path / "whole")).exit_code == 0
    fine, whole = open_store(out), open_store(tmp_path / "whole")
    assert (fine.layers.tolist(), fine.state_layers.tolist()) == ([0, 1, 2, 3, 4], [1, 4])
    assert fine.hidden_states["layer"].values.tolist() == [1, 4]
    np.testing.assert_array_equal(fine.hidden_states, whole.hidden_states[[1, 4]])
    np.testing.assert_array_equal(fine.mean, whole.mean)
    tokens = next(iter(fine.tokens(layer=4, batch=1000))).states
    np.testing.assert_array_equal(tokens, whole.hidden_states[4])
    with pytest.raises(UsageError, match="layer 2 is not stored: stored are 1, 4"):
        fine.tokens(layer=2)
    norms = fine.map_samples(lambda sample: {"layers": sample["layer"].values, "dim": sample.sizes["dim"]}, layers=[4])
    assert norms["layers"].tolist() == [[4]] * 5

    assert "layer 2 × token" in strata("estimate", *options).stdout
    assert "hidden states of layers 1, 4" in strata("inspect", out).stdout
    audited = strata("audit", out, "--model", dataset.model, "--images", dataset.images, "--samples", 2)
    assert audited.exit_code == 0, audited.output
    analyzed = strata("analyze", "contextualization", out, "--out", tmp_path / "results")
    assert analyzed.exit_code == 0, analyzed.output
    curves = pd.read_parquet(tmp_path / "results" / "contextualization.parquet")
    assert sorted(curves["layer"].unique()) == [0, 1, 2, 3, 4]
    refused = strata("analyze", "contextualization", out, "--out", tmp_path / "r", "--source", "hidden_states")
    assert (refused.exit_code, "holds pooled" in refused.stderr) == (2, True)


def test_layers_of_the_command_line_are_for_every_tensor(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("layers = '0:3'\n[residual]\nlayers = 2\n")
    for options, layers, state_layers in (
        (("--layers", "3,4"), [3, 4], [3, 4]),
        ((), [0, 1, 2], [2]),
        (("--capture", "residual"), [2], [2]),
    ):
        out = tmp_path / f"store-{len(layers)}"
        result = strata("extract", *dataset.arguments("--config", config, *options, "--out", out))
        assert result.exit_code == 0, result.output
        assert (open_store(out).layers.tolist(), open_store(out).state_layers.tolist()) == (layers, state_layers)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("[nose]\ntopk = 1", "has a table [nose]; options stand at the top of the file"),
        ("[lens]\ntopk = 1", "sets 'topk' in [lens], which takes layers, roles"),
        ("[lens]\nlayers = 1", "table [lens] chooses what is kept of lens, but --capture leaves lens out"),
        ("[attention]\nlayers = 1", "sets 'layers' in [attention], which takes blocks, roles, queries, dtype"),
        ("[mlp-output]\nqueries = 1", "sets 'queries' in [mlp-output], which takes blocks, roles, dtype"),
        ("[pooled]\nroles = 'image'", "has a table [pooled], but pooled states always cover every role"),
        ("[residual]\nroles = 'nose'", "[residual] roles 'nose': 'nose' is unknown; choose from special, preamble"),
        ("[attention]\nroles = []", "[attention] roles '': no name is given"),
        ("[mlp-output]\nroles = 'target'", "[mlp-output] roles 'target': no prompt of this run has a token of such a"),
        ("[attention-mass]\nroles = 'image'", "table [attention-mass] chooses what is kept of attention-mass, but --"),
        (
            "roles = 'image'\n" + "".join(f"[{name}]\nroles = 'image'\n" for name in ("residual", *OF_BLOCKS)),
            "--roles 'image' chooses for nothing: every tensor of --capture has roles in its own table",
        ),
        (
            "[attention-mass]\nblocks = 1",
            "table [attention-mass] chooses what is kept of attention-mass, but --capture",
        ),
        ("[attention]\nblocks = 5", "[attention] blocks '5': block 5 does not exist; this model has blocks 1 to 4"),
        ("[attention]\nblocks = []", "[attention] blocks '': '' is neither a block nor a range"),
        ("[attention]\ndtype = 'int8'", "[attention] dtype 'int8': tensors are stored as float16 or float32"),
        ("[attention]\nqueries = 'nose:1'", "query 'nose:1' is unknown"),
    ],
)
def test_what_a_table_cannot_say_is_refused(
    strata: Strata, dataset: Dataset, tmp_path: Path, tables: str, message: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f"capture = 'residual,pooled,attention,mlp-output'\n{tables}\n")
    for command in (("estimate",), ("extract", "--out", tmp_path / "store")):
        result = strata(*command, *dataset.arguments("--config", config))
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "store").exists()


def test_manifests_say_how_the_run_computed(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    options = ("--capture", "attention", "--batch-size", 3, "--samples-per-part", 4)
    assert strata("extract", *dataset.arguments("--out", out, *options)).exit_code == 0
    manifests = [json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))]
    longest = int((open_store(out).samples["key_stop"] - open_store(out).samples["key_start"]).max())
    assert [manifest["run"]["largest_batch"] for manifest in manifests] == [
        {"samples": samples, "positions": longest} for samples in (3, 1)
    ]
    run = manifests[0]["run"]
    libraries = {"activation-strata", "torch", "transformers", "zarr", "numcodecs", "zstandard", "pyarrow", "numpy"}
    assert set(run["versions"]) == {"python", *libraries}
    assert (run["dtype"], run["padding_side"], run["device"]) == ("float32", "left", "cpu")
    assert run["attention_kernel"]
    assert run["model_revision"] == open_store(out).record["model"]["revision"]
