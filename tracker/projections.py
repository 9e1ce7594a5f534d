"""The tables that answer questions, made from the records alone.

Rule 1: a table says what the records say, by the tracker's clock; how much of it can be believed at a given
time is `audit`'s affair. Rule 2: `peer` is empty where a service is not shared per peer, never NULL, so that
it can be compared. Rule 3: the records of a binding are found again by positions that cost few bytes: in the
rows that they make anyway, or in `mentions`; the records of its end lie side by side before its last one.
A change to what the tables hold raises `version`: the store then folds the log again. Where records were
pruned or redacted it cannot: from the first release on, a new version is an eventlog.projection.Upgrading.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from eventlog.projection import Cell, Insert, Projection, Reader, Row, RowChange, TableSpec, Update
from eventlog.record import Record
from tracker.events import (
    TYPES,
    BarLifted,
    BindingInstalled,
    BindingWithdrawn,
    ClaimsFrozen,
    ClockStepped,
    Event,
    FreezeEnded,
    HolderNamed,
    HostBarred,
    KernelStateRestored,
    OutboxFilled,
    PortBound,
    PortRefused,
    PortReserved,
    PortUnbound,
    PublicAddressChanged,
    RecordsMissed,
    RefusalsEnded,
    ReservationEnded,
    Restricting,
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    TrackerStarted,
    WithdrawalOrdered,
    WorkerLost,
    WorkerReturned,
    from_record,
)
from tracker.restrictions import scope_of

BINDINGS: Final = TableSpec(
    {
        "binding": int,
        "gateway": str,
        "public_address": bytes,
        "service": str,
        "peer": bytes,
        "holder": bytes,
        "mac": bytes,
        "epoch": int,
        "user_name": str,
        "protocol": int,
        "source_port": int,
        "destination": bytes,
        "destination_port": int,
        "since_ns": int,
        "installed_ns": int,
        "withdrawn_ns": int,
        "until_ns": int,
        "reason": str,
        "last_packet_ns": int,
        "packets": int,
        "octets": int,
        "callers": int,
        "refusals": int,
        "bound_position": int,
        "installed_position": int,
        "named_position": int,
        "unbound_position": int,
    },
    primary_key=("binding",),
    not_null=frozenset({"gateway", "public_address", "service", "peer", "holder", "since_ns", "refusals"}),
    indexes=(
        ("gateway", "public_address", "service", "peer"),  # and by binding within: it is the rowid
        ("holder", "since_ns"),
        ("since_ns",),
        ("until_ns",),
    ),
)
RESOURCES: Final = TableSpec(
    {"gateway": str, "public_address": bytes, "service": str, "peer": bytes},
    primary_key=("gateway", "public_address", "service", "peer"),
)
ADDRESSES: Final = TableSpec(
    {"gateway": str, "public_address": bytes}, primary_key=("public_address", "gateway")
)
"""Which public addresses a gateway ever announced."""
REFUSALS: Final = TableSpec(
    {
        "binding": int,
        "claimant": bytes,
        "mac": bytes,
        "count": int,
        "first_ns": int,
        "last_ns": int,
        "position": int,
    },
    primary_key=("binding", "claimant"),
    not_null=frozenset({"count", "first_ns", "last_ns", "position"}),
)
MENTIONS: Final = TableSpec({"binding": int, "position": int}, primary_key=("binding", "position"))
"""Where a binding is spoken of again: another name of its user, an operator's order."""
ADDRESS_CHANGES: Final = TableSpec(
    {"position": int, "gateway": str, "old": bytes, "new": bytes},
    primary_key=("position",),
    not_null=frozenset({"gateway"}),
    indexes=(("gateway",),),
)
SERVICES: Final = TableSpec(
    {
        "gateway": str,
        "name": str,
        "since_position": int,
        "policy": str,
        "sharing": str,
        "idle_ms": int,
        "since_ns": int,
        "until_ns": int,
        "until_position": int,
    },
    primary_key=("gateway", "name", "since_position"),
    not_null=frozenset({"policy", "sharing", "idle_ms", "since_ns"}),
    indexes=(("gateway", "name", "until_ns"),),
)
SERVICE_PORTS: Final = TableSpec(
    {
        "gateway": str,
        "name": str,
        "since_position": int,
        "use": str,
        "number": int,
        "protocol": int,
        "first": int,
        "last": int,
    },
    primary_key=("gateway", "name", "since_position", "use", "number"),
    not_null=frozenset({"protocol", "first", "last"}),
)
SESSIONS: Final = TableSpec(
    {
        "gateway": str,
        "epoch": int,
        "worker": str,
        "host": str,
        "lease_ms": int,
        "since_ns": int,
        "until_ns": int,
        "reason": str,
        "position": int,
    },
    primary_key=("gateway", "epoch"),
    not_null=frozenset({"worker", "host", "lease_ms", "since_ns", "position"}),
    indexes=(("gateway", "until_ns"), ("worker", "gateway")),
)
OUTAGES: Final = TableSpec(
    {
        "position": int,
        "kind": str,
        "gateway": str,
        "worker": str,
        "since_ns": int,
        "until_ns": int,
        "detail": str,
        "span_class": int,
    },
    primary_key=("position",),
    not_null=frozenset({"kind", "detail"}),
    indexes=(("gateway", "until_ns"), ("span_class", "since_ns")),
)
SPAN_CLASS_BITS: Final = 4
"""An outage of span class c lasted less than 2 ** (SPAN_CLASS_BITS * (c + 1)) ns; open ones have none."""
CLOCK_STEPS: Final = TableSpec(
    {"position": int, "from_ns": int, "to_ns": int},
    primary_key=("position",),
    not_null=frozenset({"from_ns", "to_ns"}),
)
"""Where the clock began anew: it had shown everything up to `from_ns`, and went on at `to_ns`."""


