"""What is forwarded and who holds it: the words in which the worker, its ruleset and the kernel speak.

Rule 1: values only. What they are in nft is said in `phrases.py` and `sets.py`; what they do, by the chains.
Rule 2: a service's number is its place in every connection's mark, and outlives a
  configuration (`numbered`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

MOST_SPEAKERS = 63  # the count has six bits
MARK_BITS = 6
MOST_SERVICES = 15

# Packet marks, from the lowest bit of the mask; they live only inside the gateway's own hooks.
CLAIM, TALK, REFUSED, SAME_PORT, HAIRPINNED, PASSED = 1, 2, 4, 8, 16, 32
# Connection marks: two bits say who opened it (HAIRPIN: from inside to the public address), four the service.
OPENED_INSIDE, OPENED_OUTSIDE, HAIRPIN = 1, 2, 3

Protocol = Literal["udp", "tcp"]
Refusal = Literal["icmp", "drop", "pass"]
Policy = Literal["first", "fixed", "last"]
Unsolicited = Literal["holder", "local", "nobody"]
Callers = tuple[IPv4Network, ...] | Literal["contacted"]


@dataclass(frozen=True, slots=True)
class Ports:
    """A range of ports, both ends included."""

    protocol: Protocol
    first: int
    last: int

    def text(self) -> str:
        """The range as an element of a set of (protocol, port)."""
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.protocol} . {ports}"


@dataclass(frozen=True, slots=True)
class Service:
    """What is forwarded together; `number` (1..15) is its place in the connection mark.

    `per_peer`: several hosts have it, one for each peer. `fixed_holder`: who has it by policy "fixed".
    `unsolicited`: to whom connections go that are opened from outside; `callers`: who may open them (None:
    anybody).
    """

    name: str
    number: int
    control: tuple[Ports, ...]
    forward: tuple[Ports, ...]
    idle_s: float
    rewrites: bool
    policy: Policy = "first"
    per_peer: bool = False
    passthrough: bool = False
    fixed_holder: IPv4Address | None = None
    unsolicited: Unsolicited = "holder"
    callers: Callers | None = None
    new_callers_per_minute: int | None = None

    @property
    def label(self) -> str:
        """Its name as part of an nft identifier, which has no hyphens (a service's name no underscores)."""
        return self.name.replace("-", "_")

    def ports(self) -> tuple[Ports, ...]:
        """All its ports, control ports included, no two ranges touching."""
        return merged((*self.control, *self.forward))

    @property
    def held(self) -> str:
        """The set in which holders are found; those that are not translated, by the public address."""
        return f"{self.label}_inbound" if self.passthrough else f"{self.label}_holders"

    @property
    def sender(self) -> str:
        """What a packet to the outside is looked up by among the holders."""
        return "ip saddr . ip daddr" if self.per_peer else "ip saddr"

    @property
    def receiver(self) -> str:
        """What a packet from the outside is looked up by."""
        return "ip daddr . ip saddr" if self.per_peer else "ip daddr"

    @property
    def called_at(self) -> str:
        """The set of the ports at which the holder is called: control ports only where they are forwarded."""
        return f"{self.label}_ports" if self.ports() == merged(self.forward) else f"{self.label}_forward"


def merged(spans: Iterable[Ports]) -> tuple[Ports, ...]:
    """The same ports, no two ranges touching."""
    found: list[Ports] = []
    for ports in sorted(set(spans), key=lambda p: (p.protocol, p.first, p.last)):
        if found and found[-1].protocol == ports.protocol and ports.first <= found[-1].last + 1:
            last = max(found[-1].last, ports.last)
            found[-1] = Ports(ports.protocol, found[-1].first, last)
        else:
            found.append(ports)
    return tuple(found)


Key = IPv4Address | tuple[IPv4Address, IPv4Address]
"""What kernel and worker know a holder by: its address, per peer with the peer's."""


def key_text(key: Key) -> str:
    """The key as an element of its set."""
    return " . ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def key_of(address: IPv4Address, peer: IPv4Address | None) -> Key:
    return address if peer is None else (address, peer)


def numbered(services: Iterable[Service], standing: Mapping[str, int]) -> tuple[Service, ...]:
    """The services, those of a table that stands (label → number) with its numbers, others with free ones.

    Connections carry the number for as long as they live: it must not come to mean another service.
    """
    found = tuple(services)
    kept = {standing[service.label] for service in found if service.label in standing}
    free = iter([number for number in range(1, MOST_SERVICES + 1) if number not in kept])
    return tuple(
        replace(service, number=standing[service.label] if service.label in standing else next(free))
        for service in found
    )


@dataclass(frozen=True, slots=True)
class Element:
    """A binding as the kernel holds it; `left_s` of the idle time are left (None: all of it)."""

    service: str
    holder: IPv4Address
    public: IPv4Address
    left_s: float | None = None
    peer: IPv4Address | None = None

    @property
    def held_by(self) -> Key:
        return key_of(self.holder, self.peer)

    @property
    def held_at(self) -> Key:
        return key_of(self.public, self.peer)


def element_of(service: str, key: Key, public: IPv4Address, left_s: float | None = None) -> Element:
    return Element(service, host_of(key), public, left_s, peer_of(key))


def host_of(key: Key) -> IPv4Address:
    return key[0] if isinstance(key, tuple) else key


def peer_of(key: Key) -> IPv4Address | None:
    return key[1] if isinstance(key, tuple) else None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything the table depends on but the bindings and the epoch."""

    lan: tuple[str, ...]
    wan: tuple[str, ...]
    services: tuple[Service, ...]
    mark_mask: int
    claim_queue: int
    talk_queue: int
    native_queue: bool
    refusal: Refusal = "icmp"
    refused_s: float = 2.0
    most_speakers: int = MOST_SPEAKERS
    rewrites_in_kernel: bool = True
    fenced: bool = False
    hairpin: bool = False
    keep_source_ports: tuple[Ports, ...] = ()
    shift: int = field(init=False)

    def __post_init__(self) -> None:
        """Find where the mask's six bits begin; the configuration has checked that there are six."""
        object.__setattr__(self, "shift", (self.mark_mask & -self.mark_mask).bit_length() - 1)

    def service(self, name: str) -> Service:
        """The service of that name; KeyError when there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)

    def kept_ports(self) -> tuple[Ports, ...]:
        """Destination ports to which it is looked, after NAT, whether the source port was kept."""
        services = (s for s in self.services if self.keep_source_ports or s.unsolicited == "local")
        return merged([*self.keep_source_ports, *(ports for one in services for ports in one.ports())])

    def packet_mark(self, bits: int) -> int:
        return bits << self.shift

    def connection_mark(self, service: Service, opened: int) -> int:
        return (service.number << 2 | opened) << self.shift

    def service_of_mark(self, mark: int) -> int:
        """The service's number in a connection's mark; 0 for a connection that is not ours."""
        return (mark & self.mark_mask) >> self.shift >> 2

    @property
    def unmarked(self) -> str:
        """The mask of everybody else's bits."""
        return f"{~self.mark_mask & 0xFFFFFFFF:#010x}"
