"""`porthold redact`: the bytes of one record are taken out, for good."""

import sys
from pathlib import Path

import click

from eventlog.retention import redact
from tools.options import json_option, log_options
from tools.output import print_json, print_line, progress_bar
from tools.writing import REASON, keep_tracker_state, log_for_writing, wall_clock_ns
from tracker.projections import PROJECTIONS


@click.command("redact")
@click.argument("position", type=click.IntRange(0, 2**63 - 2))
@log_options
@click.option("--reason", type=REASON, required=True, help="Why; it is recorded.")
@json_option
def command(position: int, config: Path | None, log_path: Path | None, reason: str, *, as_json: bool) -> None:
    """Take out the bytes of the record at POSITION; its hash stays.

    The record's random nonce goes with it, so nobody can find out by trying what was hashed. That it was done
    is recorded, with the reason; every other proof goes on being good. What the record had led to stays: who
    and holds answer as before. The tables are compared with the records first, and the tracker must be
    stopped meanwhile. Ends with 0, or with 1 when it is refused.
    """
    now_ns = wall_clock_ns()
    with log_for_writing(config, log_path) as log:
        keep_tracker_state(log, now_ns)
        with progress_bar("comparing the tables with the records") as progress:
            said_at = redact(log, position, reason, now_ns, projections=PROJECTIONS, progress=progress)
        traceless = log.give_back()
    if as_json:
        print_json({"redacted": position, "said_at": said_at, "reason": reason, "traceless": traceless})
    else:
        print_line(("redacted: ", "bold green"), f"record {position}; record {said_at} says so")
    if not traceless:
        print("A reader holds an older state of the file: its bytes go when that ends.", file=sys.stderr)
