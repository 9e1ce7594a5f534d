"""The `porthold` command: a group whose commands are the files beside this one.

Rule 1: one file per command, `tools/<command>.py` (a dash becomes an underscore), which exports `command`.
Rule 2: a command's file is imported when it is called: `porthold who` needs no netfilter library.
Rule 3: exit codes are for scripts: 0 yes, 1 no, 2 wrong use.
"""

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

# Name and one line of help, in the order in which `porthold --help` shows them.
COMMANDS: Mapping[str, str] = {
    "demo": "A real call through a real gateway on this machine, and who held the port.",
    "tracker": "Decide who holds which port, and keep the log.",
    "rewriter": "Work for this machine's gateway: claims, rewriting, bindings in the kernel.",
    "status": "How the running tracker stands: sessions, bindings, counters.",
    "who": "Who held a port at a time: a holder, nobody, or unknown, and why.",
    "holds": "The bindings: who held what, from when to when.",
    "explain": "Every record that made a binding what it was.",
    "export": "The bindings as JSON Lines, CSV or IPFIX, for collectors.",
    "log": "The records of the log.",
    "replay": "Fold the records again: compare with the live tables, or show the state at any time.",
    "verify": "Check the whole log: bytes, columns, order, tree, tables, keys, checkpoints.",
    "checkpoint": "Have the tracker sign all that is in the log by now.",
    "prove": "A small file that shows one record to be in the log.",
    "verify-proof": "What such a file shows, with the public key alone.",
    "backup": "A verified copy of the log, while it is written.",
    "archive": "Old records into files of their own, which are read like the log.",
    "verify-archive": "What such a file shows, with the public key alone.",
    "prune": "Give old records up, on record, with all other proofs good.",
    "redact": "Take one record's bytes out, on record, with all other proofs good.",
    "release": "End bindings; whoever sends first has the port.",
    "revoke": "End bindings, and bar their holders for a time.",
    "reserve": "Let only one host claim a port.",
    "freeze": "Let nobody claim; calls go on.",
    "keys": "Make the keys: of the log's checkpoints, and of who speaks by TCP; authorise and revoke them.",
    "systemd": "Write the systemd units of tracker and rewriter for this installation.",
    "doctor": "Would a rewriter run here, and if not, what is missing.",
    "pcap": "Translate a capture as the gateway would, or explain its packets field by field.",
    "import-ipautofw": "Command lines of ipautofw and ipmasqadm as porthold's configuration, flag by flag.",
    "simulate": "The whole of it in simulated adversity, from seeds, against a reference model.",
    "lab": "Try the datapath of this machine in network namespaces: vectors of packets before and after.",
}
# Commands whose file has another name, because theirs is taken: tools/lab.py is the laboratory itself.
FILES: Mapping[str, str] = {"lab": "vectors"}


class CommandFiles(click.Group):
    """A click group that finds the commands named in COMMANDS in their files."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        if sys.stdout is None:  # Closed by whoever started us: what is printed then goes nowhere.
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise click.ClickException(f"The output can't be written: {error.strerror}.") from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = FILES.get(cmd_name, cmd_name.replace("-", "_"))
        command = importlib.import_module(f"tools.{module}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"tools/{module}.py: `command` is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if COMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=CommandFiles, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("porthold"), prog_name="porthold")
def main() -> None:
    """CU-SeeMe through a masquerading gateway, and a log that says who held the port at any time."""
