"""`porthold replay`: are the live tables what the records give?"""

import sys
from pathlib import Path

import click

from eventlog.record import RecordError
from eventlog.tables import ProjectionError
from eventlog.verify import Difference, compare_projection
from tools.options import json_option, log_options, opened_log
from tools.output import print_json, print_line, printable, progress_bar
from tracker.projections import PROJECTIONS
from tracker.shapes import ProtocolError


@click.command("replay")
@log_options
@json_option
def command(config: Path | None, log_path: Path | None, *, as_json: bool) -> None:
    """Fold all records again and compare with the live tables, bit for bit.

    Ends with 0 if they are equal, with 1 if not. The log is only read, and may be written meanwhile.
    """
    found: dict[str, list[Difference]] = {}
    failure: str | None = None
    with (
        opened_log(config, log_path) as reader,
        progress_bar("folding records") as progress,
        reader.snapshot(),
    ):
        size = reader.size
        try:
            for projection in PROJECTIONS:
                found[projection.name] = compare_projection(reader, projection, progress=progress)
        except (ProjectionError, RecordError, ProtocolError, LookupError) as error:
            failure = str(error)
    equal = failure is None and not any(found.values())
    if as_json:
        print_json(
            {
                "records": size,
                "equal": equal,
                "failure": failure,
                "projections": {
                    name: [
                        {"table": it.table, "live": _text(it.live), "folded": _text(it.folded)}
                        for it in differences
                    ]
                    for name, differences in found.items()
                },
            }
        )
    else:
        print_answer(size, found, failure)
    sys.exit(0 if equal else 1)


def print_answer(size: int, found: dict[str, list[Difference]], failure: str | None) -> None:
    for name, differences in found.items():
        if differences:
            print_line((f"{name}: different", "bold red"), f" ({size} records)")
        else:
            print_line((f"{name}: equal", "bold green"), f", folded from {size} records")
        for difference in differences:
            print_line(f"  {difference}")
    if failure is not None:
        print_line(("The records can't be folded: ", "bold red"), failure)
        print_line("  porthold verify says where the log is wrong")


def _text(row: object) -> str | None:
    return None if row is None else printable(str(row))
