"""repair and then the same extract: what was damaged is there again, and the message says what went and why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from engine.store import verify
from tests.engine.cli.conftest import Dataset
from tests.engine.store.test_verify import flip

Strata = Callable[..., Result]


@pytest.fixture
def out(strata: Strata, dataset: Dataset, tmp_path: Path) -> Path:
    assert extract(strata, dataset, tmp_path / "store").exit_code == 0
    return tmp_path / "store"


def extract(strata: Strata, dataset: Dataset, out: Path) -> Result:
    return strata("extract", *dataset.arguments("--out", out, "--samples-per-part", 2, "--skip-bad-samples"))


def test_damage_of_every_kind_is_removed_and_extracted_again(
    strata: Strata, dataset: Dataset, out: Path, tmp_path: Path
) -> None:
    good = Path(shutil.copytree(out, tmp_path / "good"))
    flip(out / "parts/00000001.parquet")
    (out / "parts/00000002.json").unlink()
    (out / "vocab.parquet").unlink()
    flip(out / "model.zarr/unembedding/c/0/0")
    (out / "notes.txt").write_text("mine")
    announced = strata("repair", out, "--dry-run")
    assert announced.exit_code == 1
    assert "would remove parts/00000001: parts/00000001.parquet has another sha256" in announced.stdout
    assert (out / "notes.txt").exists()
    result = strata("repair", out)
    assert result.exit_code == 1
    assert "left notes.txt: is listed by no manifest" in result.stdout
    assert "move it out of the store" in result.stdout
    assert (out / "notes.txt").read_text() == "mine"
    assert "removed parts/00000001: parts/00000001.parquet has another sha256" in result.stdout
    assert "removed parts/00000002: parts/00000002.parquet belongs to no manifest" in result.stdout
    assert "3 things removed; the same strata extract does part 1, part 2 and writes" in result.stdout
    assert "vocab.parquet again" in result.stdout
    (out / "notes.txt").unlink()
    again = extract(strata, dataset, out)
    assert again.exit_code == 0, again.output
    assert "1 of them finished" in again.stdout
    assert "vocab.parquet of" in again.stdout
    assert verify(out).problems == ()
    for name in ("vocab.parquet", "model.zarr/unembedding/c/0/0", "parts/00000001.parquet"):
        assert (out / name).read_bytes() == (good / name).read_bytes()
    assert "0 things removed, nothing to extract again" in strata("repair", out).stdout


def test_a_lost_record_of_a_finished_store_is_written_again(strata: Strata, dataset: Dataset, out: Path) -> None:
    record = (out / "store.json").read_bytes()
    (out / "store.json").write_bytes(record.replace(b'"seed": 0', b'"seed": 1'))
    refused = strata("repair", out)
    assert refused.exit_code == 1
    assert "nothing was removed: restore it" in refused.stderr
    (out / "store.json").unlink()
    again = extract(strata, dataset, out)
    assert again.exit_code == 0, again.output
    assert "3 of them finished" in again.stdout
    assert (out / "store.json").read_bytes() == record


def test_bad_samples_are_tried_again_on_request(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    image = sorted(dataset.images.iterdir())[0]
    content = image.read_bytes()
    image.write_bytes(b"")
    assert extract(strata, dataset, out).exit_code == 0
    image.write_bytes(content)
    result = strata("repair", "--retry-bad", out)
    assert result.exit_code == 0
    assert "lacks 0/normal-1 (image" in result.stdout
    again = extract(strata, dataset, out)
    assert "2 of them finished" in again.stdout
    assert "could not be stored" not in again.stderr
    assert "could not be stored" not in strata("verify", out).stdout


def test_what_it_must_leave_fails(strata: Strata, out: Path, tmp_path: Path) -> None:
    shutil.move(out / "parts", tmp_path / "parts")
    (out / "parts").symlink_to(tmp_path / "parts")
    result = strata("repair", out)
    assert result.exit_code == 1
    assert "left parts: is a symbolic link" in result.stdout
    assert verify(out).problems[0].file == "parts"
    assert len(list((tmp_path / "parts").glob("*.json"))) == 3


def test_a_lost_record_beside_a_damaged_manifest(strata: Strata, dataset: Dataset, out: Path, tmp_path: Path) -> None:
    good = Path(shutil.copytree(out, tmp_path / "good"))
    (out / "store.json").unlink()
    flip(out / "parts/00000001.json")
    lost = strata("repair", out)
    assert lost.exit_code == 1
    assert "it has parts: the strata extract that made them writes it again" in lost.output
    refused = extract(strata, dataset, out)
    assert refused.exit_code == 1
    assert "00000001.json is damaged or was edited" in refused.output
    assert (out / "store.json").read_bytes() == (good / "store.json").read_bytes()
    repaired = strata("repair", out)
    assert repaired.exit_code == 0, repaired.output
    assert "the same strata extract does part 1 again" in repaired.stdout
    again = extract(strata, dataset, out)
    assert again.exit_code == 0, again.output
    assert verify(out).problems == ()
    assert (out / "parts/00000001.parquet").read_bytes() == (good / "parts/00000001.parquet").read_bytes()
