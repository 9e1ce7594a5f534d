"""Who held a port at a time: X, nobody, or unknown, because…

Rule 1: an answer is index look-ups, however long the log is. Rule 2: the log says when it could not see
(`outages`); what such a time makes doubtful is answered Unknown, never guessed. Rule 3: a binding lasted
until the worker had withdrawn it from the kernel, also when the tracker heard of it later. Rule 4: a time
that the clock showed twice has an answer only if it is the same both times; one that it never showed, none.

Which outage makes what unknown:
    a free port   tracker-down, records-missed, before-log, clock-stepped, and a kernel-state-lost in which no
                  rule was left that would have kept others from the port. While its worker is away it stays
                  free: nothing can be bound without the tracker's record.
    a held port   records-missed and kernel-state-lost always. tracker-down as long as it lasts: the report of
                  the end may wait in an outbox; later the reports are there, and the holder is the answer,
                  with a doubt. A worker away: as long as it lasts, and afterwards if the worker found on its
                  return that the kernel had let go, and no packet of the holder was seen then or later.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from eventlog.projection import Cell
from eventlog.reading import LogReader
from tracker.events import Ending
from tracker.holdings import Holding, holds, last_of_each, newest_binding
from tracker.outages import (
    ALIVE,
    QUEUE_RULES,
    WHOLE_TABLE,
    Outage,
    Stretch,
    alive_note,
    alive_ns,
    number,
    outages,
    showing,
    stretches,
)
from tracker.restricted import Restricted, restricted

__all__ = [
    "ALIVE",
    "Finding",
    "Holder",
    "Holding",
    "Nobody",
    "Outage",
    "Restricted",
    "Unknown",
    "alive_note",
    "alive_ns",
    "holds",
    "outages",
    "who",
]

_UNWATCHED: Final = frozenset({"worker-lost", "worker-stopped", "worker-restarted", "worker-replaced"})
"""Outages in which the kernel alone knew whether a binding had gone idle."""
_FIRST_LOOK_NS: Final = 10_000_000_000
"""By then a worker that is back has compared the kernel with what it knows, and said what is gone."""


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
    """The answer for one resource; fields None where the question met none.

    `restrictions`: who might not claim it then, by an operator's word.
    """

    gateway: str | None
    public_address: bytes | None
    service: str | None
    peer: bytes | None
    answer: Holder | Nobody | Unknown
    restrictions: tuple[Restricted, ...] = ()


Answer = Holder | Nobody | Unknown
_Resource = tuple[bytes, bytes | None]
"""Of a gateway's service: public address and peer."""


def who(
    reader: LogReader,
    *,
    at_ns: int,
    protocol: int | None = None,
    port: int | None = None,
    gateway: str | None = None,
    public_address: bytes | None = None,
    service: str | None = None,
) -> list[Finding]:
    """One finding for each resource that the question is about; at least one."""
    with reader.snapshot():
        clock = stretches(reader)
        shown = showing(clock, at_ns)
        known = outages(reader, at_ns=at_ns)
        found = [
            _answers(reader, clock, stretch, at_ns, of, public_address=public_address, known=known)
            for stretch in shown
            for of in _services_of(reader, stretch, at_ns, (protocol, port, gateway, service), public_address)
        ]
        findings = [
            replace(it, restrictions=restricted(reader, shown, at_ns, it.gateway, it.service))
            for it in _findings(found, len(shown), public_address, known)
        ]
    if findings:
        return findings
    blind = ("clock-stepped",) if not shown else ()
    unseen = tuple(outage for outage in known if outage.kind in blind or _hides_a_binding(outage))
    if not shown and not unseen:
        unseen = (Outage("clock-stepped", None, None, None, None, "the clock never showed this time", None),)
    return [Finding(gateway, public_address, None, None, Unknown(unseen, None) if unseen else Nobody(None))]


# ---- what a time's answer is made of ---------------------------------------------------------------------


