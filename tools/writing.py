"""The log opened for writing by a command, while no tracker runs.

Rule 1: one writer: where a tracker has the log, its process is named and nothing is done. Rule 2: before
records go for good the tracker's state is kept, so that its next start needs none of them.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from eventlog.archive import archives_of
from eventlog.reading import RecordsGone
from eventlog.record import RecordError
from eventlog.retention import REASON_LIMIT, RetentionRefused, close_due_segments, keep_state
from eventlog.segments import SegmentPolicy, month_begin_ns
from eventlog.snapshot import Snapshot, SnapshotDamaged
from eventlog.store import AppendFailed, Log, LogBusy, LogLocked, LogUnreadable
from tools.options import WrongUse, log_path_of
from tracker import image
from tracker.image import Fold
from tracker.projections import PROJECTIONS
from tracker.shapes import ProtocolError

POLICY: Final = SegmentPolicy()


class MonthType(click.ParamType[int]):
    """A month like 2026-05; its value is when it begins (UTC)."""

    name = "month"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return month_begin_ns(str(value))
        except ValueError:
            self.fail(f"{value!r} is no month like 2026-05", param, ctx)


class ReasonType(click.ParamType[str]):
    """Why: it is recorded."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if not 0 < len(text) <= REASON_LIMIT:
            self.fail(f"a reason of 1 to {REASON_LIMIT} characters is wanted", param, ctx)
        return text


MONTH: Final = MonthType()
REASON: Final = ReasonType()


@contextmanager
def log_for_writing(config: Path | None, log_path: Path | None) -> Iterator[Log]:
    """The log, this process its one writer; ends with 2 where it can't be, with 1 where it is refused."""
    path = log_path_of(config, log_path)
    try:
        with Log.open(path, projections=PROJECTIONS) as log:
            yield log
    except LogLocked as error:
        raise WrongUse(f"{error}.\nStop that first: a log has one writer.") from error
    except (LogUnreadable, LogBusy) as error:
        raise WrongUse(str(error)) from error
    except RetentionRefused as error:
        print(f"Not done: {error}.", file=sys.stderr)
        sys.exit(1)
    except AppendFailed as error:
        print(f"The log can't be written: {error}", file=sys.stderr)
        sys.exit(1)


def close_segments(log: Log, now_ns: int) -> None:
    """Close what is complete by now: by month, and at a million records."""
    close_due_segments(log, POLICY, now_ns)


def keep_tracker_state(log: Log, now_ns: int) -> None:
    """See Rule 2. Raises RetentionRefused where the state can't be made."""
    fold, first = Fold(), 0
    try:
        snapshot = log.latest_snapshot(image.NAME, image.VERSION)
        if snapshot is not None:
            fold, first = Fold(snapshot.state), snapshot.size
        for entry in log.read(first):
            if (record := entry.record) is None:
                raise RetentionRefused(f"record {entry.position} is redacted, and no state knows of it")
            fold.apply(entry.position, record)
    except (SnapshotDamaged, ProtocolError, RecordsGone, RecordError, LookupError) as error:
        raise RetentionRefused(f"the tracker's state can't be made: {error}") from error
    if fold.unknown:
        # A newer tracker would go on from a state in which what only it knows is missing.
        raise RetentionRefused(f"{fold.unknown} records are of types that only a newer version knows")
    keep_state(log, Snapshot(image.NAME, image.VERSION, log.size, fold.state()), now_ns)


def octets_of(log: Log) -> tuple[int, int]:
    """What the log's file takes, and what its archives take."""
    directory = archives_of(log.path)
    files = directory.iterdir() if directory.is_dir() else ()
    return log.path.stat().st_size, sum(file.stat().st_size for file in files)


def wall_clock_ns() -> int:
    return time.time_ns()
