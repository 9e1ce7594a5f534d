"""What becomes of old records: segments are closed, archived, pruned; single records are redacted.

Rule 1: each of these is a record, and is carried out in the transaction that appends it (removal.py).
Rule 2: nothing goes before what is needed without it is there and checked: the archive with the records; the
tables and states that they gave, when nobody shall be able to read them again.
Rule 3: a crash leaves all or nothing of it, and at most a file that no record speaks of, which the next
operation sweeps away.

All this is for the one writer of a log. `now_ns` is wall time.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from eventlog import merkle
from eventlog.archive import ArchiveDamaged, Proofs, archive_name, archives_of, write_archive
from eventlog.columns import Place
from eventlog.kept_tables import TablesUnknown, is_kept_tables, kept_tables
from eventlog.projection import Projection
from eventlog.reading import Progress, RecordsGone, ignore_progress
from eventlog.record import (
    NONCE_SIZE,
    OWN_TYPES,
    REDACTED,
    SEGMENT_ARCHIVED,
    SEGMENT_CLOSED,
    SEGMENT_PRUNED,
    SNAPSHOT_TAKEN,
    Record,
    RecordError,
    Source,
    Value,
    clock_went_back,
)
from eventlog.refold import compare_projection
from eventlog.segments import (
    Segment,
    SegmentPolicy,
    Span,
    archived_fields,
    closed_fields,
    due_end,
    pruned_fields,
    redacted_fields,
)
from eventlog.snapshot import Snapshot, snapshot_fields
from eventlog.store import Log
from eventlog.tables import ProjectionError

SOURCE: Final = "log"
"""The source of these records; its sequence is the position."""

REASON_LIMIT: Final = 256
"""The longest reason, in characters."""

_SCHEMA: Final = 1
_ARCHIVE_FILE: Final = re.compile(r"\d{12}-\d{12}-[0-9a-f]{16}\.archive\Z|\.\d{12}\.partial\Z")


class RetentionRefused(Exception):
    """It was not done, and nothing is changed; the message says why."""


def close_due_segments(log: Log, policy: SegmentPolicy, now_ns: int) -> list[Segment]:
    """Close every segment that is complete by now; returns these. Raises RetentionRefused."""
    closed, size = log.life().closed_end, log.size  # What closing itself appends is for the next time.
    while (end := due_end(policy, log, log.life().closed_end, now_ns)) is not None and end <= size:
        close_segment(log, end, now_ns)
    return [it for it in log.life().segments if it.span.first >= closed]


def close_segment(log: Log, end: int, now_ns: int) -> Segment:
    """Close the segment that goes on from the last closed one up to `end`. Raises RetentionRefused."""
    span = Span(log.life().closed_end, end)
    if not span.first < end <= log.size:
        raise RetentionRefused(f"{span} are no segment: the log has {log.size} records")
    fields = closed_fields(span, log.root_at(end), log.wall_ns_at(span.first), log.wall_ns_at(end - 1))
    _append(log, now_ns, (SEGMENT_CLOSED, fields))
    return log.life().segments[-1]


def archive_segment(log: Log, number: int, now_ns: int) -> Path:
    """Move the records of a closed segment into an archive; returns its path. Raises RetentionRefused."""
    sweep(log)
    segment = _segment(log, number)
    if segment.archive is not None or segment.pruned_at is not None:
        what = "pruned" if segment.archive is None else "archived"
        raise RetentionRefused(f"segment {number} is {what} already")
    _check_clock(log, now_ns)
    path, digest = _write_archive(log, segment, without=None)
    _append(log, now_ns, (SEGMENT_ARCHIVED, archived_fields(segment.span, digest)))
    sweep(log)
    return path


def prune_segments(
    log: Log,
    numbers: Sequence[int],
    reason: str,
    now_ns: int,
    *,
    projections: Iterable[Projection],
    progress: Progress = ignore_progress,
) -> list[Segment]:
    """Give the records of closed segments up, archived or not; returns these segments.

    Raises RetentionRefused, also when the projections' tables are not what the records give.
    """
    sweep(log)
    segments = [_segment(log, number) for number in numbers]
    for segment in segments:
        if segment.pruned_at is not None:
            raise RetentionRefused(f"segment {segment.number} is pruned already")
    _prepare(
        log,
        max((it.span.end for it in segments), default=0),
        reason,
        now_ns,
        projections=projections,
        progress=progress,
    )
    for segment in segments:
        _append(log, now_ns, (SEGMENT_PRUNED, pruned_fields(segment.span, reason)))
    sweep(log)
    return [log.life().segments[number] for number in numbers]


def redact(
    log: Log,
    position: int,
    reason: str,
    now_ns: int,
    *,
    projections: Iterable[Projection],
    progress: Progress = ignore_progress,
) -> int:
    """Take out the bytes of one record; its leaf stays. Returns the position of the record that says so.

    Raises RetentionRefused as `prune_segments` does.
    """
    sweep(log)  # A crash may have left the archive with what was to go: asking again makes an end of it.
    try:
        record = log.entry(position).record
    except (IndexError, RecordError) as error:
        raise RetentionRefused(str(error)) from error
    if record is None:
        raise RetentionRefused(f"the record at position {position} is redacted already")
    if record.type in OWN_TYPES:
        raise RetentionRefused(f"the record at position {position} is one of the log's own: it stays")
    _prepare(log, position + 1, reason, now_ns, projections=projections, progress=progress)
    said: list[tuple[int, tuple[Value, ...]]] = [(REDACTED, redacted_fields(position, reason))]
    segment = log.life().segment_at(position)
    if segment is not None and segment.archive is not None:
        _, digest = _write_archive(log, segment, without=position)
        said.append((SEGMENT_ARCHIVED, archived_fields(segment.span, digest)))
    positions = _append(log, now_ns, *said)
    sweep(log)
    return positions[0]


def sweep(log: Log) -> None:
    """Remove archives of this log that no record speaks of: older ones, pruned ones, unfinished ones."""
    segments = log.life().segments
    wanted = {archive_name(it.span, it.archive) for it in segments if it.archive is not None}
    with suppress(FileNotFoundError):
        for path in archives_of(log.path).iterdir():
            if _ARCHIVE_FILE.match(path.name) and path.name not in wanted:
                path.unlink(missing_ok=True)


def keep_state(log: Log, snapshot: Snapshot, now_ns: int) -> None:
    """Append a snapshot of a state as of now. Raises RetentionRefused."""
    _check_clock(log, now_ns)
    record = _record(log, 0, now_ns, SNAPSHOT_TAKEN, snapshot_fields(snapshot, log.root_at(snapshot.size)))
    log.append([record], snapshot=snapshot)


def _prepare(
    log: Log, end: int, reason: str, now_ns: int, *, projections: Iterable[Projection], progress: Progress
) -> None:
    """Before records up to `end` go for good, in whichever way: see Rule 2."""
    if not reason or len(reason) > REASON_LIMIT:
        raise RetentionRefused(f"a reason is wanted, of at most {REASON_LIMIT} characters")
    _check_clock(log, now_ns)
    newest: dict[str, int] = {}
    for snapshot in log.snapshots():
        newest[snapshot.name] = max(newest.get(snapshot.name, 0), snapshot.size)
    for name, size in newest.items():
        if not is_kept_tables(name) and size < end:
            raise RetentionRefused(f"the newest state of {name} is over {size} records, {end} are wanted")
    for projection in projections:
        try:
            differences = compare_projection(log, projection, progress=progress)
        except (TablesUnknown, RecordsGone, ProjectionError) as error:
            raise RetentionRefused(f"the tables cannot be checked before records go: {error}") from error
        if differences:
            raise RetentionRefused(f"the tables are not what the records give: {differences[0]}")
        keep_state(log, kept_tables(log, projection), now_ns)


def _write_archive(log: Log, segment: Segment, without: int | None) -> tuple[Path, bytes]:
    span = segment.span
    if log.root_at(span.end) != segment.root:
        raise RetentionRefused(f"segment {segment.number} is damaged; `verify` says where")
    frontier = merkle.frontier_at(log, span.first)
    checkpoint = log.latest_checkpoint()
    if checkpoint is None or checkpoint.size < span.end:
        proofs = Proofs(frontier.peaks, segment.root)
    else:
        path = merkle.consistency_proof(log, span.end, checkpoint.size)
        proofs = Proofs(frontier.peaks, segment.root, checkpoint.note, path)
    try:
        with write_archive(archives_of(log.path), span, _places(log, span, without), proofs) as archive:
            return archive.path, archive.hash
    except (ArchiveDamaged, RecordsGone, RecordError) as error:
        raise RetentionRefused(f"segment {segment.number}: {error}") from error
    except OSError as error:
        raise RetentionRefused(f"{archives_of(log.path)}: {error.strerror}") from error


def _places(log: Log, span: Span, without: int | None) -> Iterator[Place]:
    for entry in log.read(span.first, span.end):
        yield Place(None if entry.position == without else entry.data, entry.leaf)


def _segment(log: Log, number: int) -> Segment:
    segments = log.life().segments
    if not 0 <= number < len(segments):
        raise RetentionRefused(f"there is no closed segment {number}: there are {len(segments)}")
    return segments[number]


def _append(log: Log, now_ns: int, *said: tuple[int, tuple[Value, ...]]) -> range:
    _check_clock(log, now_ns)
    records = [_record(log, part, now_ns, kind, fields) for part, (kind, fields) in enumerate(said)]
    return log.append(records)


def _record(log: Log, part: int, now_ns: int, kind: int, fields: tuple[Value, ...]) -> Record:
    source = Source(SOURCE, 0, log.size + part, 0)
    return Record(_SCHEMA, kind, now_ns, None, source, os.urandom(NONCE_SIZE), fields)


def _check_clock(log: Log, now_ns: int) -> None:
    if clock_went_back(log.last_wall_ns, now_ns):
        raise RetentionRefused("the clock is behind the log's last record; set it right first")
