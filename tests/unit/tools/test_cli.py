"""The command group: its table of commands and their files agree."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.store import Log
from tests.unit.tools.sample_log import write_sample_log
from tools.cli import COMMANDS, main
from tracker.projections import PROJECTIONS


def test_version_is_the_installed_one() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"porthold, version {version('porthold')}\n")


def test_an_unknown_command_is_wrong_use() -> None:
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.output


def test_every_command_named_in_the_help_is_in_its_file() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help, f"porthold {name} --help says nothing"


def test_the_help_names_every_command_and_imports_none() -> None:
    program = (
        "import sys; from tools.cli import main; main(['--help'], standalone_mode=False); "
        "print(*(name for name in sys.modules if name.startswith(('tools.', 'zmq', 'tracker'))))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    *text, imported = output.splitlines()
    assert imported == "tools.cli"
    for name, summary in COMMANDS.items():
        assert any(line.split()[:1] == [name] and summary[:30] in line for line in text)


@pytest.mark.parametrize("words", [("log", "show"), ("holds", "--json"), ("export",), ("prove", "3", "-o-")])
def test_an_output_without_room_is_said_and_a_closed_one_takes_what_comes(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    log = write_sample_log(tmp_path / "log.sqlite")
    with Log.open(log, projections=PROJECTIONS) as opened:
        make_checkpoint(opened, SigningKey("log.example", bytes(32)), opened.last_wall_ns or 0)

    def said(redirected: str) -> tuple[int, str]:
        command = (sys.executable, "-c", "from tools.cli import main; main()", *words, "--log", str(log))
        shell = ("sh", "-c", f'exec "$@" {redirected}', "sh")
        result = subprocess.run([*shell, *command], capture_output=True, text=True, check=False)
        return result.returncode, result.stderr

    assert said("> /dev/full") == (1, "Error: The output can't be written: No space left on device.\n")
    assert said(">&-") == (0, "")


def test_a_file_that_never_ends_is_no_key_no_checkpoint_and_no_proof(tmp_path: Path) -> None:
    log = write_sample_log(tmp_path / "log.sqlite")
    key = str(SigningKey("log.example", bytes(32)).verifying_key)
    for words in (
        ("verify", "--log", str(log), "--against", "/dev/zero"),
        ("verify", "--log", str(log), "--key", "/dev/zero"),
        ("verify-proof", "/dev/zero", "--key", key),
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code in {1, 2}
        assert isinstance(result.exception, SystemExit)


def test_a_proof_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    log = write_sample_log(tmp_path / "log.sqlite")
    with Log.open(log, projections=PROJECTIONS) as opened:
        make_checkpoint(opened, SigningKey("log.example", bytes(32)), opened.last_wall_ns or 0)
    result = CliRunner().invoke(main, ["prove", "3", "--log", str(log), "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path} can't be written: Is a directory" in result.output
