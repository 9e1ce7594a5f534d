"""`porthold replay`: the records folded again, to compare with the live tables or to see a time's state."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from eventlog.kept_tables import TablesUnknown, beginning
from eventlog.reading import LogReader, Progress, RecordsGone
from eventlog.record import RecordError
from eventlog.tables import ProjectionError
from eventlog.verify import Difference, compare_projection
from tools.log import print_shown, select, to_document
from tools.moment import MOMENT
from tools.options import json_option, log_options, opened_log
from tools.output import exact_time_text, print_json, print_line, printable, progress_bar
from tools.past import POINT, Past, differences, print_difference, print_past, size_at, state_at
from tracker.projections import PROJECTIONS
from tracker.shapes import ProtocolError


@click.command("replay")
@log_options
@click.option("--from", "first", type=POINT, help="Show the records from here on, and the state at --to.")
@click.option("--to", "last", type=POINT, help="The state after this position, or at this time.")
@click.option("--at", "at_ns", type=MOMENT, help="The state at this time.")
@click.option("--diff", "ends", type=(POINT, POINT), help="What differs between two states.")
@click.option("--no-snapshot", is_flag=True, help="Fold from the first record, whatever snapshots there are.")
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    first: str | None,
    last: str | None,
    at_ns: int | None,
    ends: tuple[str, str] | None,
    no_snapshot: bool,
    as_json: bool,
) -> None:
    """Fold all records again and compare with the live tables, bit for bit.

    Ends with 0 if they are equal, with 1 if not. With --to, --from or --at it shows the state that the
    records give (bindings, sessions) there, with --diff what differs between two (then 0 means nothing). The
    log is only read, and may be written meanwhile.
    """
    if sum((first is not None or last is not None, at_ns is not None, ends is not None)) > 1:
        raise click.UsageError("--from and --to, --at, and --diff each ask for something else; choose one.")
    with (
        opened_log(config, log_path) as reader,
        progress_bar("folding records") as progress,
        reader.snapshot(),
    ):
        replay = Replay(reader, progress, snapshots=not no_snapshot, as_json=as_json)
        if ends is not None:
            replay.compare(size_at(reader, ends[0]), size_at(reader, ends[1]))
        elif at_ns is not None:
            replay.show(reader.position_at(at_ns))
        elif first is not None or last is not None:
            begin = None if first is None else size_at(reader, first, before=True)
            replay.show(reader.size if last is None else size_at(reader, last), begin)
        else:
            replay.compare_tables()


class Replay:
    """The records of one moment, folded as the command wants it; each of its methods is a whole answer."""

    def __init__(self, reader: LogReader, progress: Progress, *, snapshots: bool, as_json: bool) -> None:
        self._reader = reader
        self._progress = progress
        self._snapshots = snapshots
        self._as_json = as_json

    def show(self, size: int, begin: int | None = None) -> None:
        """The state after `size` records, and before it the records from `begin` on."""
        past = self._state_at(size)
        if begin is not None and begin > size:
            raise click.UsageError(f"--to ends after {size} records, before --from.")
        shown = iter(()) if begin is None else select(self._reader, begin, size, ())
        if self._as_json:
            records = {} if begin is None else {"log": [to_document(item) for item in shown]}
            print_json({**records, "state": past})
            return
        for item in shown:
            print_shown(item)
        print_past(past)

    def compare(self, before: int, after: int) -> NoReturn:
        """What differs between two states; ends with 0 if nothing does."""
        pasts = self._state_at(before), self._state_at(after)
        found = list(differences(*pasts))
        if self._as_json:
            ends = [
                {"records": it.size, "last": None if it.wall_ns is None else exact_time_text(it.wall_ns)}
                for it in pasts
            ]
            print_json({"equal": not found, "before": ends[0], "after": ends[1], "differences": found})
        else:
            print_line(f"from {before} records to {after}: {len(found) or 'no'} differences")
            for difference in found:
                print_difference(difference)
        sys.exit(1 if found else 0)

    def compare_tables(self) -> NoReturn:
        """Whether the live tables are what the records give; ends with 0 if they are."""
        found: dict[str, list[Difference]] = {}
        first = 0  # Where records are gone, the tables that were kept then are gone on from.
        failure: str | None = None
        size = self._reader.size
        try:
            for projection in PROJECTIONS:
                first = max(first, beginning(self._reader, projection).size)
                found[projection.name] = compare_projection(self._reader, projection, progress=self._progress)
        except (ProjectionError, RecordError, TablesUnknown, RecordsGone) as error:
            failure = str(error)
        equal = failure is None and not any(found.values())
        if self._as_json:
            print_json(_tables_document(first, size, found, failure, equal=equal))
        else:
            print_answer(first, size, found, failure)
        sys.exit(0 if equal else 1)

    def _state_at(self, size: int) -> Past:
        try:
            return state_at(self._reader, size, self._progress, snapshots=self._snapshots)
        except (RecordError, ProtocolError, LookupError) as error:
            print(f"The records can't be folded: {error}; porthold verify says where.", file=sys.stderr)
            sys.exit(1)


def _tables_document(
    first: int, size: int, found: dict[str, list[Difference]], failure: str | None, *, equal: bool
) -> dict[str, object]:
    projections = {
        name: [{"table": it.table, "live": _text(it.live), "folded": _text(it.folded)} for it in differing]
        for name, differing in found.items()
    }
    answer = {"records": size, "folded_from": first, "equal": equal, "failure": failure}
    return {**answer, "projections": projections}


def print_answer(first: int, size: int, found: dict[str, list[Difference]], failure: str | None) -> None:
    for name, differing in found.items():
        if differing:
            print_line((f"{name}: different", "bold red"), f" ({size} records)")
        else:
            after = f" after the {first} that its kept tables were made of" if first else ""
            print_line((f"{name}: equal", "bold green"), f", folded from {size - first} records{after}")
        for difference in differing:
            print_line(f"  {difference}")
    if failure is not None:
        print_line(("The records can't be folded: ", "bold red"), failure)
        print_line("  porthold verify says where the log is wrong")


def _text(row: object) -> str | None:
    return None if row is None else printable(str(row))