RESTRICTIONS: Final = TableSpec(
    {
        "position": int,
        "restraint": str,
        "gateway": str,
        "service": str,
        "host": bytes,
        "since_ns": int,
        "limit_ns": int,
        "by": str,
        "why": str,
        "until_ns": int,
        "until_position": int,
        "ended_by": str,
        "ended_why": str,
    },
    primary_key=("position",),
    not_null=frozenset({"restraint", "since_ns", "by", "why"}),
    indexes=(("restraint", "gateway", "service", "until_ns"),),
)
"""Who might not claim; `host`: barred, or reserved for; `limit_ns`: when it was to end; NULL means all."""


class Bindings:
    """Who held what from when to when, what services there were, and when nobody looked."""

    name: Final = "bindings"
    version: Final = 5
    tables: Final[Mapping[str, TableSpec]] = {
        "bindings": BINDINGS,
        "resources": RESOURCES,
        "addresses": ADDRESSES,
        "refusals": REFUSALS,
        "mentions": MENTIONS,
        "address_changes": ADDRESS_CHANGES,
        "services": SERVICES,
        "service_ports": SERVICE_PORTS,
        "sessions": SESSIONS,
        "outages": OUTAGES,
        "clock_steps": CLOCK_STEPS,
        "restrictions": RESTRICTIONS,
    }

    def rows(self, position: int, record: Record, read: Reader) -> Iterator[RowChange]:
        if record.type in TYPES:
            event = from_record(record)
            yield from _binding_rows(position, record.wall_ns, event, read)
            yield from _session_rows(position, record.wall_ns, event, read)
            yield from _outage_rows(position, record.wall_ns, event, read)
            yield from _restriction_rows(position, record.wall_ns, event, read)


PROJECTIONS: Final[tuple[Projection, ...]] = (Bindings(),)
"""What every opening of the log for writing must be given."""


def _binding_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case PortBound():
            yield from _bound(position, wall_ns, event, read)
        case PortRefused(binding, claimant, mac):
            row: dict[str, Cell] = {"binding": binding, "claimant": claimant, "mac": mac, "count": 1}
            yield Insert("refusals", {**row, "first_ns": wall_ns, "last_ns": wall_ns, "position": position})
            yield _count_refusals(binding, 1, read)
        case RefusalsEnded(binding, claimant, count, last_ns):
            yield Update("refusals", (binding, claimant), {"count": count, "last_ns": last_ns})
            yield _count_refusals(binding, count - 1, read)
        case BindingInstalled(_, _, binding, installed_ns):
            yield _first_or_again(
                position, binding, "installed_position", {"installed_ns": installed_ns}, read
            )
        case BindingWithdrawn():
            names = ("withdrawn_ns", "last_packet_ns", "packets", "octets", "callers")
            yield Update("bindings", (event.binding,), {name: getattr(event, name) for name in names})
        case PortUnbound(binding, reason):
            ended = {"until_ns": wall_ns, "reason": reason.value, "unbound_position": position}
            yield Update("bindings", (binding,), ended)
        case WithdrawalOrdered(binding):
            yield Insert("mentions", {"binding": binding, "position": position})
        case HolderNamed(_, _, binding, user_name):
            yield _first_or_again(position, binding, "named_position", {}, read)
            yield Update("bindings", (binding,), {"user_name": user_name})
        case PublicAddressChanged(gateway, _, old, new):
            yield Insert(
                "address_changes", {"position": position, "gateway": gateway, "old": old, "new": new}
            )
            yield from _announced(gateway, () if new is None else (new,), read)
        case _:
            pass


