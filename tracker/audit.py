"""Who held a port at a time: X, nobody, or unknown, because…

Rule 1: an answer is index look-ups, however long the log is. Rule 2: the log says when it could not see
(`outages`); what such a time makes doubtful is answered Unknown, never guessed. Rule 3: a binding lasted
until the worker had withdrawn it from the kernel, also when the tracker heard of it later; a packet seen of
the holder at or after the time dispels all doubt.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventlog.projection import Cell
from eventlog.reading import LogReader
from tracker.events import Ending

ALIVE: Final = "alive"
"""The note in which the tracker says until when its silence means nothing."""
_ALIVE_FORMAT: Final = struct.Struct(">QQ")
_UNSEEN: Final = frozenset({"tracker-down", "records-missed", "clock-stepped", "before-log"})
"""Outages in which something may have been bound that the log does not show."""
_UNSURE: Final = frozenset({"records-missed", "clock-stepped"})
"""Outages in which a binding may have ended that the log shows as held."""
_UNWATCHED: Final = frozenset({"worker-lost", "worker-stopped"})
"""Outages in which the kernel alone knew whether a binding had gone idle."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A row of `bindings`; times in ns by the tracker's clock, those of the kernel by the worker's."""

    binding: int
    gateway: str
    public_address: bytes
    service: str
    peer: bytes | None
    holder: bytes
    mac: bytes | None
    epoch: int
    user_name: str | None
    protocol: int
    source_port: int
    destination: bytes
    destination_port: int
    since_ns: int
    installed_ns: int | None
    withdrawn_ns: int | None
    until_ns: int | None
    reason: Ending | None
    last_packet_ns: int | None
    packets: int | None
    octets: int | None
    refusals: int
    bound_position: int
    unbound_position: int | None

    @property
    def ended_ns(self) -> int | None:
        """When the kernel had nothing of it any more; None: it is open."""
        if self.until_ns is None:
            return None
        return self.until_ns if self.withdrawn_ns is None else min(self.withdrawn_ns, self.until_ns)

    def covers(self, at_ns: int) -> bool:
        return self.since_ns <= at_ns and (self.ended_ns is None or at_ns < self.ended_ns)


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which somebody could not look; `position` None: no record says so (yet)."""

    kind: str
    gateway: str | None
    worker: str | None
    since_ns: int | None
    until_ns: int | None
    detail: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Holder:
    """`doubts`: outages at the time that don't change the answer but belong to it."""

    holding: Holding
    doubts: tuple[Outage, ...]


