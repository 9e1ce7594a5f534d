"""`porthold prune`: old records are given up, for good."""

from pathlib import Path

import click

from eventlog.retention import prune_segments
from tools.archive import chosen, show_segments
from tools.options import json_option, log_options
from tools.output import progress_bar
from tools.writing import (
    MONTH,
    REASON,
    close_segments,
    keep_tracker_state,
    log_for_writing,
    wall_clock_ns,
)
from tracker.projections import PROJECTIONS


@click.command("prune")
@log_options
@click.option("--before", "before_ns", type=MONTH, help="Segments that ended before this month.")
@click.option("--segment", "numbers", type=int, multiple=True, help="This segment.")
@click.option("--reason", type=REASON, required=True, help="Why; it is recorded.")
@click.option("--compact/--no-compact", default=True, show_default=True, help="Make the log's file smaller.")
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    before_ns: int | None,
    numbers: tuple[int, ...],
    reason: str,
    compact: bool,
    as_json: bool,
) -> None:
    """Give up the records of closed segments, and their archives.

    That it was done is recorded; hashes stay, so that every other proof and every checkpoint goes on being
    good. What the records had led to stays too: who and holds answer as before. The tables are compared with
    the records first, and the tracker must be stopped meanwhile. Ends with 0, or with 1 when it is refused.
    """
    if before_ns is None and not numbers:
        raise click.UsageError("Say which: --before MONTH or --segment NUMBER.")
    now_ns = wall_clock_ns()
    with log_for_writing(config, log_path) as log:
        close_segments(log, now_ns)
        wanted = [
            it.number
            for it in chosen(log.life().segments, before_ns, numbers)
            if numbers or it.pruned_at is None
        ]
        if wanted:
            keep_tracker_state(log, now_ns)
            with progress_bar("comparing the tables with the records") as progress:
                prune_segments(log, wanted, reason, now_ns, projections=PROJECTIONS, progress=progress)
            log.give_back(whole=compact)
        show_segments(log, [log.life().segments[number] for number in wanted], as_json=as_json)
