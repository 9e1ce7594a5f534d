"""`porthold checkpoint`: sign what is in the log by now.

Only the tracker signs: it alone has the key open, and knows that what it signs is on the disk. Where none
runs, the one before has made a checkpoint at its clean stop, and the next makes one soon after its start.
"""

import sys
from pathlib import Path

import click

from eventlog.checkpoint import parse_checkpoint
from tools.options import calling, config_option, json_option, read_configuration, write_file
from tools.output import print_json, print_line
from tools.status import print_silence, why_silent
from tracker.client import ask
from tracker.messages import CheckpointMade, MakeCheckpoint, NoCheckpoint, NotAllowed
from tracker.roles import Role
from tracker.shapes import ProtocolError

OPERATOR = "operator"


@click.command("checkpoint")
@config_option
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Put it into this file, too; - for stdout."
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.05, 60), default=10.0, show_default=True)
@json_option
def command(config: Path | None, out: Path | None, timeout_s: float, *, as_json: bool) -> None:
    """Have the running tracker sign a checkpoint over all its records, now.

    Keep it where the log's owner cannot reach it: `porthold verify --against` shows what was changed since.
    Ends with 0 if there is one, with 1 if no tracker answers or it has no key.
    """
    endpoint, credentials = calling(read_configuration(config), Role.OPERATOR)
    try:
        answer = ask(endpoint, OPERATOR, MakeCheckpoint(), timeout_s, credentials)
    except ProtocolError as error:
        print_silence(endpoint, f"what answers is no tracker of this version ({error})", as_json=as_json)
        sys.exit(1)
    match answer:
        case CheckpointMade(note=note):
            give(note, out, as_json=as_json)
        case NoCheckpoint(reason) | NotAllowed(reason):
            print(f"No checkpoint: {reason}.", file=sys.stderr)
            sys.exit(1)
        case _:
            print_silence(endpoint, why_silent(endpoint, timeout_s), as_json=as_json)
            sys.exit(1)


def give(note: bytes, out: Path | None, *, as_json: bool) -> None:
    """To whoever asked."""
    made = parse_checkpoint(note)
    if out is not None and str(out) != "-":
        write_file(out, note)
    if as_json:
        print_json({"origin": made.origin, "size": made.size, "root": made.root, "note": note.decode()})
    elif str(out) == "-":
        sys.stdout.write(note.decode())
    else:
        where = "" if out is None else f", in {out}"
        print_line(f"checkpoint of {made.origin} over {made.size} records, root {made.root.hex()}{where}")
