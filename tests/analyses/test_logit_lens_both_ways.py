"""Pieces that extraction stored and pieces computed from the stored states are the same, up to ties of the dtype."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from analyses.registry import run
from engine.cli.main import main
from engine.errors import UnfitStoreError, UsageError
from tests import tiny_llava
from tests.analyses.lens_builders import analyse

TOP = 4


@pytest.mark.parametrize(
    ("dtype", "tie"),
    # What logits of one state may differ by: float32 sums in another order; the final norm's weights and the
    # unembedding are stored exactly in all three, and states as they were captured.
    [("float32", 1e-4), ("float16", 1e-4), ("bfloat16", 1e-4)],
)
def test_both_ways_agree(tmp_path: Path, dtype: str, tie: float) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(3)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    model = tiny_llava.save_checkpoint(tmp_path / "model")
    arguments = ["extract", "--model", model, "--source", "folder", "--images", tmp_path / "images", "--device", "cpu",
                 "--dtype", dtype, "--prompts", "normal:2", "--capture", "residual,lens", "--lens-topk", str(TOP),
                 "--out", tmp_path / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    stored, computed = (
        analyse(tmp_path / "store", tmp_path / source, topk=TOP, source=source).words.reset_index(drop=True)
        for source in ("lens", "hidden_states")
    )
    places = ["sample_id", "layer", "position", "rank"]
    assert stored[places].equals(computed[places])
    assert len(stored) == 2 * 5 * 16 * TOP
    np.testing.assert_allclose(stored["logit"], computed["logit"], rtol=1e-5, atol=tie)
    logits = computed["logit"].to_numpy().reshape(-1, TOP)
    apart = np.pad(-np.diff(logits, axis=1) > tie, ((0, 0), (0, 1)), constant_values=True)
    apart[:, 1:] &= apart[:, :-1]
    same = (stored["token_id"] == computed["token_id"]).to_numpy().reshape(-1, TOP)
    assert same[apart].all()
    assert apart.mean() > 0.9


LAYERS_AND_ROLES = """
[residual]
roles = "image,template"
[lens]
layers = "1,3"
roles = "image"
"""


def test_layers_and_roles_of_their_own(tmp_path: Path) -> None:
    """Pieces of two layers beside states of all: auto takes what reaches further, and each source knows its layers."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20), (200, 30, 60)).save(tmp_path / "images" / "a.png")
    model = tiny_llava.save_checkpoint(tmp_path / "model")
    (tmp_path / "run.toml").write_text(LAYERS_AND_ROLES)
    arguments = ["extract", "--model", model, "--source", "folder", "--images", tmp_path / "images", "--device", "cpu",
                 "--prompts", "normal:1", "--capture", "residual,lens", "--lens-topk", "2",
                 "--config", tmp_path / "run.toml", "--out", tmp_path / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    told: list[str] = []
    found = {
        source: analyse(tmp_path / "store", tmp_path / source, topk=2, source=source, notify=told.append).words
        for source in ("auto", "lens", "hidden_states")
    }
    assert found["lens"]["layer"].unique().tolist() == [1, 3]
    assert found["hidden_states"]["layer"].unique().tolist() == [0, 1, 2, 3, 4]
    assert found["auto"].equals(found["hidden_states"])
    assert [text for text in told if "too few" in text] == [
        "store: its stored pieces are too few (layers 1, 3 alone), so pieces are decoded from hidden states; "
        "--layers 1,3 takes the stored ones"
    ]
    of_two = found["hidden_states"][found["hidden_states"]["layer"].isin([1, 3])]
    assert of_two["token_id"].tolist() == found["lens"]["token_id"].tolist()


def test_states_without_image_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20), (200, 30, 60)).save(tmp_path / "images" / "a.png")
    model = tiny_llava.save_checkpoint(tmp_path / "model")
    (tmp_path / "run.toml").write_text('[residual]\nroles = "template"\n')
    arguments = ["extract", "--model", model, "--source", "folder", "--images", tmp_path / "images", "--device", "cpu",
                 "--prompts", "normal:1", "--capture", "residual,lens", "--lens-topk", "2",
                 "--config", tmp_path / "run.toml", "--out", tmp_path / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    with pytest.raises(UsageError, match=r"token/hidden_states of .* holds no image tokens, only tokens of template"):
        analyse(tmp_path / "store", tmp_path / "kept", topk=2, source="hidden_states")
    assert len(analyse(tmp_path / "store", tmp_path / "kept", topk=2).words) == 5 * 16 * 2


def test_auto_takes_what_was_stored_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20), (200, 30, 60)).save(tmp_path / "images" / "a.png")
    model = tiny_llava.save_checkpoint(tmp_path / "model")
    arguments = ["extract", "--model", model, "--source", "folder", "--images", tmp_path / "images", "--device", "cpu",
                 "--prompts", "normal:1", "--capture", "lens", "--lens-topk", "2", "--no-unembedding",
                 "--out", tmp_path / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    told: list[str] = []
    found = analyse(tmp_path / "store", tmp_path / "kept", topk=2, notify=told.append)
    assert len(found.words) == 5 * 16 * 2
    assert any("pieces are those that extraction stored" in text for text in told)


def test_all_leaves_out_what_a_store_cannot_give(tmp_path: Path) -> None:
    """Fewer pieces than LogitLens asks for by default, and no states: the other analyses run, and a note says so."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(3)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    model = tiny_llava.save_checkpoint(tmp_path / "model", tiny_llava.TinyShape(blocks=6))
    arguments = ["extract", "--model", model, "--source", "folder", "--images", tmp_path / "images", "--device", "cpu",
                 "--prompts", "normal:1", "--capture", "pooled,lens", "--lens-topk", "2",
                 "--out", tmp_path / "store"]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    store, out = str(tmp_path / "store"), tmp_path / "results"
    told: list[str] = []
    written = run("all", [store], out, memory=2**31, notify=told.append)
    names = {path.name for path in written}
    assert "contextualization.parquet" in names
    assert "logit-lens.parquet" not in names
    assert any("logit-lens is left out" in text and "2 pieces per token" in text for text in told)
    with pytest.raises(UnfitStoreError, match="2 pieces per token"):
        run("logit-lens", [store], out, memory=2**31)