@dataclass(frozen=True, slots=True)
class Nobody:
    """`last`: who had held it before."""

    last: Holding | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """`last`: who holds it by what the log shows, or held it last."""

    because: tuple[Outage, ...]
    last: Holding | None


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer for one resource; fields None where the question met none."""

    gateway: str | None
    public_address: bytes | None
    service: str | None
    peer: bytes | None
    answer: Holder | Nobody | Unknown


def who(  # noqa: PLR0913 (each is a word of the question)
    reader: LogReader,
    *,
    at_ns: int,
    protocol: int,
    port: int,
    gateway: str | None = None,
    public_address: bytes | None = None,
) -> list[Finding]:
    """One finding for each resource that the port belonged to at the time; at least one."""
    with reader.snapshot():
        findings = [
            finding
            for found, service in _services_of(reader, at_ns, protocol, port, gateway)
            for finding in _findings(reader, at_ns, found, service, public_address)
        ]
        if findings:
            return findings
        unseen = tuple(outage for outage in outages(reader, at_ns=at_ns) if outage.kind in _UNSEEN)
        answer = Unknown(unseen, None) if unseen else Nobody(None)
        return [Finding(gateway, public_address, None, None, answer)]


def holds(  # noqa: PLR0913 (each narrows the list)
    reader: LogReader,
    *,
    at_ns: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    holder: bytes | None = None,
    gateway: str | None = None,
    service: str | None = None,
    open_only: bool = False,
    limit: int | None = None,
) -> list[Holding]:
    """The bindings that were held at a time, or at some time of [since_ns, until_ns), newest first."""
    wanted = {"gateway": gateway, "service": service, "holder": holder}
    equal: dict[str, Cell] = {name: value for name, value in wanted.items() if value is not None}
    with reader.snapshot():
        if at_ns is not None:
            found = [row for row in _at(reader, at_ns, equal) if row.covers(at_ns)]
        else:
            found = _within(reader, equal, since_ns, until_ns, open_only=open_only)
    if open_only:
        found = [holding for holding in found if holding.until_ns is None]
    found.sort(key=lambda holding: holding.binding, reverse=True)
    return found if limit is None else found[:limit]


def outages(reader: LogReader, *, at_ns: int | None = None) -> list[Outage]:
    """The times nobody looked, in the order of the log; with `at_ns` those that it falls into."""
    where = (
        ""
        if at_ns is None
        else " WHERE (since_ns IS NULL OR since_ns <= :at) AND (until_ns IS NULL OR until_ns > :at)"
    )
    rows = reader.query_rows(
        f"SELECT kind, gateway, worker, since_ns, until_ns, detail, position FROM outages{where}"  # noqa: S608 (where is ours)
        " ORDER BY position",
        {} if at_ns is None else {"at": at_ns},
    )
    found = [_outage(row) for row in rows]
    if at_ns is not None:
        found.extend(_edges(reader, at_ns))
    return found


def alive_note(now_ns: int, valid_ns: int) -> bytes:
    """What the tracker leaves behind: it lives now, and will say so again within `valid_ns`."""
    return _ALIVE_FORMAT.pack(now_ns, now_ns + valid_ns)


def alive_ns(note: bytes | None) -> int | None:
    """When the tracker said for the last time that it lives."""
    return None if note is None else int(_ALIVE_FORMAT.unpack(note)[0])


def _edges(reader: LogReader, at_ns: int) -> Iterator[Outage]:
    """Before the log's first record and after the tracker's last sign of life."""
    first = next(reader.read_with_columns(0, 1), None)
    begin_ns = None if first is None else first[1].wall_ns
    if begin_ns is None or at_ns < begin_ns:
        yield Outage("before-log", None, None, None, begin_ns, "the log begins later", None)
    note = reader.note(ALIVE)
    if note is not None:
        last_ns, valid_until_ns = _ALIVE_FORMAT.unpack(note)
        if at_ns > valid_until_ns:
            yield Outage("tracker-down", None, None, last_ns, None, "no sign of life since", None)


def _services_of(
    reader: LogReader, at_ns: int, protocol: int, port: int, gateway: str | None
) -> list[tuple[str, str]]:
    rows = reader.query(
        "SELECT DISTINCT gateway, name FROM service_ports JOIN services USING (gateway, name, since_position)"
        " WHERE protocol = :protocol AND first <= :port AND last >= :port"
        " AND since_ns <= :at AND (until_ns IS NULL OR until_ns > :at)"
        " AND (:gateway IS NULL OR gateway = :gateway) ORDER BY gateway, name",
        {"at": at_ns, "protocol": protocol, "port": port, "gateway": gateway},
    )
    return [(str(found), str(name)) for found, name in rows]


def _findings(
    reader: LogReader, at_ns: int, gateway: str, service: str, public_address: bytes | None
) -> Iterator[Finding]:
    doubts = _outages_of(reader, at_ns, gateway)
    equal: dict[str, Cell] = {"gateway": gateway, "service": service}
    if public_address is not None:
        equal["public_address"] = public_address
    last = _at(reader, at_ns, equal)
    for holding in last:
        answer = _answer(holding, at_ns, doubts)
        yield Finding(gateway, holding.public_address, service, holding.peer, answer)
    if not last:
        yield Finding(gateway, public_address, service, None, _vacant(None, doubts))


def _answer(holding: Holding, at_ns: int, doubts: tuple[Outage, ...]) -> Holder | Nobody | Unknown:
    if not holding.covers(at_ns):
        return _vacant(holding, doubts)
    if holding.last_packet_ns is not None and at_ns <= holding.last_packet_ns:
        return Holder(holding, doubts)
    unsure = tuple(
        outage
        for outage in doubts
        if outage.kind in _UNSURE or (outage.kind in _UNWATCHED and _went_unseen(holding, outage))
    )
    return Unknown(unsure, holding) if unsure else Holder(holding, doubts)


def _went_unseen(holding: Holding, outage: Outage) -> bool:
    """Whether the binding may have ended in the kernel while the worker was away."""
    if holding.until_ns is None:
        return outage.until_ns is None
    return outage.until_ns is None or holding.reason is Ending.LOST


def _vacant(last: Holding | None, doubts: tuple[Outage, ...]) -> Nobody | Unknown:
    unseen = tuple(outage for outage in doubts if outage.kind in _UNSEEN)
    return Unknown(unseen, last) if unseen else Nobody(last)


def _outages_of(reader: LogReader, at_ns: int, gateway: str) -> tuple[Outage, ...]:
    workers = {
        worker for (worker,) in reader.query("SELECT worker FROM sessions WHERE gateway = ?", (gateway,))
    }
    return tuple(
        outage
        for outage in outages(reader, at_ns=at_ns)
        if outage.gateway in (None, gateway) and (outage.worker is None or outage.worker in workers)
    )


_COLUMNS: Final = ", ".join(f"b.{name}" for name in Holding.__dataclass_fields__)


def _at(reader: LogReader, at_ns: int, equal: dict[str, Cell]) -> list[Holding]:
    """For each resource its last binding that had begun by then: the only one that can have lasted."""
    on_resource = {name: value for name, value in equal.items() if name != "holder"}
    where = "".join(f" AND r.{name} = :{name}" for name in on_resource)
    found = reader.query_rows(
        f"SELECT {_COLUMNS} FROM resources AS r JOIN bindings AS b ON b.binding ="  # noqa: S608 (names are ours)
        " (SELECT binding FROM bindings AS i WHERE i.gateway = r.gateway"
        " AND i.public_address = r.public_address AND i.service = r.service AND i.peer = r.peer"
        f" AND i.since_ns <= :at ORDER BY i.since_ns DESC, i.binding DESC LIMIT 1) WHERE 1{where}"
        " ORDER BY r.gateway, r.public_address, r.service, r.peer",
        {**on_resource, "at": at_ns},
    )
    holdings = [_holding(row) for row in found]
    holder = equal.get("holder")
    return [holding for holding in holdings if holder in (None, holding.holder)]


def _within(
    reader: LogReader, equal: dict[str, Cell], since_ns: int | None, until_ns: int | None, *, open_only: bool
) -> list[Holding]:
    where = "".join(f" AND b.{name} = :{name}" for name in equal)
    where += " AND b.until_ns IS NULL" if open_only else ""
    where += "" if until_ns is None else " AND b.since_ns < :until"
    where += "" if since_ns is None else " AND b.since_ns >= :since"
    rows = reader.query_rows(
        f"SELECT {_COLUMNS} FROM bindings AS b WHERE 1{where}",  # noqa: S608 (names are ours)
        {
            **equal,
            **({} if until_ns is None else {"until": until_ns}),
            **({} if since_ns is None else {"since": since_ns}),
        },
    )
    begun_within = [_holding(row) for row in rows]
    if since_ns is None:
        return begun_within
    known = {holding.binding for holding in begun_within}
    before = [row for row in _at(reader, since_ns, equal) if row.covers(since_ns)]
    return begun_within + [holding for holding in before if holding.binding not in known]


def _outage(row: Mapping[str, Any]) -> Outage:
    return Outage(**row)


def _holding(row: Mapping[str, Any]) -> Holding:
    reason = None if row["reason"] is None else Ending(row["reason"])
    return Holding(**{**row, "peer": row["peer"] or None, "reason": reason})
