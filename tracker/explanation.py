"""Why a binding was what it was: every record that made it so, in the order of the log.

Rule: nothing is searched for; the tables know where a binding's records are (`projections`, Rule 3), so an
explanation costs a few look-ups, however long the log and however long the binding lasted.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from eventlog.projection import Cell
from eventlog.reading import LogReader
from eventlog.record import Record, RecordError
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    Event,
    HolderNamed,
    PortBound,
    PortRefused,
    PortUnbound,
    RefusalsEnded,
    WithdrawalOrdered,
    from_record,
)
from tracker.holdings import Holding, holding_of
from tracker.outages import Outage, outages_within
from tracker.shapes import ProtocolError


class Role(enum.StrEnum):
    """What a record has to do with the binding."""

    DEFINED = "what the service was"
    SESSION = "the worker's session"
    FREED = "the resource became free"
    BOUND = "bound"
    INSTALLED = "put into the kernel"
    NAMED = "the user's name"
    MENTIONED = "a name or an installation"
    REFUSED = "refused to another"
    ADDRESS = "the public address went"
    ORDERED = "an operator ended it"
    WITHDRAWN = "taken from the kernel"
    COUNTED = "refusals counted"
    PERHAPS_END = "perhaps of its end"
    UNBOUND = "unbound"
    OUTAGE = "in doubt because of"


_ROLES: Final[dict[type[Event], Role]] = {
    PortBound: Role.BOUND,
    BindingInstalled: Role.INSTALLED,
    HolderNamed: Role.NAMED,
    PortRefused: Role.REFUSED,
    WithdrawalOrdered: Role.ORDERED,
    BindingWithdrawn: Role.WITHDRAWN,
    RefusalsEnded: Role.COUNTED,
    PortUnbound: Role.UNBOUND,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A record of the explanation; without an event it can't be read, and `why_not` says why."""

    position: int
    role: Role
    record: Record | None
    event: Event | None
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """`doubts`: the outages that fall into the binding's time, those with a record among the steps."""

    holding: Holding
    steps: tuple[Step, ...]
    doubts: tuple[Outage, ...]


def explain(reader: LogReader, binding: int) -> Explanation | None:
    """The binding of this number with all its records; None if there never was one."""
    with reader.snapshot():
        holding = holding_of(reader, binding)
        if holding is None:
            return None
        doubts = tuple(_doubts(reader, holding))
        places: dict[int, Role] = {}
        for position, role in _places(reader, holding, doubts):
            places.setdefault(position, role)
        steps = tuple(_step(reader, position, role) for position, role in sorted(places.items()))
    return Explanation(holding, steps, doubts)


def _places(reader: LogReader, holding: Holding, doubts: tuple[Outage, ...]) -> Iterator[tuple[int, Role]]:
    yield from _own(reader, holding)
    yield from _before(reader, holding)
    for position in _address_changes(reader, holding):
        yield position, Role.ADDRESS
    for outage in doubts:
        if outage.position is not None:
            yield outage.position, Role.OUTAGE


def _own(reader: LogReader, holding: Holding) -> Iterator[tuple[int, Role]]:
    """The records that name the binding, wherever the tables remember them.

    Of what can't be read, the tables say what it was.
    """
    known = dict(_known_places(reader, holding))
    if holding.unbound_position is not None:
        # Its withdrawal and the counts of its refusals are appended with its end, just before it.
        refused = sum(role is Role.REFUSED for role in known.values())
        for position in range(holding.unbound_position - 1 - refused, holding.unbound_position):
            known.setdefault(position, Role.PERHAPS_END)
    for position, role in sorted(known.items()):
        event = _step(reader, position, role).event
        if event is None:
            yield position, role
        elif getattr(event, "binding", None) == holding.binding and type(event) in _ROLES:
            yield position, _ROLES[type(event)]


def _known_places(reader: LogReader, holding: Holding) -> Iterator[tuple[int, Role]]:
    """Positions in the tables, and what each is of."""
    asked = (holding.binding,)
    statements = {
        Role.NAMED: "SELECT named_position FROM bindings WHERE binding = ?",
        Role.INSTALLED: "SELECT installed_position FROM bindings WHERE binding = ?",
        Role.REFUSED: "SELECT position FROM refusals WHERE binding = ?",
        Role.MENTIONED: "SELECT position FROM mentions WHERE binding = ?",
        Role.BOUND: "SELECT bound_position FROM bindings WHERE binding = ?",
        Role.UNBOUND: "SELECT unbound_position FROM bindings WHERE binding = ?",
    }
    for role, statement in statements.items():
        for (position,) in reader.query(statement, asked):
            if isinstance(position, int):
                yield position, role


def _before(reader: LogReader, holding: Holding) -> Iterator[tuple[int, Role]]:
    """What it rests on: the service as it then was, the session that asked, the end of the one before."""
    known: dict[str, Cell] = {
        "gateway": holding.gateway,
        "service": holding.service,
        "epoch": holding.epoch,
        "address": holding.public_address,
        "peer": holding.peer or b"",
        "bound": holding.bound_position,
        "binding": holding.binding,
    }
    statements = {
        Role.DEFINED: "SELECT max(since_position) FROM services"
        " WHERE gateway = :gateway AND name = :service AND since_position < :bound",
        Role.SESSION: "SELECT position FROM sessions WHERE gateway = :gateway AND epoch = :epoch",
        Role.FREED: "SELECT unbound_position FROM bindings WHERE gateway = :gateway"
        " AND public_address = :address AND service = :service AND peer = :peer AND binding < :binding"
        " ORDER BY binding DESC LIMIT 1",
    }
    for role, statement in statements.items():
        for (position,) in reader.query(statement, known):
            if isinstance(position, int):
                yield position, role


def _address_changes(reader: LogReader, holding: Holding) -> list[int]:
    """Where its public address is said to have gone, if that was its end."""
    if holding.reason is not Ending.ADDRESS_CHANGED:
        return []
    rows = reader.query(
        "SELECT position FROM address_changes WHERE gateway = ? AND old = ? AND position > ?"
        " ORDER BY position LIMIT 1",
        (holding.gateway, holding.public_address, holding.bound_position),
    )
    return [position for (position,) in rows if isinstance(position, int)]


def _doubts(reader: LogReader, holding: Holding) -> Iterator[Outage]:
    workers = {
        worker
        for (worker,) in reader.query(
            "SELECT DISTINCT worker FROM sessions WHERE gateway = ?", (holding.gateway,)
        )
    }
    for outage in outages_within(reader, holding.since_ns, holding.ended_ns):
        if outage.gateway in (None, holding.gateway) and outage.worker in (None, *workers):
            yield outage


def _step(reader: LogReader, position: int, role: Role) -> Step:
    try:
        record = reader.entry(position).record
        if record is None:
            return Step(position, role, None, None, "redacted or pruned: only its hash is left")
        return Step(position, role, record, from_record(record))
    except (IndexError, RecordError, ProtocolError) as error:
        return Step(position, role, None, None, str(error))