def _services_of(
    reader: LogReader,
    stretch: Stretch,
    at_ns: int,
    asked: tuple[int | None, int | None, str | None, str | None],
    public_address: bytes | None,
) -> list[tuple[str, str]]:
    """Gateway and name of the services that had the port then; with less asked, all that fit.

    With an address: only of gateways that ever announced it, unless the gateway is named.
    """
    protocol, port, gateway, service = asked
    rows = reader.query(
        "SELECT DISTINCT gateway, name, since_position, since_ns, until_position, until_ns"
        " FROM service_ports JOIN services USING (gateway, name, since_position)"
        " WHERE (:protocol IS NULL OR protocol = :protocol)"
        " AND (:port IS NULL OR (first <= :port AND last >= :port))"
        " AND (:gateway IS NULL OR gateway = :gateway) AND (:service IS NULL OR name = :service)"
        " AND (:address IS NULL OR :gateway IS NOT NULL"
        "  OR gateway IN (SELECT gateway FROM addresses WHERE public_address = :address))"
        " ORDER BY gateway, name",
        {
            "protocol": protocol,
            "port": port,
            "gateway": gateway,
            "service": service,
            "address": public_address,
        },
    )
    found: dict[tuple[str, str], None] = {}
    for name, service_name, since_position, since_ns, until_position, until_ns in rows:
        begun = stretch.has_happened(number(since_position), number(since_ns), at_ns)
        if until_position is None or until_ns is None:
            over = False
        else:
            over = stretch.has_happened(number(until_position), number(until_ns), at_ns)
        if begun and not over:
            found[str(name), str(service_name)] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What is to be said of a service at one occurrence of the time.

    `vacant`: of the resources that nobody had ever held by then.
    """

    service: tuple[str, str]
    vacant: Nobody | Unknown
    held: dict[_Resource, Answer]


def _answers(
    reader: LogReader,
    clock: list[Stretch],
    stretch: Stretch,
    at_ns: int,
    service: tuple[str, str],
    *,
    public_address: bytes | None,
    known: list[Outage],
) -> _Answers:
    """What was so of a service at one occurrence of the time; `known`: who could not look then."""
    gateway, name = service
    doubts = tuple(
        outage
        for outage in known
        # A time that the clock showed is not doubtful because it was set later.
        if outage.kind != "clock-stepped" and _concerns(reader, outage, gateway)
    )
    equal: dict[str, Cell] = {"gateway": gateway, "service": name}
    if public_address is not None:
        equal["public_address"] = public_address
    held: dict[_Resource, Answer] = {}
    for holding in last_of_each(reader, newest_binding(reader, clock, stretch, at_ns), equal):
        lasted = holding.covers(stretch, at_ns)
        answer = _held(holding, at_ns, doubts) if lasted else _vacant(holding, doubts)
        held[holding.public_address, holding.peer] = answer
    return _Answers(service, _vacant(None, doubts), held)


def _findings(
    found: list[_Answers], times: int, public_address: bytes | None, known: list[Outage]
) -> Iterator[Finding]:
    """One for each resource of each service, whatever the clock did."""
    for gateway, service in dict.fromkeys(answers.service for answers in found):
        of_service = [answers for answers in found if answers.service == (gateway, service)]
        resources = dict.fromkeys(resource for answers in of_service for resource in answers.held)
        for address, peer in resources or [(public_address, None)]:
            each = [answers.held.get((address or b"", peer), answers.vacant) for answers in of_service]
            yield Finding(gateway, address, service, peer, _one_of(each, times, known))


def _held(holding: Holding, at_ns: int, doubts: tuple[Outage, ...]) -> Holder | Unknown:
    unsure = tuple(outage for outage in doubts if _hides_the_end(outage, holding, at_ns))
    return Unknown(unsure, holding) if unsure else Holder(holding, doubts)


def _vacant(last: Holding | None, doubts: tuple[Outage, ...]) -> Nobody | Unknown:
    unseen = tuple(outage for outage in doubts if _hides_a_binding(outage))
    return Unknown(unseen, last) if unseen else Nobody(last)


def _hides_a_binding(outage: Outage) -> bool:
    """Whether somebody may have had a port then that the log shows as free."""
    if outage.kind == "kernel-state-lost":
        return outage.detail == WHOLE_TABLE
    return outage.kind in ("tracker-down", "records-missed", "before-log")


def _hides_the_end(outage: Outage, holding: Holding, at_ns: int) -> bool:
    """Whether the binding may have been over by then though the log shows it as held."""
    match outage.kind:
        case "records-missed":
            return True
        case "kernel-state-lost":
            return outage.detail != QUEUE_RULES
        case _:
            pass
    if holding.last_packet_ns is not None and at_ns <= holding.last_packet_ns:
        return False
    if outage.kind == "tracker-down":
        return outage.until_ns is None
    return outage.kind in _UNWATCHED and _went_unseen(holding, outage)


def _went_unseen(holding: Holding, outage: Outage) -> bool:
    """Whether the binding may have ended in the kernel while the worker was away."""
    if outage.until_ns is None:
        return True
    if holding.reason is Ending.IDLE and holding.ended_ns is not None:
        # Idle for the kernel since some time of the outage, for the log since the worker's first look.
        return holding.ended_ns < outage.until_ns + _FIRST_LOOK_NS
    return holding.reason is Ending.LOST


def _one_of(found: list[Answer], times: int, known: list[Outage]) -> Answer:
    """What is so at each of the times that the clock showed alike, or unknown, because of the clock."""
    first = found[0]
    if times == 1 or isinstance(first, Unknown):
        return first
    steps = tuple(outage for outage in known if outage.kind == "clock-stepped")
    if len(found) == times and all(_same(first, answer) for answer in found):
        return Holder(first.holding, (*first.doubts, *steps)) if isinstance(first, Holder) else first
    last = next((answer.holding for answer in found if isinstance(answer, Holder)), None)
    return Unknown(steps, last)


def _same(one: Answer, other: Answer) -> bool:
    match one, other:
        case Holder(), Holder():
            hosts = ((it.holding.holder, it.holding.mac) for it in (one, other))
            return next(hosts) == next(hosts)
        case Nobody(), Nobody():
            return True
        case _:
            return False


def _concerns(reader: LogReader, outage: Outage, gateway: str) -> bool:
    """Whether it is one of this gateway's, or of a worker that ever spoke for it."""
    if outage.gateway is not None or outage.worker is None:
        return outage.gateway in (None, gateway)
    asked = (outage.worker, gateway)
    return reader.query("SELECT 1 FROM sessions WHERE worker = ? AND gateway = ? LIMIT 1", asked) != []
