"""`porthold verify`: is the log what its records say?"""

import sqlite3
import sys
from pathlib import Path

import click

from eventlog.reading import LogReader, LogUnreadable, Progress
from eventlog.verify import Report, verify
from tools.options import json_option, log_options, log_path_of
from tools.output import print_json, print_line, progress_bar
from tracker.projections import PROJECTIONS
from tracker.shapes import ProtocolError


@click.command("verify")
@log_options
@json_option
def command(config: Path | None, log_path: Path | None, *, as_json: bool) -> None:
    """Check bytes, columns, order, tree and tables of the whole log against its records.

    Ends with 0 if all is well, with 1 if not: the first bad position and what is wrong there. The log is only
    read, and may be written meanwhile.
    """
    path = log_path_of(config, log_path)
    try:
        with LogReader.open(path) as reader, progress_bar("verifying") as progress:
            report, unfoldable = examine(reader, progress)
    except (LogUnreadable, sqlite3.DatabaseError) as error:
        # A file that is there and is no log is an answer, not wrong use.
        if as_json:
            print_json({"log": str(path), "clean": False, "unreadable": str(error)})
        else:
            print_line(("bad: ", "bold red"), str(error))
        sys.exit(1)
    clean = report.clean and unfoldable is None
    if as_json:
        answer = {"log": str(path), "clean": clean, "unfoldable": unfoldable, "first": report.first}
        print_json({**answer, **_fields(report)})
    else:
        print_report(path, report, unfoldable)
    sys.exit(0 if clean else 1)


def examine(reader: LogReader, progress: Progress) -> tuple[Report, str | None]:
    """The report, and why the tables can't be made again, if a record says what no tracker can have said.

    Such a record stops the fold, but must not hide where the log was forged: all else is checked without it.
    """
    try:
        return verify(reader, PROJECTIONS, progress=progress), None
    except (ProtocolError, LookupError) as error:
        return verify(reader, progress=progress), str(error)


def _fields(report: Report) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__dataclass_fields__}


def print_report(path: Path, report: Report, unfoldable: str | None) -> None:
    if unfoldable is not None:
        print_line(("bad: ", "bold red"), f"no tables can be made from the records: {unfoldable}")
    if report.first is None:
        verdict = ("clean: ", "bold green") if unfoldable is None else "but the file agrees with itself: "
        print_line(verdict, f"{report.records_checked} records in {path}")
    else:
        position = report.first.position
        where = "the file as a whole" if position is None else f"position {position}"
        count = len(report.faults) + report.faults_not_listed
        print_line(("bad: ", "bold red"), f"first at {where}; {count} faults in {path}")
        for fault in report.faults:
            print_line(f"  {fault}")
        if report.faults_not_listed:
            print_line(f"  and {report.faults_not_listed} more")
    print_line(f"  size {report.size}, root {report.root.hex()}")
    print_line(f"  tables checked: {', '.join(report.projections_checked) or 'none'}")
    if report.projections_unknown:
        print_line(f"  tables not known to this version: {', '.join(report.projections_unknown)}")