def _first_or_again(position: int, binding: int, column: str, first: Row, read: Reader) -> RowChange:
    """The first record of its kind stands in the binding's row, with what it says; any other is a mention."""
    if _row(read, "bindings", binding)[column] is None:
        return Update("bindings", (binding,), {column: position, **first})
    return Insert("mentions", {"binding": binding, "position": position})


def _bound(position: int, wall_ns: int, event: PortBound, read: Reader) -> Iterator[RowChange]:
    resource: dict[str, Cell] = {
        "gateway": event.resource.gateway,
        "public_address": event.resource.public_address,
        "service": event.resource.service,
        "peer": event.resource.peer or b"",
    }
    if read.get("resources", tuple(resource.values())) is None:
        yield Insert("resources", resource)
    names = (
        "binding",
        "holder",
        "mac",
        "epoch",
        "protocol",
        "source_port",
        "destination",
        "destination_port",
    )
    claim = {name: getattr(event, name) for name in names}
    yield Insert(
        "bindings", {**resource, **claim, "since_ns": wall_ns, "refusals": 0, "bound_position": position}
    )


def _count_refusals(binding: int, more: int, read: Reader) -> Update:
    known = _row(read, "bindings", binding)["refusals"]
    return Update("bindings", (binding,), {"refusals": int(known or 0) + more})


def _session_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case ServiceDefined(gateway, service):
            yield from _service_ends(gateway, service.name, position, wall_ns, read)
            key: dict[str, Cell] = {"gateway": gateway, "name": service.name, "since_position": position}
            kind: dict[str, Cell] = {"policy": service.policy.value, "sharing": service.sharing.value}
            yield Insert("services", {**key, **kind, "idle_ms": service.idle_ms, "since_ns": wall_ns})
            for use in ("control", "forward"):
                for number, ports in enumerate(getattr(service, use)):
                    span: dict[str, Cell] = {
                        "protocol": ports.protocol,
                        "first": ports.first,
                        "last": ports.last,
                    }
                    yield Insert("service_ports", {**key, "use": use, "number": number, **span})
        case ServiceRemoved(gateway, name):
            yield from _service_ends(gateway, name, position, wall_ns, read)
        case SessionOpened(gateway, epoch, worker, host, addresses, lease_ms, _):
            yield from _announced(gateway, addresses, read)
            who: dict[str, Cell] = {"gateway": gateway, "epoch": epoch, "worker": worker, "host": host}
            yield Insert("sessions", {**who, "lease_ms": lease_ms, "since_ns": wall_ns, "position": position})
        case SessionEnded(gateway, epoch, _, reason):
            yield Update("sessions", (gateway, epoch), {"until_ns": wall_ns, "reason": reason.value})
        case _:
            pass


def _announced(gateway: str, addresses: Iterable[bytes], read: Reader) -> Iterator[RowChange]:
    for address in dict.fromkeys(addresses):
        if read.get("addresses", (address, gateway)) is None:
            yield Insert("addresses", {"public_address": address, "gateway": gateway})


def _service_ends(gateway: str, name: str, position: int, wall_ns: int, read: Reader) -> Iterator[RowChange]:
    ended: dict[str, Cell] = {"until_ns": wall_ns, "until_position": position}
    for row in read.find("services", {"gateway": gateway, "name": name, "until_ns": None}):
        yield Update("services", (gateway, name, row["since_position"]), ended)


def _outage_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case TrackerStarted(run, _, _, int(alive_ns)):
            yield from _tracker_down(position, run, alive_ns, wall_ns, read)
        case ClockStepped(from_ns, to_ns):
            detail = "set back" if to_ns < from_ns else "set forward"
            yield _outage(position, "clock-stepped", (from_ns, to_ns), detail)
            yield Insert("clock_steps", {"position": position, "from_ns": from_ns, "to_ns": to_ns})
        case RecordsMissed(worker, _, first, last, since_ns):
            upto = "an unknown end" if last is None else str(last)
            row = _outage(position, "records-missed", (since_ns, wall_ns), f"messages {first} to {upto}")
            yield Insert("outages", {**row.values, "worker": worker})
        case KernelStateRestored(gateway, _, what, lost_ns, restored_ns):
            row = _outage(position, "kernel-state-lost", (lost_ns, restored_ns), what)
            yield Insert("outages", {**row.values, "gateway": gateway})
        case OutboxFilled(gateway, _, since_ns, refused, until_ns):
            row = _outage(position, "outbox-full", (since_ns, until_ns), f"{refused} claims refused")
            yield Insert("outages", {**row.values, "gateway": gateway})
        case WorkerLost(gateway, _, worker, heard_ns):
            row = _outage(position, "worker-lost", (heard_ns, None), "")
            yield Insert("outages", {**row.values, "gateway": gateway, "worker": worker})
        case SessionEnded(gateway, epoch, worker, reason):
            if reason is SessionEnding.CLOSED:
                row = _outage(position, "worker-stopped", (wall_ns, None), "")
                yield Insert("outages", {**row.values, "gateway": gateway, "worker": worker})
            elif not read.find("outages", {"gateway": gateway, "until_ns": None}):
                row = _worker_changed(position, _row(read, "sessions", gateway, epoch), wall_ns, reason)
                yield Insert("outages", {**row.values, "gateway": gateway, "worker": worker})
        case WorkerReturned(gateway) | SessionOpened(gateway):
            for found in read.find("outages", {"gateway": gateway, "until_ns": None}):
                span = _span(_time(found["since_ns"]), wall_ns)
                yield Update("outages", (found["position"],), span)
        case _:
            pass


