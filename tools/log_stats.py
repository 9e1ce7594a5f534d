"""`porthold log stats`: how large the log is, how fast it grows, and how much of it is protected."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eventlog.reading import Entry, LogReader, RecordsGone, StoredCheckpoint
from tools.moment import NS_PER_S
from tools.output import print_line, time_text

_SAMPLE: Final = 10_000
"""So many of the newest records are measured: exact for a small log, and quick for a large one."""
_ENOUGH: Final = 1000
_SPANS_S: Final = {"minute": 60, "hour": 3600, "day": 86_400}


@dataclass(frozen=True, slots=True)
class Stats:
    """`record_octets`: of the newest records' own bytes, on average; `file_octets_a_record`: all told.

    `appended`: how many records came in the last minute, hour and day, back from `now_ns`.
    """

    records: int
    first_ns: int | None
    last_ns: int | None
    now_ns: int
    database_octets: int
    wal_octets: int
    file_octets_a_record: float | None
    record_octets: float | None
    appended: dict[str, int]
    checkpoints: int
    checkpoint_size: int | None
    checkpoint_made_ns: int | None
    unprotected: int


def measure(reader: LogReader, now_ns: int) -> Stats:
    """The log as it is at one moment."""
    with reader.snapshot():
        size = reader.size
        checkpoint = reader.latest_checkpoint()
        database_octets, wal_octets = _octets(reader.path), _octets(_wal(reader.path))
        return Stats(
            records=size,
            first_ns=_wall_ns(reader, 0, size),
            last_ns=_wall_ns(reader, size - 1, size),
            now_ns=now_ns,
            database_octets=database_octets,
            wal_octets=wal_octets,
            file_octets_a_record=(database_octets + wal_octets) / size if size else None,
            record_octets=_average(reader, size),
            appended={
                name: size - reader.position_at(max(0, now_ns - seconds * NS_PER_S))
                for name, seconds in _SPANS_S.items()
            },
            checkpoints=len(reader.checkpoints()),
            checkpoint_size=None if checkpoint is None else checkpoint.size,
            checkpoint_made_ns=None if checkpoint is None else checkpoint.made_ns,
            unprotected=size - _protected(checkpoint),
        )


def print_stats(path: Path, stats: Stats) -> None:
    print_line((str(path), "bold"))
    for line in _lines(stats):
        print_line(f"  {line}")


def _lines(stats: Stats) -> Iterator[str]:
    span = ""
    if stats.first_ns is not None and stats.last_ns is not None:
        span = f", from {time_text(stats.first_ns)} to {time_text(stats.last_ns)}"
    yield f"records: {stats.records}{span}"
    yield f"database: {_size(stats.database_octets)}, WAL: {_size(stats.wal_octets)}"
    if stats.file_octets_a_record is not None and stats.record_octets is not None:
        own = f"{stats.record_octets:.0f} its own (the newest {min(_SAMPLE, stats.records)} measured)"
        # An empty file's pages would be the most of it where there are few.
        enough = stats.records >= _ENOUGH
        whole = f", {stats.file_octets_a_record:.0f} with all that goes with it" if enough else ""
        yield f"octets a record: {own}{whole}"
    yield "rate: " + ", ".join(f"{count} in the last {name}" for name, count in stats.appended.items())
    if stats.checkpoint_size is None or stats.checkpoint_made_ns is None:
        yield f"checkpoint: none, so all {stats.records} records are unprotected"
    else:
        made = time_text(stats.checkpoint_made_ns)
        yield f"checkpoint: the last of {stats.checkpoints} is over {stats.checkpoint_size} records, {made}"
        yield f"unprotected: {stats.unprotected} records after it"


def _protected(checkpoint: StoredCheckpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.size


def _wall_ns(reader: LogReader, position: int, size: int) -> int | None:
    """The time of the record there; None where it is not, or not any more."""
    if not 0 <= position < size:
        return None
    try:
        return reader.first_wall_ns if position == 0 else reader.wall_ns_at(position)
    except RecordsGone:
        return None


def _average(reader: LogReader, size: int) -> float | None:
    newest = reader.read_with_gaps(max(0, size - _SAMPLE), size)
    octets = [len(it.data) for it in newest if isinstance(it, Entry) and it.data is not None]
    return sum(octets) / len(octets) if octets else None


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _octets(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _size(octets: int) -> str:
    """With a thousand for a step, as disks are sold."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if octets >= step:
            return f"{octets / step:.1f} {unit}"
    return f"{octets} octets"
