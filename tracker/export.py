"""The bindings as translations, for those who keep the logs of many gateways.

Rule 1: what RFC 6888 wants logged (section 4) is in each row: transport protocol, subscriber (internal
address and hardware address), external address, external ports, times. Rule 2: destinations stay here unless
they are asked for (its REQ-12); a peer is part of what is held, so it is told. Rule 3: a row says which
outages fall into its time: a log that is copied without its doubts says more than it knows.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from eventlog.reading import LogReader
from tracker.events import Ending, PortRange
from tracker.holdings import Holding, asked_for, in_order
from tracker.ipfix import PortEvent
from tracker.outages import Outage, number, outages_within

FORWARD: Final = "forward"


@dataclass(frozen=True, slots=True)
class Translation:
    """A binding's hold on one range of ports; `until_ns` None: it goes on.

    `destination`, `destination_port`: where the packet went that claimed it, if that was asked for.
    """

    binding: int
    gateway: str
    service: str
    protocol: int
    holder: bytes
    mac: bytes | None
    public_address: bytes
    first_port: int
    last_port: int
    peer: bytes | None
    since_ns: int
    until_ns: int | None
    ended_by: Ending | None
    installed_ns: int | None
    withdrawn_ns: int | None
    last_packet_ns: int | None
    packets: int | None
    octets: int | None
    user_name: str | None
    refusals: int
    doubts: tuple[str, ...]
    position: int
    end_position: int | None
    destination: bytes | None = None
    destination_port: int | None = None


def translations(
    reader: LogReader,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    holder: bytes | None = None,
    gateway: str | None = None,
    public_address: bytes | None = None,
    service: str | None = None,
    destinations: bool = False,
) -> Iterator[Translation]:
    """What was held at some time of [since_ns, until_ns), in the order in which it began.

    Read it within a `reader.snapshot()`.
    """
    equal = asked_for(gateway=gateway, public_address=public_address, service=service, holder=holder)
    services = _Services(reader)
    workers = _workers(reader)
    for holding in in_order(reader, equal, since_ns, until_ns):
        found = outages_within(reader, holding.since_ns, holding.ended_ns)
        doubts = tuple(dict.fromkeys(it.kind for it in found if _concerns(it, holding.gateway, workers)))
        for ports in services.ports(holding):
            yield _translation(holding, ports, doubts, destinations=destinations)


def port_events(found: Iterable[Translation]) -> Iterator[PortEvent]:
    """Beginnings and ends in the order of their times; `found` is in that of the beginnings.

    Where the clock was set back the order is that of the log.
    """
    ends: list[tuple[int, int, PortEvent]] = []
    for count, translation in enumerate(found):
        while ends and ends[0][0] <= translation.since_ns:
            yield heapq.heappop(ends)[2]
        yield _port_event(translation, translation.since_ns, begins=True)
        if translation.until_ns is not None:
            end = _port_event(translation, translation.until_ns, begins=False)
            heapq.heappush(ends, (translation.until_ns, count, end))
    while ends:
        yield heapq.heappop(ends)[2]


class _Services:
    """Which ports a service had at which place of the log."""

    def __init__(self, reader: LogReader) -> None:
        self._known: dict[tuple[str, str], list[tuple[int, list[PortRange]]]] = {}
        rows = reader.query(
            "SELECT gateway, name, since_position, protocol, first, last FROM service_ports"
            " WHERE use = ? ORDER BY gateway, name, since_position, number",
            (FORWARD,),
        )
        for gateway, name, position, *span in rows:
            versions = self._known.setdefault((str(gateway), str(name)), [])
            if not versions or versions[-1][0] != position:
                versions.append((number(position), []))
            versions[-1][1].append(PortRange(*(number(cell) for cell in span)))

    def ports(self, holding: Holding) -> list[PortRange]:
        """Those of the definition that was in force when it was bound."""
        versions = self._known.get((holding.gateway, holding.service), [])
        at = bisect_left(versions, holding.bound_position, key=lambda version: version[0])
        return versions[at - 1][1] if at else []


def _translation(
    holding: Holding, ports: PortRange, doubts: tuple[str, ...], *, destinations: bool
) -> Translation:
    return Translation(
        binding=holding.binding,
        gateway=holding.gateway,
        service=holding.service,
        protocol=ports.protocol,
        holder=holding.holder,
        mac=holding.mac,
        public_address=holding.public_address,
        first_port=ports.first,
        last_port=ports.last,
        peer=holding.peer,
        since_ns=holding.since_ns,
        until_ns=holding.ended_ns,
        ended_by=holding.reason,
        installed_ns=holding.installed_ns,
        withdrawn_ns=holding.withdrawn_ns,
        last_packet_ns=holding.last_packet_ns,
        packets=holding.packets,
        octets=holding.octets,
        user_name=holding.user_name,
        refusals=holding.refusals,
        doubts=doubts,
        position=holding.bound_position,
        end_position=holding.unbound_position,
        destination=holding.destination if destinations else None,
        destination_port=holding.destination_port if destinations else None,
    )


def _port_event(translation: Translation, at_ns: int, *, begins: bool) -> PortEvent:
    return PortEvent(
        at_ns=at_ns,
        begins=begins,
        gateway=translation.gateway,
        protocol=translation.protocol,
        internal=translation.holder,
        external=translation.public_address,
        first=translation.first_port,
        last=translation.last_port,
        mac=translation.mac,
        peer=translation.peer,
    )


def _workers(reader: LogReader) -> set[tuple[str, str]]:
    return {
        (str(worker), str(gateway))
        for worker, gateway in reader.query("SELECT DISTINCT worker, gateway FROM sessions")
    }


def _concerns(outage: Outage, gateway: str, workers: set[tuple[str, str]]) -> bool:
    if outage.gateway is not None or outage.worker is None:
        return outage.gateway in (None, gateway)
    return (outage.worker, gateway) in workers
