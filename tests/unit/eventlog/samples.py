"""Records and projections that the log's tests share; their contents mean nothing to the log."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eventlog.projection import Delete, Insert, Reader, RowChange, TableSpec, Update
from eventlog.record import SNAPSHOT_TAKEN, Record, Source, Value
from eventlog.snapshot import Snapshot, snapshot_fields
from eventlog.store import Log

HELD = 16
LEFT = 17
NAMED = 18

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Holders:
    """Who holds which port: rows come, change and go, and are looked up before they do."""

    name = "holders"

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.tables = {
            "holders": TableSpec(
                {"port": int, "holder": bytes, "user_name": str, "since_ns": int},
                primary_key=("port",),
                not_null=frozenset({"holder"}),
                indexes=(("holder",),),
            ),
            "changes": TableSpec({"position": int, "port": int}, primary_key=("position", "port")),
        }

    def rows(self, position: int, record: Record, read: Reader) -> Iterator[RowChange]:
        match record.type, record.fields:
            case 16, (int(port), bytes(holder)):
                if read.get("holders", (port,)) is not None:
                    yield Delete("holders", (port,))
                since_ns = record.wall_ns * self.version
                yield Insert("holders", {"port": port, "holder": holder, "since_ns": since_ns})
                yield Insert("changes", {"position": position, "port": port})
            case 17, (int(port),):
                yield Delete("holders", (port,))
            case 18, (bytes(holder), str(user_name)):
                for row in read.find("holders", {"holder": holder}):
                    yield Update("holders", (row["port"],), {"user_name": user_name})
            case _:
                pass


class PortsSeen:
    """A state: which ports were ever held."""

    name = "ports"
    version = 1

    def __init__(self) -> None:
        self.ports: set[int] = set()

    def apply(self, _position: int, record: Record) -> None:
        if record.type == HELD and isinstance(record.fields[0], int):
            self.ports.add(record.fields[0])

    def state(self) -> bytes:
        return repr(sorted(self.ports)).encode()


def make_record(
    sequence: int,
    fields: tuple[Value, ...] = (),
    *,
    kind: int = HELD,
    wall_ns: int | None = None,
    name: str = "gateway-1",
    incarnation: int = START_NS,
    part: int = 0,
) -> Record:
    """A record that differs from every other; by default a second passes between two sequences."""
    wall_ns = START_NS + sequence * SECOND_NS if wall_ns is None else wall_ns
    source = Source(name, incarnation, sequence, part)
    return Record(1, kind, wall_ns, wall_ns - 5, source, os.urandom(16), fields)


def held(sequence: int, port: int = 7648, holder: bytes = b"\xc0\xa8\x00\x02") -> Record:
    return make_record(sequence, (port, holder))


def many_held(count: int, first: int = 0) -> Sequence[Record]:
    return [held(sequence, 7000 + sequence % 50) for sequence in range(first, first + count)]


def make_log(path: Path, count: int) -> Path:
    """A closed log of `count` records, written in batches of seven."""
    with Log.open(path, projections=[Holders()]) as log:
        for first in range(0, count, 7):
            log.append(many_held(min(7, count - first), first))
    return path


def take_snapshot(log: Log, state: bytes | None = None) -> Snapshot:
    """Keep a snapshot of PortsSeen, or of a state that somebody made up."""
    fold = PortsSeen()
    for entry in log.read():
        if entry.record is not None:
            fold.apply(entry.position, entry.record)
    snapshot = Snapshot("ports", 1, log.size, fold.state() if state is None else state)
    wall_ns = log.last_wall_ns or START_NS
    fields = snapshot_fields(snapshot, log.head().root)
    record = make_record(log.size, fields, kind=SNAPSHOT_TAKEN, name="log", wall_ns=wall_ns)
    (position,) = log.append([record], snapshot=snapshot)
    return replace(snapshot, said_at=position)
