"""The tables that answer questions, made from the records alone.

Rule 1: a table says what the records say, by the tracker's clock; how much of it can be believed at a given
time is `audit`'s affair. Rule 2: `peer` is empty where a service is not shared per peer, never NULL, so that
it can be compared. A change to what the tables hold raises `version`: the store then folds the log again.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from eventlog.projection import Cell, Insert, Projection, Reader, Row, RowChange, TableSpec, Update
from eventlog.record import Record
from tracker.events import (
    TYPES,
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Event,
    HolderNamed,
    KernelStateRestored,
    PortBound,
    PortRefused,
    PortUnbound,
    RecordsMissed,
    RefusalsEnded,
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    TrackerStarted,
    WorkerLost,
    WorkerReturned,
    from_record,
)

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
        "refusals": int,
        "bound_position": int,
        "unbound_position": int,
    },
    primary_key=("binding",),
    not_null=frozenset({"gateway", "public_address", "service", "peer", "holder", "since_ns", "refusals"}),
    indexes=(
        ("gateway", "public_address", "service", "peer", "since_ns"),
        ("holder", "since_ns"),
        ("since_ns",),
        ("until_ns",),
    ),
)
RESOURCES: Final = TableSpec(
    {"gateway": str, "public_address": bytes, "service": str, "peer": bytes},
    primary_key=("gateway", "public_address", "service", "peer"),
)
REFUSALS: Final = TableSpec(
    {"binding": int, "claimant": bytes, "mac": bytes, "count": int, "first_ns": int, "last_ns": int},
    primary_key=("binding", "claimant"),
    not_null=frozenset({"count", "first_ns", "last_ns"}),
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
        "since_ns": int,
        "until_ns": int,
        "reason": str,
    },
    primary_key=("gateway", "epoch"),
    not_null=frozenset({"worker", "host", "since_ns"}),
    indexes=(("gateway", "until_ns"), ("worker",)),
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
    },
    primary_key=("position",),
    not_null=frozenset({"kind", "detail"}),
    indexes=(("gateway", "until_ns"), ("until_ns",)),
)


class Bindings:
    """Who held what from when to when, what services there were, and when nobody looked."""

    name: Final = "bindings"
    version: Final = 1
    tables: Final[Mapping[str, TableSpec]] = {
        "bindings": BINDINGS,
        "resources": RESOURCES,
        "refusals": REFUSALS,
        "services": SERVICES,
        "service_ports": SERVICE_PORTS,
        "sessions": SESSIONS,
        "outages": OUTAGES,
    }

    def rows(self, position: int, record: Record, read: Reader) -> Iterator[RowChange]:
        if record.type in TYPES:
            event = from_record(record)
            yield from _binding_rows(position, record.wall_ns, event, read)
            yield from _session_rows(position, record.wall_ns, event, read)
            yield from _outage_rows(position, record.wall_ns, event, read)


PROJECTIONS: Final[tuple[Projection, ...]] = (Bindings(),)
"""What every opening of the log for writing must be given."""


def _binding_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case PortBound():
            yield from _bound(position, wall_ns, event, read)
        case PortRefused(binding, claimant, mac):
            row: dict[str, Cell] = {"binding": binding, "claimant": claimant, "mac": mac, "count": 1}
            yield Insert("refusals", {**row, "first_ns": wall_ns, "last_ns": wall_ns})
            yield _count_refusals(binding, 1, read)
        case RefusalsEnded(binding, claimant, count, last_ns):
            yield Update("refusals", (binding, claimant), {"count": count, "last_ns": last_ns})
            yield _count_refusals(binding, count - 1, read)
        case BindingInstalled(_, _, binding, installed_ns):
            if _row(read, "bindings", binding)["installed_ns"] is None:
                yield Update("bindings", (binding,), {"installed_ns": installed_ns})
        case BindingWithdrawn():
            names = ("withdrawn_ns", "last_packet_ns", "packets", "octets")
            yield Update("bindings", (event.binding,), {name: getattr(event, name) for name in names})
        case PortUnbound(binding, reason):
            ended = {"until_ns": wall_ns, "reason": reason.value, "unbound_position": position}
            yield Update("bindings", (binding,), ended)
        case HolderNamed(_, _, binding, user_name):
            yield Update("bindings", (binding,), {"user_name": user_name})
        case _:
            pass


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
            yield from _service_ends(gateway, service.name, wall_ns, read)
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
            yield from _service_ends(gateway, name, wall_ns, read)
        case SessionOpened(gateway, epoch, worker, host):
            who: dict[str, Cell] = {"gateway": gateway, "epoch": epoch, "worker": worker, "host": host}
            yield Insert("sessions", {**who, "since_ns": wall_ns})
        case SessionEnded(gateway, epoch, _, reason):
            yield Update("sessions", (gateway, epoch), {"until_ns": wall_ns, "reason": reason.value})
        case _:
            pass


def _service_ends(gateway: str, name: str, wall_ns: int, read: Reader) -> Iterator[RowChange]:
    for row in read.find("services", {"gateway": gateway, "name": name, "until_ns": None}):
        yield Update("services", (gateway, name, row["since_position"]), {"until_ns": wall_ns})


def _outage_rows(position: int, wall_ns: int, event: Event, read: Reader) -> Iterator[RowChange]:
    match event:
        case TrackerStarted(run, _, _, int(alive_ns)):
            yield _outage(position, "tracker-down", (alive_ns, wall_ns), f"before run {run}")
        case ClockStepped(from_ns, to_ns):
            yield _outage(position, "clock-stepped", (from_ns, to_ns), "")
        case RecordsMissed(worker, _, first, last, since_ns):
            upto = "an unknown end" if last is None else str(last)
            row = _outage(position, "records-missed", (since_ns, wall_ns), f"messages {first} to {upto}")
            yield Insert("outages", {**row.values, "worker": worker})
        case KernelStateRestored(gateway, _, what, lost_ns, restored_ns):
            row = _outage(position, "kernel-state-lost", (lost_ns, restored_ns), what)
            yield Insert("outages", {**row.values, "gateway": gateway})
        case WorkerLost(gateway, _, worker, heard_ns):
            row = _outage(position, "worker-lost", (heard_ns, None), "")
            yield Insert("outages", {**row.values, "gateway": gateway, "worker": worker})
        case SessionEnded(gateway, _, worker, SessionEnding.CLOSED):
            row = _outage(position, "worker-stopped", (wall_ns, None), "")
            yield Insert("outages", {**row.values, "gateway": gateway, "worker": worker})
        case WorkerReturned(gateway) | SessionOpened(gateway):
            for found in read.find("outages", {"gateway": gateway, "until_ns": None}):
                yield Update("outages", (found["position"],), {"until_ns": wall_ns})
        case _:
            pass


def _outage(position: int, kind: str, span: tuple[int | None, int | None], detail: str) -> Insert:
    since_ns, until_ns = span
    if since_ns is not None and until_ns is not None and until_ns < since_ns:
        since_ns, until_ns = until_ns, since_ns  # the clock was set back in between: all of it is in doubt
    span_columns = {"since_ns": since_ns, "until_ns": until_ns}
    return Insert("outages", {"position": position, "kind": kind, "detail": detail, **span_columns})


def _row(read: Reader, table: str, *key: Cell) -> Row:
    found = read.get(table, key)
    if found is None:
        raise KeyError(f"{table} has no row {key}")
    return found
