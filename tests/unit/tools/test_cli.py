"""The command group: its table of commands and their files agree."""

import subprocess
import sys
from importlib.metadata import version

import click
from click.testing import CliRunner

from tools.cli import COMMANDS, main


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
