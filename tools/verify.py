"""`porthold verify`: is the log what its records say, and the one that its checkpoints were signed for?"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from eventlog.note import NoteError, VerifyingKey
from eventlog.reading import DAMAGE, LogReader, LogUnreadable
from eventlog.verify import Report, verify
from tools.exclusive import as_document, examined, print_verdict
from tools.moment import MOMENT
from tools.options import (
    CHECKPOINT,
    WrongUse,
    believed_keys,
    json_option,
    keys_option,
    log_options,
    log_path_of,
)
from tools.output import print_json, print_line, progress_bar
from tracker.exclusivity import Verdict
from tracker.image import Fold
from tracker.projections import PROJECTIONS

_MORE_LOOKS: Final = 2
"""How often it looks again where records were taken out meanwhile."""


@click.command("verify")
@log_options
@click.option("--since", type=CHECKPOINT, help="Read only what comes after this checkpoint, and believe it.")
@click.option(
    "--against",
    type=CHECKPOINT,
    multiple=True,
    help="A checkpoint kept elsewhere; may be given several times.",
)
@click.option("--exclusive", is_flag=True, help="Also: did any resource ever have two holders at once?")
@click.option("--from", "from_ns", type=MOMENT, help="With --exclusive: from this time on.")
@click.option("--to", "to_ns", type=MOMENT, help="With --exclusive: up to this time.")
@keys_option
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    since: bytes | None,
    against: tuple[bytes, ...],
    exclusive: bool,
    from_ns: int | None,
    to_ns: int | None,
    keys: tuple[VerifyingKey, ...],
    as_json: bool,
) -> None:
    """Check bytes, columns, order, tree, tables, states, keys and checkpoints against the log's records.

    Ends with 0 if all is well, with 1 if not: the first bad position and what is wrong there. Whoever owns
    the file can rewrite it whole: --key and a checkpoint from elsewhere (--against) show that. The log is
    only read, and may be written meanwhile.

    --exclusive shows, from what the workers saw in their kernels, that no resource had two holders at once,
    in all the time that the log tells of or --from one --to another. It ends with 1 also where that is
    unknown, because nobody looked.
    """
    if not exclusive and (from_ns, to_ns) != (None, None):
        raise click.UsageError("--from and --to go with --exclusive.")
    path = log_path_of(config, log_path)
    believed = believed_keys(config, log_path, keys)

    def look() -> tuple[Report, Verdict | None]:
        with LogReader.open(path) as reader, progress_bar("verifying") as progress, reader.snapshot():
            report = verify(
                reader,
                PROJECTIONS,
                keys=believed,
                against=against,
                since=since,
                folds=[Fold()],
                progress=progress,
            )
            return report, examined(reader, from_ns, to_ns, progress) if exclusive else None

    try:
        report, verdict = look()
        for _ in range(_MORE_LOOKS):
            if is_good(report, verdict) or not taken_out_since(path, report.size):
                break
            report, verdict = look()
    except NoteError as error:
        raise WrongUse(f"--since is not to be believed: {error}") from error
    except (LogUnreadable, *DAMAGE) as error:
        # A file that is there and is no log is an answer, not wrong use.
        if as_json:
            print_json({"log": str(path), "clean": False, "unreadable": str(error)})
        else:
            print_line(("bad: ", "bold red"), str(error))
        sys.exit(1)
    if as_json:
        answer = {"log": str(path), "clean": report.clean, "first": report.first, **_fields(report)}
        print_json(answer if verdict is None else {**answer, "exclusive": as_document(verdict)})
    else:
        print_report(path, report, given=bool(believed))
        if verdict is not None:
            print_verdict(verdict)
    sys.exit(0 if is_good(report, verdict) else 1)


def is_good(report: Report, verdict: Verdict | None) -> bool:
    """Whether nothing is wrong, and nothing that was asked for unknown."""
    return report.clean and (verdict is None or verdict.shown)


def taken_out_since(path: Path, size: int) -> bool:
    """Whether a record after the first `size` took others out: their old archive went while it was read."""
    with suppress(LogUnreadable, *DAMAGE), LogReader.open(path) as reader:
        return any(removal.said_at >= size for removal in reader.life().removals)
    return False


def _fields(report: Report) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return {**fields, "keys": [str(key) for key in report.keys]}


def print_report(path: Path, report: Report, *, given: bool) -> None:
    """For people; `given`: the keys came from elsewhere than the log."""
    if report.first is None:
        print_line(("clean: ", "bold green"), f"{report.records_checked} records in {path}")
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
    if report.first_checked:
        print_line(f"  read from position {report.first_checked} on; what is before rests on the checkpoint")
    print_line(f"  tables checked: {', '.join(report.projections_checked) or 'none'}")
    for why in report.unfolded:
        print_line(("  not to be made again: ", "yellow"), why)
    for gap in report.gone:
        print_line(("  not to be read: ", "yellow"), f"{gap.span}: {gap.why}")
    if report.projections_unknown:
        print_line(f"  tables not known to this version: {', '.join(report.projections_unknown)}")
    print_protection(report, given=given)


def print_protection(report: Report, *, given: bool) -> None:
    """How far the log is more than its owner's word."""
    for key in report.keys:
        print_line(f"  key {key}{'' if given else ' (on the word of the log itself: check it with --key)'}")
    print_line(f"  checkpoints checked: {report.checkpoints_checked}")
    style = "bold yellow" if report.unprotected else ""
    if report.unprotected == report.size:
        why = "of a key that is believed" if report.keys else "and no key has ever signed this log"
        print_line((f"  unprotected: all {report.size} records; there is no checkpoint {why}", style))
    else:
        print_line((f"  unprotected: {report.unprotected} records after the last checkpoint", style))
