"""A disk that fills up during strata extract: a real one, of a few hundred kilobytes."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from engine.store import committed_parts, verify
from tests.engine.cli.conftest import Dataset

Strata = Callable[..., Result]

OPTIONS = ("--samples-per-part", 1, "--capture", "residual")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root can mount the small file system that this test fills")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_a_full_disk_keeps_what_is_finished_and_the_same_command_goes_on(
    strata: Strata, dataset: Dataset, small_disk: Path
) -> None:
    out = small_disk / "store"
    arguments = dataset.arguments("--out", out, *OPTIONS)
    assert strata("extract", *arguments).exit_code == 0
    whole = used(small_disk)
    shutil.rmtree(out)

    finished = []
    for share in (0.05, 0.4, 0.7, 0.95):
        ballast = small_disk / "ballast"
        ballast.write_bytes(
            b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - int(share * whole))
        )
        refused = strata("extract", *arguments)
        assert refused.exit_code == 1
        assert re.search(rf"{out} needs about .* 5 parts .* free on {small_disk}: make room", refused.stderr)
        assert not out.exists(), "nothing was begun"

        full = strata("extract", *arguments, "--force")
        assert full.exit_code == 1
        message = full.stderr.splitlines()[-1]
        place = rf"could not be written to {out}\S* \(No space left on device\)"
        assert re.search(rf"{place}: it needs at most [\d,]+ bytes and [\d,]+ are free", message)
        assert "make room and run the same command again" in message
        assert "Traceback" not in full.stderr
        finished.append(check_finished(out))

        ballast.unlink()
        again = strata("extract", *arguments)
        assert again.exit_code == 0, again.output
        assert f"{finished[-1]} of them finished" in again.stdout
        assert verify(out) == ((), ())
        shutil.rmtree(out)
    assert finished[0] == 0
    assert finished == sorted(finished)
    assert finished[-1] >= 3


def check_finished(store: Path) -> int:
    """Number of parts that are committed; of them nothing is damaged."""
    if not (store / "store.json").exists():
        return 0
    done = committed_parts(store)
    assert {problem.file.split(".")[0] for problem in verify(store).problems}.isdisjoint(
        {f"parts/{number:08d}" for number in done}
    )
    return len(done)
