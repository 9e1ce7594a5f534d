"""A load for a log, and what the log must then say: for tests that crash it.

Rule: every step is one transaction. `after` it the log is in a state known beforehand, to the byte; so what
is found later is one of the states that the test knows, or half a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Self, TypeAlias

import pytest

from eventlog import merkle
from eventlog.checkpoint import Checkpoint, key_change_fields
from eventlog.note import SigningKey
from eventlog.record import KEY_CHANGED, SNAPSHOT_TAKEN, Record, decode, encode
from eventlog.snapshot import Snapshot, snapshot_fields
from eventlog.store import Answer, Forget, Log, LogReader
from eventlog.verify import verify
from tests.unit.eventlog.samples import NAMED, START_NS, Holders, PortsSeen, held, make_record

KEY = SigningKey.generate("example.com/crashed")
WORKER = "gateway-1"


@dataclass(frozen=True, slots=True)
class State:
    """All that a log was asked to keep."""

    records: tuple[bytes, ...] = ()
    answer: int | None = None
    note: bytes | None = None
    checkpoints: tuple[bytes, ...] = ()
    snapshots: tuple[int, ...] = ()

    @classmethod
    def of(cls, log: LogReader) -> Self:
        latest = next((answer for answer in log.latest_answers() if answer.name == WORKER), None)
        return cls(
            tuple(entry.data or b"" for entry in log.read()),
            None if latest is None else latest.sequence,
            log.note("alive"),
            tuple(checkpoint.note for checkpoint in log.checkpoints()),
            tuple(sorted(snapshot.size for snapshot in log.snapshots())),
        )

    def __str__(self) -> str:
        counts = f"{len(self.checkpoints)} checkpoints, snapshots at {self.snapshots}"
        return f"{len(self.records)} records, answer {self.answer}, note {self.note!r}, {counts}"


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction: `take` may be repeated, as a worker repeats what nobody acknowledged."""

    after: State
    take: Callable[[Log], object]


Steps: TypeAlias = Callable[[State, Random], Step]


def next_step(before: State, chance: Random) -> Step:
    """What a tracker does to its log, mostly batches. The first record is the key that signs checkpoints."""
    if not before.records:
        record = make_record(0, key_change_fields(KEY.verifying_key, None), kind=KEY_CHANGED)
        return _batch(before, [record])
    kinds: list[Steps] = [_records, _large_record, _checkpoint, _snapshot, _note]
    (kind,) = chance.choices(kinds, (14, 1, 2, 1, 2))
    return kind(before, chance)


def check_log(path: Path, possible: tuple[State, ...]) -> State:
    """Open what a crash has left: it is in one of the states, clean, and takes the next batch."""
    with Log.open(path, projections=[Holders()]) as log:
        found = State.of(log)
        if found not in possible:
            pytest.fail(f"found {found}; possible was {' | or '.join(map(str, possible))}", pytrace=False)
        keys = [KEY.verifying_key] if found.records else []
        report = verify(log, [Holders()], keys=keys, folds=[PortsSeen()])
        assert report.clean, report.first
        log.append([held(10**6)], answers=[Answer(WORKER, START_NS, 10**6, b"")])
        assert log.size == len(found.records) + 1
    with LogReader.open(path) as reader:
        assert reader.size == len(found.records) + 1
    return found


def _batch(before: State, records: list[Record], snapshot: Snapshot | None = None) -> Step:
    number = len(before.records)
    end = number + len(records)
    note = b"%d" % end
    after = replace(
        before, records=(*before.records, *(encode(record) for record in records)), answer=number, note=note
    )
    if snapshot is not None:
        after = replace(after, snapshots=(*before.snapshots, snapshot.size)[-2:])

    def take(log: Log) -> None:
        log.append(
            records,
            answers=[Answer(WORKER, START_NS, number, b"%d" % end)],
            forget_answers=[Forget(WORKER, START_NS, number - 5)],
            notes={"alive": note},
            # A snapshot that is there already is not taken again: its record is in the log.
            snapshot=snapshot if log.size == number else None,
        )

    return Step(after, take)


def _records(before: State, chance: Random) -> Step:
    first = len(before.records)
    records = [_record(first + index, chance) for index in range(chance.randint(1, 12))]
    return _batch(before, records)


def _record(sequence: int, chance: Random) -> Record:
    holder = bytes([192, 168, 0, chance.randrange(8)])
    if chance.random() < 0.2:
        return make_record(sequence, (holder, "x" * chance.randrange(60)), kind=NAMED)
    return held(sequence, 7000 + chance.randrange(50), holder)


def _large_record(before: State, chance: Random) -> Step:
    sequence = len(before.records)
    return _batch(before, [make_record(sequence, (chance.randbytes(chance.randrange(30_000)),), kind=99)])


def _snapshot(before: State, _chance: Random) -> Step:
    fold = PortsSeen()
    for position, data in enumerate(before.records):
        fold.apply(position, decode(data))
    snapshot = Snapshot("ports", 1, len(before.records), fold.state())
    fields = snapshot_fields(snapshot, _root_over(before.records))
    fields = snapshot_fields(snapshot, _root_over(before.records))
    return _batch(before, [make_record(len(before.records), fields, kind=SNAPSHOT_TAKEN)], snapshot)


def _checkpoint(before: State, _chance: Random) -> Step:
    size = len(before.records)
    note = KEY.sign(Checkpoint(KEY.name, size, _root_over(before.records)).text())

    def take(log: Log) -> None:
        if len(log.checkpoints()) == len(before.checkpoints):
            log.write_checkpoint(note, size, START_NS)

    return Step(replace(before, checkpoints=(*before.checkpoints, note)), take)


def _note(before: State, chance: Random) -> Step:
    value = chance.randbytes(8)
    return Step(replace(before, note=value), lambda log: log.append([], notes={"alive": value}))


def _root_over(records: tuple[bytes, ...]) -> bytes:
    frontier = merkle.Frontier()
    for data in records:
        frontier.append(merkle.leaf_hash(data))
    return frontier.root()
