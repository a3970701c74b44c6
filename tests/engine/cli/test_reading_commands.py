"""inspect, verify and models, and the group they belong to."""

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.engine.cli.conftest import Dataset
from tests.engine.store.forge import change_array, change_record

Strata = Callable[..., Result]


def test_inspect_and_verify_of_a_sound_store(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert strata("extract", *dataset.arguments("--out", out, "--samples-per-part", 2)).exit_code == 0
    inspected = strata("inspect", out)
    assert inspected.exit_code == 0
    assert "3 of 3, complete; 5 of 5 samples" in inspected.stdout
    assert "token/hidden_states" in inspected.stdout
    verified = strata("verify", out)
    assert verified.exit_code == 0
    assert "is sound: 3 parts, 5 samples" in verified.stdout


def test_verify_names_every_damaged_file_and_exits_1(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert strata("extract", *dataset.arguments("--out", out, "--samples-per-part", 2)).exit_code == 0
    shard = next(path for path in sorted((out / "parts").rglob("token/hidden_states/c/*")) if path.exists())
    shard = shard if shard.is_file() else next(path for path in sorted(shard.rglob("*")) if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(bytes(damaged))
    (out / "parts" / "00000002.json").unlink()
    (out / "stray.txt").write_text("?")
    result = strata("verify", out)
    assert result.exit_code == 1
    assert f"{shard.relative_to(out)}: " in result.stdout
    assert "stray.txt: " in result.stdout
    assert "00000002" in result.stdout
    inspected = strata("inspect", out)
    assert "2 of 3, not complete" in inspected.stdout


def test_models_lists_the_families(strata: Strata) -> None:
    result = strata("models")
    assert result.exit_code == 0
    assert "LLaVA-1.5" in result.stdout


def test_help_lists_every_command_and_each_has_help(strata: Strata) -> None:
    listing = strata("--help").stdout
    for name in ("extract", "estimate", "inspect", "verify", "repair", "models", "analyze"):
        assert f"  {name}" in listing
        assert strata(name, "--help").exit_code == 0
    assert strata("nonsense").exit_code == 2


def test_what_extraction_writes_is_sound_to_the_last_value(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    everything = "residual,pooled,attention,attention-mass,attention-output,mlp-output,lens"
    config = tmp_path / "run.toml"
    config.write_text(
        '[residual]\nroles = "image"\n[lens]\nroles = "instruction,template"\n[mlp-output]\nblocks = "2"\n'
    )
    asked = ("--capture", everything, "--dtype", "bfloat16", "--samples-per-part", 3, "--prompts", "empty")
    for out, more in ((tmp_path / "all", ("--thumbnails",)), (tmp_path / "some", ("--config", config))):
        extracted = strata("extract", *dataset.arguments("--out", out, *asked, "--prompts", "normal:1", *more))
        assert extracted.exit_code == 0, extracted.output
        verified = strata("verify", "--deep", out)
        assert verified.exit_code == 0, verified.output
        assert "every value is one that it can be" in verified.stdout


def test_verify_deep_names_the_sample(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert strata("extract", *dataset.arguments("--out", out, "--limit", 1)).exit_code == 0
    change_array(out, "token/hidden_states", lambda values: values.__setitem__((1, 2, 3), float("nan")))
    assert strata("verify", out).exit_code == 0
    deep = strata("verify", "--deep", out)
    assert deep.exit_code == 1
    assert "token/hidden_states layer 1 holds NaN or infinity where a value is kept: sample " in deep.stdout


def test_ranks_without_a_number_are_those_that_wrote(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for rank in (0, 1):
        shared = ("--out", out, "--samples-per-part", 2, "--rank", rank, "--world-size", 2)
        run = strata("extract", *dataset.arguments(*shared))
        assert run.exit_code == 0, run.output
    assert strata("inspect", out, "--ranks").output == strata("inspect", out, "--ranks", 2).output
    change_record(out / "parts/00000000.json", lambda record: record["run"].update(rank=0, world_size=4))
    told = strata("inspect", out, "--ranks")
    assert told.exit_code == 2
    assert "--ranks without a number: runs of 2 and 4 ranks wrote parts" in told.output