def _restriction_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case HostBarred() | PortReserved() | ClaimsFrozen():
            yield from _restriction_ends(position, wall_ns, event, read)
            limit_ns = event.until_ns if isinstance(event, HostBarred) else None
            begun: dict[str, Cell] = {"position": position, "since_ns": wall_ns, "limit_ns": limit_ns}
            host = None if isinstance(event, ClaimsFrozen) else event.host
            said: dict[str, Cell] = {"host": host, "by": event.by, "why": event.why}
            yield Insert("restrictions", {**_restricted(event), **begun, **said})
        case BarLifted() | ReservationEnded() | FreezeEnded():
            yield from _restriction_ends(position, wall_ns, event, read)
        case _:
            pass


def _restriction_ends(position: int, wall_ns: int, event: Restricting, read: Reader) -> Iterator[RowChange]:
    ended: dict[str, Cell] = {"until_ns": wall_ns, "until_position": position}
    said: dict[str, Cell] = {"ended_by": event.by, "ended_why": event.why}
    for row in read.find("restrictions", {**_restricted(event), "until_ns": None}):
        yield Update("restrictions", (row["position"],), {**ended, **said})


def _restricted(event: Restricting) -> Row:
    """The columns by which the one restriction in force is found."""
    scope = scope_of(event)
    found: dict[str, Cell] = {"restraint": scope.restraint.value}
    found |= {"gateway": scope.gateway, "service": scope.service}
    return found if scope.host is None else {**found, "host": scope.host}


def _tracker_down(position: int, run: int, alive_ns: int, wall_ns: int, read: Reader) -> Iterator[RowChange]:
    stepped = read.get("clock_steps", (position - 1,))
    if stepped is not None and alive_ns > wall_ns:
        # The clock was set back while nobody lived: for how long can't be said, and it had shown more than
        # the last record says.
        from_ns = max(alive_ns, _time(stepped["from_ns"]) or 0)
        yield Update("clock_steps", (position - 1,), {"from_ns": from_ns})
        yield Update("outages", (position - 1,), _span(_time(stepped["to_ns"]), from_ns))
        wall_ns = alive_ns
    yield _outage(position, "tracker-down", (alive_ns, wall_ns), f"before run {run}")


def _worker_changed(position: int, session: Row, wall_ns: int, reason: SessionEnding) -> Insert:
    """A worker began anew: the one before had been heard within its lease, nobody knows when exactly."""
    kind = "worker-restarted" if reason is SessionEnding.REOPENED else "worker-replaced"
    heard_ns = wall_ns - (_time(session["lease_ms"]) or 0) * 1_000_000
    return _outage(position, kind, (min(wall_ns, max(heard_ns, _time(session["since_ns"]) or 0)), None), "")


def _outage(position: int, kind: str, span: tuple[int | None, int | None], detail: str) -> Insert:
    return Insert("outages", {"position": position, "kind": kind, "detail": detail, **_span(*span)})


def _span(since_ns: int | None, until_ns: int | None) -> Row:
    """Both ends and the class of what lies between, by which an outage is found from any time within."""
    if since_ns is not None and until_ns is not None and until_ns < since_ns:
        since_ns, until_ns = until_ns, since_ns  # the clock was set back in between: all of it is in doubt
    ends = {"since_ns": since_ns, "until_ns": until_ns}
    if since_ns is None or until_ns is None:
        return {**ends, "span_class": None}
    return {**ends, "span_class": max(0, (until_ns - since_ns).bit_length() - 1) // SPAN_CLASS_BITS}


def _time(cell: Cell) -> int | None:
    if cell is None or isinstance(cell, int):
        return cell
    raise TypeError(f"{cell!r} is no number")


def _row(read: Reader, table: str, *key: Cell) -> Row:
    found = read.get(table, key)
    if found is None:
        raise KeyError(f"{table} has no row {key}")
    return found
