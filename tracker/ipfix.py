"""NAT events as IPFIX messages: RFC 7011's format, RFC 8158's events and fields.

Rule 1: nothing here reads or writes; events in, messages out, the same bytes for the same events.
Rule 2: each gateway is an Observation Domain, whose name goes out in an options record with the templates.
Rule 3: templates go before the first record that needs them, and again every TEMPLATES_EVERY messages: over
UDP the first ones may be lost (RFC 7011, section 8).

A binding gives its holder whole ports, unchanged by the translation. So each port is an entry of the Binding
Information Base (RFC 8158's NAT44 BIB create and delete); a range of more than BLOCK_PORTS ports is one port
block (its allocation and de-allocation). Messages one after the other are an IPFIX file (RFC 5655).
"""

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

BLOCK_PORTS: Final = 32
TEMPLATES_EVERY: Final = 20
MESSAGE_LIMIT: Final = 1400
"""Octets: what a path carries in one datagram."""

_HEADER: Final = struct.Struct(">HHIII")
_VERSION: Final = 10
_TEMPLATE_SET: Final = 2
_OPTIONS_SET: Final = 3
_FIRST_TEMPLATE: Final = 256
_DOMAIN_TEMPLATE: Final = 300
_MILLISECOND_NS: Final = 1_000_000
_VARIABLE: Final = 0xFFFF


class Element(enum.Enum):
    """Information elements of IANA's registry: number, octets."""

    PROTOCOL = 4, 1
    SOURCE_PORT = 7, 2
    SOURCE_ADDRESS = 8, 4
    DESTINATION_ADDRESS = 12, 4
    SOURCE_MAC = 56, 6
    DOMAIN = 149, 4
    POST_NAT_SOURCE_ADDRESS = 225, 4
    POST_NAPT_SOURCE_PORT = 227, 2
    NAT_EVENT = 230, 1
    DOMAIN_NAME = 300, _VARIABLE
    TIME_MILLISECONDS = 323, 8
    PORT_RANGE_START = 361, 2
    PORT_RANGE_END = 362, 2
    NAT_INSTANCE = 463, 4

    @property
    def specifier(self) -> bytes:
        return struct.pack(">HH", *self.value)


class NatEvent(enum.IntEnum):
    """Values of natEvent, as RFC 8158 numbers them."""

    BIB_CREATE = 8
    BIB_DELETE = 9
    BLOCK_ALLOCATION = 16
    BLOCK_DEALLOCATION = 17


@dataclass(frozen=True, slots=True)
class PortEvent:
    """The ports `first` to `last` of `external` begin (or end) to be those of `internal`."""

    at_ns: int
    begins: bool
    gateway: str
    protocol: int
    internal: bytes
    external: bytes
    first: int
    last: int
    mac: bytes | None
    peer: bytes | None


def messages(events: Iterable[PortEvent], *, exported_ns: int) -> Iterator[bytes]:
    """The events, in their order, in as few messages as that allows; the clock says `exported_ns`."""
    domains: dict[str, _Domain] = {}
    current: _Domain | None = None
    for event in events:
        domain = domains.get(event.gateway)
        if domain is None:
            domain = _Domain(len(domains) + 1, event.gateway, exported_ns // 1_000_000_000)
            domains[event.gateway] = domain
        if current is not None and domain is not current:
            yield from current.flush()
        current = domain
        for template, record in _records(event, domain.number):
            yield from domain.add(template, record)
    if current is not None:
        yield from current.flush()


class _Domain:
    """The messages of one Observation Domain."""

    def __init__(self, number: int, name: str, export_s: int) -> None:
        self.number = number
        self._name = name.encode()
        self._export_s = export_s & 0xFFFFFFFF
        self._sequence = 0
        self._messages = 0
        self._told: set[int] = set()
        self._sets: list[tuple[int, bytearray]] = []
        self._records = 0

    def add(self, template: int, record: bytes) -> Iterator[bytes]:
        """Puts a data record into the message; gives the one before, when there is no more room in it."""
        room = MESSAGE_LIMIT - self._size() - len(record) - 4
        if template not in self._told:
            room -= len(_template(template)) + 4
        if self._sets and room < 0:
            yield from self.flush()
        if not self._sets and self._messages % TEMPLATES_EVERY == 0:
            self._told.clear()
            self._put(_OPTIONS_SET, _DOMAIN_OPTIONS)
            name = struct.pack(">IB", self.number, len(self._name)) + self._name
            self._put(_DOMAIN_TEMPLATE, name)
            self._records += 1
        if template not in self._told:
            self._told.add(template)
            self._put(_TEMPLATE_SET, _template(template))
        self._put(template, record)
        self._records += 1

    def flush(self) -> Iterator[bytes]:
        """The message as it is, if there is anything in it."""
        if not self._sets:
            return
        body = b"".join(struct.pack(">HH", number, len(data) + 4) + data for number, data in self._sets)
        length = _HEADER.size + len(body)
        yield _HEADER.pack(_VERSION, length, self._export_s, self._sequence, self.number) + body
        self._sequence = (self._sequence + self._records) & 0xFFFFFFFF
        self._messages += 1
        self._sets, self._records = [], 0

    def _put(self, number: int, data: bytes) -> None:
        if not self._sets or self._sets[-1][0] != number:
            self._sets.append((number, bytearray()))
        self._sets[-1][1].extend(data)

    def _size(self) -> int:
        return _HEADER.size + sum(len(data) + 4 for _, data in self._sets)


def _records(event: PortEvent, instance: int) -> Iterator[tuple[int, bytes]]:
    """The template's number and the record, for each port or for the block."""
    at_ms = event.at_ns // _MILLISECOND_NS if event.begins else -(-event.at_ns // _MILLISECOND_NS)
    head = struct.pack(">QI4s4sB", at_ms, instance, event.internal, event.external, event.protocol)
    tail = (event.mac or b"") + (event.peer or b"")
    block = event.last - event.first >= BLOCK_PORTS
    template = _FIRST_TEMPLATE + block + 2 * (event.mac is not None) + 4 * (event.peer is not None)
    if block:
        kind = NatEvent.BLOCK_ALLOCATION if event.begins else NatEvent.BLOCK_DEALLOCATION
        yield template, head + struct.pack(">HH", event.first, event.last) + tail + bytes((kind,))
        return
    kind = NatEvent.BIB_CREATE if event.begins else NatEvent.BIB_DELETE
    for port in range(event.first, event.last + 1):
        yield template, head + struct.pack(">HH", port, port) + tail + bytes((kind,))


def _template(number: int) -> bytes:
    """The template record that tells what `_records` writes under this number."""
    flags = number - _FIRST_TEMPLATE
    elements = [
        Element.TIME_MILLISECONDS,
        Element.NAT_INSTANCE,
        Element.SOURCE_ADDRESS,
        Element.POST_NAT_SOURCE_ADDRESS,
        Element.PROTOCOL,
        *(
            (Element.PORT_RANGE_START, Element.PORT_RANGE_END)
            if flags & 1
            else (Element.SOURCE_PORT, Element.POST_NAPT_SOURCE_PORT)
        ),
        *((Element.SOURCE_MAC,) if flags & 2 else ()),
        *((Element.DESTINATION_ADDRESS,) if flags & 4 else ()),
        Element.NAT_EVENT,
    ]
    return struct.pack(">HH", number, len(elements)) + b"".join(it.specifier for it in elements)


_DOMAIN_OPTIONS: Final = (
    struct.pack(">HHH", _DOMAIN_TEMPLATE, 2, 1) + Element.DOMAIN.specifier + Element.DOMAIN_NAME.specifier
)
