"""`porthold archive`: the records of old segments into files of their own, which are read like the log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from eventlog.archive import archives_of
from eventlog.reading import LogReader
from eventlog.retention import archive_segment
from eventlog.segments import Segment
from tools.options import json_option, log_options, opened_log
from tools.output import print_json, print_line, print_table, progress_bar, time_text
from tools.writing import MONTH, close_segments, log_for_writing, octets_of, wall_clock_ns

_WORTH_WHILE: Final = 0.02
"""Of the file: less empty than this it is not written anew."""


@click.command("archive")
@log_options
@click.option("--before", "before_ns", type=MONTH, help="Only segments that ended before this month.")
@click.option("--segment", "numbers", type=int, multiple=True, help="Only this segment.")
@click.option("--list", "only_list", is_flag=True, help="Show the segments, change nothing.")
@click.option("--compact/--no-compact", default=True, show_default=True, help="Make the log's file smaller.")
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    before_ns: int | None,
    numbers: tuple[int, ...],
    only_list: bool,
    compact: bool,
    as_json: bool,
) -> None:
    """Move the records of closed segments into archives beside the log.

    A segment closes with its month (UTC), or at a million records. who, log, replay, prove and verify read
    through archives as if their records were in the log. The tracker must be stopped meanwhile. Ends with 0
    when all is done, with 1 when something is refused.
    """
    if only_list:
        with opened_log(config, log_path) as reader:
            show_segments(reader, reader.life().segments, as_json=as_json)
        return
    now_ns = wall_clock_ns()
    with log_for_writing(config, log_path) as log:
        close_segments(log, now_ns)
        wanted = chosen(log.life().segments, before_ns, numbers)
        done = [it.number for it in wanted if numbers or (it.archive is None and it.pruned_at is None)]
        with progress_bar("archiving segments") as progress:
            for count, number in enumerate(done):
                progress(count, len(done))
                archive_segment(log, number, now_ns)
        # Not only after archiving: the last time there may have been no room for it.
        log.give_back(whole=compact and log.free_share > _WORTH_WHILE)
        segments = [log.life().segments[number] for number in done]
        show_segments(log, segments, as_json=as_json)
        if not as_json:
            file, archives = octets_of(log)
            print_line(f"{log.path}: {file} octets; {archives_of(log.path)}: {archives}")


def chosen(segments: Sequence[Segment], before_ns: int | None, numbers: tuple[int, ...]) -> list[Segment]:
    """The segments that the options mean; a number that there is not is wrong use."""
    for number in numbers:
        if not 0 <= number < len(segments):
            raise click.UsageError(f"There is no closed segment {number}; there are {len(segments)}, from 0.")
    return [
        it
        for it in segments
        if (before_ns is None or it.last_wall_ns < before_ns) and (not numbers or it.number in numbers)
    ]


def show_segments(reader: LogReader, segments: Sequence[Segment], *, as_json: bool) -> None:
    """What became of these segments."""
    if as_json:
        print_json({"log": str(reader.path), "segments": segments})
        return
    if not segments:
        print_line("No segments.")
        return
    columns = ("segment", "first", "end", "from", "to", "records are")
    print_table(
        "Segments",
        columns,
        [
            (
                it.number,
                it.span.first,
                it.span.end,
                time_text(it.first_wall_ns),
                time_text(it.last_wall_ns),
                where(it),
            )
            for it in segments
        ],
    )


def where(segment: Segment) -> str:
    if segment.pruned_at is not None:
        return f"pruned (record {segment.pruned_at})"
    return "in the log" if segment.archive is None else "archived"
