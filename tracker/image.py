"""The tracker's state as bytes: what a snapshot keeps, so that a restart need not fold the whole log.

Rule 1: the same records give the same bytes, and `decoded(encoded(memory))` is what folding these records
gives: so what is not logged (leases, counts of refusals, the clock's offset) is not in it, and begins as it
does after folding. Rule 2: order is kept where the state has one (gateways, services, bindings come in the
order of their events), sets are sorted. Rule 3: whoever changes what the state is, or what an event does to
it, raises VERSION: images of another version are left alone, and the log is folded. Rule 4: where records
were pruned or redacted there is nothing left to fold. So from the first release on, a version that raises
VERSION reads the images of the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgpack

from eventlog.record import Record
from tracker import transitions
from tracker.events import (
    TRACKER,
    TYPES,
    Ending,
    PortBound,
    Restraint,
    ServiceDefinition,
    SessionEnding,
    from_record,
)
from tracker.restrictions import Restriction, Scope
from tracker.shapes import (
    Address,
    Count,
    Milliseconds,
    Name,
    Nanoseconds,
    ProtocolError,
    Text,
    pack,
    unpack,
)
from tracker.transitions import Binding, Gateway, Refusals, Session, State

NAME: Final = "tracker"
"""Of the snapshots."""
VERSION: Final = 4


@dataclass(slots=True)
class Memory:
    """What the records give: the state, and for each worker a time up to which nothing can be missing."""

    state: State
    told_ns: dict[str, int] = field(default_factory=dict)

    def take_in(self, record: Record) -> None:
        """Fold the next record. ProtocolError: this version does not know it; KeyError: it does not fit."""
        transitions.apply(self.state, from_record(record), record.wall_ns)
        self.hear(record)

    def hear(self, record: Record) -> None:
        """Note when its source spoke; all that `take_in` does for a record whose event is applied already."""
        if record.source.name != TRACKER:
            self.told_ns[record.source.name] = min(record.wall_ns, record.reported_ns or record.wall_ns)


class Fold:
    """Makes a state from the records, for readers (an eventlog.snapshot.StateFold).

    A reader may be older than the log: records of types that it does not know are counted and left out. The
    tracker itself decides nothing on such a log.
    """

    name: Final = NAME
    version: Final = VERSION

    def __init__(self, image: bytes | None = None) -> None:
        self.memory = Memory(State(lease_ms=0)) if image is None else decoded(image, lease_ms=0)
        self.unknown = 0

    def apply(self, _position: int, record: Record) -> None:
        if record.type in TYPES:
            self.memory.take_in(record)
        else:
            self.unknown += 1
            transitions.apply_time(self.memory.state, record.wall_ns)
            self.memory.hear(record)

    def state(self) -> bytes:
        return encoded(self.memory)


@dataclass(frozen=True, slots=True)
class _Session:
    epoch: Count
    worker: Name
    host: Text
    public_addresses: tuple[Address, ...]
    opened_ns: Nanoseconds
    lease_ms: Milliseconds
    fence: bool
    lost_since_ns: Nanoseconds | None
    refused: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class _Gateway:
    name: Name
    epoch: Count
    worker: Name | None
    host: Text | None
    trusted_epoch: Count
    moved_epoch: Count
    session: _Session | None
    last_ending: SessionEnding | None
    services: tuple[ServiceDefinition, ...]


@dataclass(frozen=True, slots=True)
class _Refusals:
    claimant: Address
    first_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class _Binding:
    bound: PortBound
    since_ns: Nanoseconds
    user_name: Text | None
    ordered: Ending | None
    refusals: tuple[_Refusals, ...]


@dataclass(frozen=True, slots=True)
class _Denied:
    gateway: Name
    service: Name
    claimant: Address


@dataclass(frozen=True, slots=True)
class _Restriction:
    restraint: Restraint
    gateway: Name | None
    service: Name | None
    host: Address | None
    reserved_for: Address | None
    until_ns: Nanoseconds | None
    by: Text
    why: Text
    since_ns: Nanoseconds
    denied: tuple[_Denied, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    worker: Text
    told_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class _Image:
    run: Count
    key: Text | None
    next_binding: Count
    highest_wall_ns: Nanoseconds | None
    gateways: tuple[_Gateway, ...]
    bindings: tuple[_Binding, ...]
    restrictions: tuple[_Restriction, ...]
    told: tuple[_Told, ...]


def encoded(memory: Memory) -> bytes:
    """The image: one msgpack array, canonical."""
    state = memory.state
    image = _Image(
        state.run,
        state.key,
        state.next_binding,
        state.highest_wall_ns,
        tuple(_gateway(name, gateway) for name, gateway in state.gateways.items()),
        tuple(_binding(binding) for binding in state.bindings.values()),
        tuple(_restriction(restriction) for restriction in state.restrictions.values()),
        tuple(_Told(worker, told_ns) for worker, told_ns in memory.told_ns.items()),
    )
    data: bytes = msgpack.packb(pack(image), use_bin_type=True)
    return data


def decoded(data: bytes, *, lease_ms: int) -> Memory:
    """What was encoded, as after folding; `lease_ms` is no part of it. ProtocolError: this is no image."""
    try:
        values = msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError("image", f"no msgpack: {error}") from error
    image = unpack(_Image, values, "image")
    state = State(
        lease_ms,
        run=image.run,
        next_binding=image.next_binding,
        highest_wall_ns=image.highest_wall_ns,
        key=image.key,
    )
    for gateway in image.gateways:
        state.gateways[gateway.name] = _to_gateway(gateway)
    for binding in image.bindings:
        _put_back(state, binding)
    for restriction in image.restrictions:
        _restrict(state, restriction)
    memory = Memory(state, {told.worker: told.told_ns for told in image.told})
    if encoded(memory) != data:
        raise ProtocolError("image", "is not in its canonical form")
    return memory


def _gateway(name: str, gateway: Gateway) -> _Gateway:
    return _Gateway(
        name,
        gateway.epoch,
        gateway.worker,
        gateway.host,
        gateway.trusted_epoch,
        gateway.moved_epoch,
        None if gateway.session is None else _session(gateway.session),
        gateway.last_ending,
        tuple(gateway.services.values()),
    )


def _session(session: Session) -> _Session:
    return _Session(
        session.epoch,
        session.worker,
        session.host,
        session.public_addresses,
        session.opened_ns,
        session.lease_ms,
        session.fence,
        session.lost_since_ns,
        tuple(sorted(session.refused)),
    )


def _binding(binding: Binding) -> _Binding:
    return _Binding(
        binding.bound, binding.since_ns, binding.user_name, binding.ordered, tuple(_refusals(binding))
    )


def _refusals(binding: Binding) -> Iterator[_Refusals]:
    for claimant, refusals in binding.refusals.items():
        yield _Refusals(claimant, refusals.first_ns)


def _to_gateway(image: _Gateway) -> Gateway:
    return Gateway(
        image.epoch,
        image.worker,
        image.host,
        image.trusted_epoch,
        image.moved_epoch,
        None if image.session is None else _to_session(image.session),
        image.last_ending,
        {service.name: service for service in image.services},
    )


def _to_session(image: _Session) -> Session:
    return Session(
        image.epoch,
        image.worker,
        image.host,
        image.public_addresses,
        image.opened_ns,
        image.lease_ms,
        image.fence,
        image.lost_since_ns,
        set(image.refused),
        heard_ns=image.opened_ns,
    )


def _put_back(state: State, image: _Binding) -> None:
    number, resource = image.bound.binding, image.bound.resource
    if number in state.bindings or resource in state.held or resource.gateway not in state.gateways:
        raise ProtocolError("image.bindings", f"binding {number} does not fit the others")
    refusals = {it.claimant: Refusals(it.first_ns, 1, it.first_ns) for it in image.refusals}
    state.bindings[number] = Binding(image.bound, image.since_ns, image.user_name, image.ordered, refusals)
    state.held[resource] = number
    state.gateways[resource.gateway].bindings.add(number)


def _restriction(restriction: Restriction) -> _Restriction:
    scope = restriction.scope
    return _Restriction(
        scope.restraint,
        scope.gateway,
        scope.service,
        scope.host,
        restriction.reserved_for,
        restriction.until_ns,
        restriction.by,
        restriction.why,
        restriction.since_ns,
        tuple(_Denied(*denied) for denied in sorted(restriction.denied)),
    )


def _restrict(state: State, image: _Restriction) -> None:
    scope = Scope(image.restraint, image.gateway, image.service, image.host)
    if scope in state.restrictions:
        raise ProtocolError("image.restrictions", f"{scope} is there twice")
    denied = {(it.gateway, it.service, it.claimant) for it in image.denied}
    state.restrictions[scope] = Restriction(
        scope, image.reserved_for, image.until_ns, image.by, image.why, image.since_ns, denied
    )
