from pathlib import Path

from click.testing import CliRunner

from engine.cli.main import main
from tests.engine.store.builders import tiny_store


def test_notes_go_to_stderr_and_files_to_stdout(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", layers=9, parts=3, written=[0]).path
    result = CliRunner().invoke(
        main, ["analyze", "phases", str(store), "--out", str(tmp_path / "r"), "--bootstraps", "5"]
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        f"note: {store} holds 1 of 3 parts, 2 of 6 samples; 4 planned samples are missing (strata inspect {store})\n"
    )
    assert sorted(result.stdout.split()) == sorted(map(str, (tmp_path / "r").iterdir()))


def test_a_refusal_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", layers=9, parts=1).path
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(main, ["analyze", "contextualization", str(store), "--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"strata: --out {tmp_path / 'file'}: ")
