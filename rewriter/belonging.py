"""Whose a connection is: the holder's, a former one's, or nobody's that stands in a holder's way.

Rule: what is only in the way is told by addresses and ports; all else by the mark that it was given.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from rewriter.connections import Connection
from rewriter.vocabulary import Element, Ruleset, Service


def has_port(service: Service, protocol: str, port: int) -> bool:
    return any(span.protocol == protocol and span.first <= port <= span.last for span in service.ports())


def inside(connection: Connection) -> set[IPv4Address]:
    """Both ends that can be the host on the LAN: the opener, or the one a caller was forwarded to."""
    return {connection.original[0], connection.reply[0]}


def is_between(host: IPv4Address, peer: IPv4Address | None, connection: Connection) -> bool:
    ends = (*connection.original[:2], *connection.reply[:2])
    return host in inside(connection) and (peer is None or peer in ends)


def is_of(element: Element, connection: Connection) -> bool:
    """Whether a connection of the service is the binding's."""
    return is_between(element.holder, element.peer, connection)


def is_in_the_way(element: Element, connection: Connection) -> bool:
    """Whether a connection of the service, whosever it was, is at the place that the binding gets."""
    ends = (*connection.original[:2], *connection.reply[:2])
    return element.peer is None or (element.peer in ends and element.public in ends)


def former(found: Iterable[Connection], rules: Ruleset, elements: Sequence[Element]) -> Iterator[Connection]:
    """Connections of services that are no more, to ports that are no more theirs, or of nobody here."""
    services = {service.number: service for service in rules.services}
    for connection in found:
        number = rules.service_of_mark(connection.mark)
        if number == 0:
            continue
        service = services.get(number)
        if (
            service is None
            or not (service.passthrough or has_port(service, connection.protocol, connection.original[3]))
            or not any(is_of(e, connection) for e in elements if e.service == service.name)
        ):
            yield connection


def claimed(
    found: Iterable[Connection], service: Service, elements: Sequence[Element]
) -> Iterator[Connection]:
    """Of those without a mark: what has the service's public ports, or goes to them. A caller's from before
    there was a holder, and flows of the holder from before it held.
    """
    holders, publics = {e.holder for e in elements}, {e.public for e in elements}
    is_local = service.unsolicited == "local"
    for connection in found:
        protocol = connection.protocol
        source, destination, _, dport = connection.original
        _, reply_to, _, public_port = connection.reply
        to_service = has_port(service, protocol, dport)
        called = destination in publics and to_service and not is_local
        occupied = reply_to in publics and has_port(service, protocol, public_port) and source != reply_to
        unmarked = source in holders and to_service
        if called or occupied or unmarked:
            yield connection
