"""What the kernel is told: one table `ip porthold`, as nft text, from the configuration.

Rule 1: everything here is a pure function from settings and bindings to text; nobody else writes nft.
Rule 2: the ruleset decides nothing about ownership. It knows who holds (elements), and what follows from it.
Rule 3: every batch after the first begins by taking its own epoch element away and putting it back. A worker
  that was stopped and wakes up after a take-over has its batch refused whole (compare-and-set in the kernel).
Rule 4: packets are judged by their connection (ct mark: which service, opened from which side), not by ports
  alone: a caller from another port is a caller too.

A packet's way, by hook and priority:

| hook, priority | chain | what happens |
|---|---|---|
| prerouting -110 | arriving | the payload's dest_port is compared with the UDP port, still the public one |
| prerouting -101 | nat_arriving | a caller to a held port: connection marked, destination NAT to the holder |
| forward -160 | select | claims and OpenContinues are marked for the queues |
| forward -150 | (queue) | nft's `queue`, or iptables-nft's NFQUEUE in mangle FORWARD |
| forward -140 | verdict | refused: ICMP; never queued: a claim is dropped, an OpenContinue goes on |
| postrouting 97 | leaving | the last fence: nothing to or from a host that is no holder |
| postrouting 99 | nat_leaving | source NAT of what the holder opens, source port kept |
| postrouting 149 | idle | what really leaves starts the holder's idle time again |
| postrouting 150 | rewrite | the CU-SeeMe header: the packet's own addresses, after all NAT, are copied in |

With `fenced` (on_tracker_loss = "fence") the table does nothing without the element `lease`: no claim is
asked, no caller forwarded, nothing of the service's leaves. Each heartbeat has an element `offered`; only
while that is there its acknowledgement becomes a lease. Both last half of what the tracker grants: so the
kernel's lease ends before the tracker's, however long the worker is stopped between any two steps
(tests/model/lease.pml). A pause of the whole machine stops its timers too, and is not covered.

Two fields of a packet can't be compared in nftables, but their concatenation can be looked up in a set of
equal pairs: `ip saddr . @ih,96,32 @own_address` with {a . a} says "addr is the sender's own".
Offsets: cuseeme-protocol.md. `@ih` counts bits from the UDP payload's start; its `set` mends the checksum
(net/netfilter/nft_payload.c).

A kernel before 5.16 has no `@ih`. There (`rewrites_in_kernel` False: datapath "queue") every UDP packet of
the service that has a header goes through the OpenContinue queue, and the worker translates it; all else is
the same. What finds no worker there is dropped, not passed: with the private address in it an OpenContinue
would be another login at the reflector. So in this datapath a call stands still while its worker is dead or
stopped, and goes on when it is back: peers wait for 60 s, and the port is held for the idle time. No rate
holds callers off the queue there: who floods a held port from outside floods the worker.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Literal

TABLE = "porthold"
UDP_HEADER = 8
HEADER = 26  # CU-SeeMe's
SPEAKERS_AT = 34  # offset of the first speaker address in an audio packet
MOST_SPEAKERS = 63  # the count has six bits
MARK_BITS = 6
MOST_SERVICES = 15

# Packet marks, from the lowest bit of the mask; they live only inside the gateway's own hooks.
CLAIM, TALK, REFUSED, SAME_PORT, HAIRPINNED, PASSED = 1, 2, 4, 8, 16, 32
# Connection marks: two bits say who opened it (HAIRPIN: from inside to the public address), four the service.
OPENED_INSIDE, OPENED_OUTSIDE, HAIRPIN = 1, 2, 3

HOOKED_CHAINS = (
    "arriving",
    "nat_arriving",
    "arrived",
    "select",
    "verdict",
    "leaving",
    "nat_leaving",
    "idle",
    "rewrite",
)
LEASED = "icmp, tcp, udp"
"""The lease has an element for each protocol: `meta l4proto` is what any packet can be looked up by."""
WITHOUT_LEASE = "meta l4proto != @lease counter name without_lease"
TIMER_SLACK_MS = 20
"""Kernel timers end up to a tick late, twice (rounded up, and looked at), and a tick is up to 10 ms."""
PENDING_TIMEOUT_S = 4
ALIVE_TIMEOUT_S = 3
HUNG_UP_TIMEOUT_S = 5
CALLED_TIMEOUT_S = 10
CANNOT_KEEP_TIMEOUT_S = 5
COUNTERS = (
    "claims_queued",
    "claims_over_rate",
    "talks_queued",
    "talks_unread",
    "never_queued",
    "not_the_holder",
    "refused",
    "hang_ups",
)
CONNECTION = "inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service"
CALLER = "ct original ip saddr"
THIS_CONNECTION = "meta l4proto . ip saddr . th sport . ip daddr . th dport"
TALK_RATE_PER_S = 50
CALLERS_TALK_RATE_PER_S = 500
"""OpenContinues of all who called from outside, together: their addresses may be as many as they like."""
CLAIM_RATE_PER_S = 50
"""Upcalls of all hosts together; each costs the worker an fsync, and it has OpenContinues to read, too."""
DYNAMIC = "size 4096; flags dynamic,timeout;"
"""The size is a bound, not a need. Where it is reached a rule that adds an element does not match, and the
next one follows; a batch that adds one is refused whole. Both must be right: `service_chains`, and
`GatewayKernel.refuse`.
"""
PORT_SET = "type inet_proto . inet_service; flags interval;"
RESERVED_FOR_OTHERS = "32768-60999"

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


def payload(rules: Ruleset, offset: int, length: int) -> str:
    """Bits of the UDP payload, to be compared: without `@ih` they are reached from the UDP header on."""
    return f"@ih,{offset},{length}" if rules.rewrites_in_kernel else f"@th,{8 * UDP_HEADER + offset},{length}"


def milliseconds(seconds: float) -> str:
    """A time as nft reads it: of more than eight digits only as whole seconds."""
    return f"{round(seconds * 1000)}ms" if seconds <= 86_400 else f"{round(seconds)}s"


def names(words: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{word}"' for word in words) + " }"


def add_mark(rules: Ruleset, bits: int) -> str:
    return f"meta mark set meta mark | {rules.packet_mark(bits):#010x}"


def has_mark(rules: Ruleset, bits: int) -> str:
    mark = rules.packet_mark(bits)
    return f"meta mark & {mark:#010x} == {mark:#010x}"


def clear_marks(rules: Ruleset, bits: int = CLAIM | TALK | REFUSED | SAME_PORT | HAIRPINNED | PASSED) -> str:
    mark = rules.packet_mark(bits)
    return f"meta mark & {mark:#010x} != 0 meta mark set meta mark & {~mark & 0xFFFFFFFF:#010x}"


def of_service(rules: Ruleset, service: Service) -> str:
    inside = rules.connection_mark(service, OPENED_INSIDE)
    outside = rules.connection_mark(service, OPENED_OUTSIDE)
    return f"ct mark & {rules.mark_mask:#010x} {{ {inside:#010x}, {outside:#010x} }}"


def opened_by(rules: Ruleset, service: Service, opened: int) -> str:
    return f"ct mark & {rules.mark_mask:#010x} == {rules.connection_mark(service, opened):#010x}"


def is_hairpinned(rules: Ruleset, service: Service) -> bool:
    translated = not service.per_peer and not service.passthrough
    return rules.hairpin and service.unsolicited == "holder" and translated


def mark_connection(rules: Ruleset, service: Service, opened: int) -> str:
    return f"ct mark set ct mark & {rules.unmarked} | {rules.connection_mark(service, opened):#010x}"


# --- sets -------------------------------------------------------------------------------------------------


def pair(value: int) -> str:
    return f"{value} . {value}"


def address_pair(address: IPv4Address) -> str:
    return f"{address} . {int(address)}"


def elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f" elements = {{ {joined} }};" if joined else ""


def shared_sets(rules: Ruleset, epoch: int, bindings: Sequence[Element]) -> Iterator[str]:
    own = {address for binding in bindings for address in (binding.holder, binding.public)}
    ports = {
        port
        for service in rules.services
        if service.rewrites
        for span in service.ports()
        if span.protocol == "udp"
        for port in range(span.first, span.last + 1)
    }
    yield f"set epoch {{ type mark; elements = {{ {epoch} }}; }}"
    # Without @ih nothing passes unless it is alive; who loads the table is.
    alive = "" if rules.rewrites_in_kernel else elements(["udp"])
    yield f"set alive {{ type inet_proto; flags timeout; timeout {ALIVE_TIMEOUT_S}s;{alive} }}"
    if rules.fenced:
        yield "set lease { type inet_proto; flags timeout; }"
        yield "set offered { type mark; flags timeout; }"
        yield "counter without_lease { }"
    # Callers have a set of their own: from any number of addresses they can't fill the one of the holder.
    for name in ("talk_rate", "callers_talk_rate"):
        yield f"set {name} {{ type ipv4_addr; {DYNAMIC} timeout 10s; }}"
    # Without @ih nothing looks an address up here: only that batches are the same in both datapaths.
    pairs = "typeof ip saddr . @ih,96,32" if rules.rewrites_in_kernel else "type ipv4_addr . mark"
    own_addresses = elements(address_pair(address) for address in sorted(own))
    yield f"set own_address {{ {pairs};{own_addresses} }}"
    if rules.rewrites_in_kernel:
        own_ports = elements(pair(port) for port in sorted(ports))
        yield f"set own_port {{ typeof udp sport . @ih,80,16;{own_ports} }}"
    if rules.hairpin and rules.rewrites_in_kernel:
        yield f"set calling_address {{ {pairs}; size 4096; flags dynamic,timeout; timeout 3600s; }}"
    if kept := rules.kept_ports():
        yield f"set kept_ports {{ {PORT_SET}{elements(ports.text() for ports in kept)} }}"
        yield f"set source_port {{ type inet_service . inet_service; {DYNAMIC} timeout 10s; }}"
        yield f"set cannot_keep {{ type {CONNECTION}; {DYNAMIC} timeout {CANNOT_KEEP_TIMEOUT_S}s; }}"
        yield "counter ports_taken { }"
    for name in COUNTERS:
        yield f"counter {name} {{ }}"


def left(service: Service, binding: Element) -> str:
    """An idle time that goes on where it stood: adopting a call must not lengthen its silence."""
    if binding.left_s is None:
        return ""
    left_s = min(max(0.001, binding.left_s), service.idle_s)
    return f" timeout {milliseconds(service.idle_s)} expires {milliseconds(left_s)}"


def service_sets(rules: Ruleset, service: Service, bindings: Sequence[Element]) -> Iterator[str]:
    mine = [binding for binding in bindings if binding.service == service.name]
    name, idle = service.label, f"timeout {milliseconds(service.idle_s)};"
    key = "ipv4_addr . ipv4_addr" if service.per_peer else "ipv4_addr"
    yield f"set {name}_number {{ type mark; elements = {{ {service.number} }}; }}"
    yield f"set {name}_control {{ {PORT_SET}{elements(ports.text() for ports in service.control)} }}"
    yield f"set {name}_ports {{ {PORT_SET}{elements(ports.text() for ports in service.ports())} }}"
    holders = elements(f"{key_text(b.held_by)}{left(service, b)}" for b in mine)
    yield f"set {name}_holders {{ type {key}; {DYNAMIC} {idle}{holders} }}"
    inbound = elements(f"{key_text(b.held_at)}{left(service, b)} : {b.holder}" for b in mine)
    yield f"map {name}_inbound {{ type {key} : ipv4_addr; {DYNAMIC} {idle}{inbound} }}"
    outbound = elements(f"{key_text(b.held_by)} : {b.public}" for b in mine)
    yield f"map {name}_outbound {{ type {key} : ipv4_addr;{outbound} }}"
    yield f"set {name}_pending {{ type {key}; {DYNAMIC} timeout {PENDING_TIMEOUT_S}s; }}"
    yield f"set {name}_refused {{ type {key}; {DYNAMIC} timeout {milliseconds(rules.refused_s)}; }}"
    yield f"set {name}_hung_up {{ type ipv4_addr . ipv4_addr; {DYNAMIC} timeout {HUNG_UP_TIMEOUT_S}s; }}"
    yield f"counter {name}_sent {{ }}"
    yield f"counter {name}_received {{ }}"
    yield f"counter {name}_callers {{ }}"
    if service.called_at != f"{name}_ports":
        forward = elements(ports.text() for ports in merged(service.forward))
        yield f"set {service.called_at} {{ {PORT_SET}{forward} }}"
    if service.callers == "contacted":
        yield f"set {name}_contacted {{ type ipv4_addr . ipv4_addr; {DYNAMIC} {idle} }}"
    elif service.callers is not None:
        networks = elements(str(network) for network in collapse_addresses(service.callers))
        yield f"set {name}_may_call {{ type ipv4_addr; flags interval;{networks} }}"
    if service.unsolicited == "nobody" or service.callers is not None or service.new_callers_per_minute:
        yield f"counter {name}_turned_away {{ }}"
    if service.policy == "last":
        yield f"set {name}_called {{ type {CONNECTION}; {DYNAMIC} timeout {CALLED_TIMEOUT_S}s; }}"


# --- chains -----------------------------------------------------------------------------------------------


def chain(name: str, hook: str, rules: Iterable[str]) -> str:
    body = "".join(f"\n    {rule}" for rule in (hook, *rules) if rule)
    return f"  chain {name} {{{body}\n  }}"


def select_chains(rules: Ruleset) -> Iterator[str]:
    lan, wan = names(rules.lan), names(rules.wan)
    select: list[str] = []
    if rules.kept_ports():
        new = f"iifname {lan} oifname {wan} ct state new meta l4proto . th dport @kept_ports"
        select += [
            f"{new} {THIS_CONNECTION} @cannot_keep {add_mark(rules, REFUSED)} accept",
            # What was before NAT is not to be had after it in one look-up with what is then; so, from here.
            f"{new} update @source_port {{ th sport . th sport }}",
        ]
    for service in rules.services:
        name = service.label
        mine = of_service(rules, service)
        if is_hairpinned(rules, service) and service.rewrites:
            hairpin = f"iifname {lan} {opened_by(rules, service, HAIRPIN)}"
            select += [
                f"{hairpin} {add_mark(rules, HAIRPINNED)}",
                f"{hairpin} ct direction original goto {name}_incoming",
                f"{hairpin} goto {name}_outgoing",
            ]
        select += [
            f"iifname {lan} {service.sender} @{service.held} {mine} goto {name}_outgoing",
            f"iifname {lan} oifname {wan} {service.sender} @{service.held}"
            f" meta l4proto . th dport @{name}_ports goto {name}_outgoing",
            f"iifname {lan} oifname {wan} meta l4proto . th dport @{name}_control goto {name}_claim",
            f"iifname {wan} {service.receiver} @{service.held} {mine} goto {name}_incoming",
        ]
        yield from service_chains(rules, service)
    yield chain("talk", "", talk_rules(rules))
    yield chain("callers_talk", "", talk_rules(rules, of_callers=True))
    yield chain("select", "type filter hook forward priority -160; policy accept;", select)


def talk_rules(rules: Ruleset, *, of_callers: bool = False) -> Iterator[str]:
    """To the worker; beyond a rate of each sender on, with its header rewritten only.

    `of_callers`: in connections opened outside, where a sender's address may be any.
    """
    if not rules.rewrites_in_kernel:
        yield f"meta l4proto @alive counter name talks_queued {add_mark(rules, TALK)} accept"
        yield "counter name never_queued drop"
        return
    # Only while the worker lives: bypass helps against a queue nobody reads, not against a stopped reader.
    name = "callers_talk_rate" if of_callers else "talk_rate"
    all_together = (
        f" limit rate {CALLERS_TALK_RATE_PER_S}/second burst {CALLERS_TALK_RATE_PER_S} packets"
        if of_callers
        else ""
    )
    yield (
        f"meta l4proto @alive add @{name} {{ ip saddr limit rate {TALK_RATE_PER_S}/second"
        f" burst {2 * TALK_RATE_PER_S} packets }}{all_together}"
        f" counter name talks_queued {add_mark(rules, TALK)}"
    )


def service_chains(rules: Ruleset, service: Service) -> Iterator[str]:
    name = service.label
    has_header = f"meta l4proto udp udp length >= {UDP_HEADER + HEADER}"
    is_talk = f"{has_header} {payload(rules, 176, 16)} 101"
    is_hang_up = f"{is_talk} {payload(rules, 160, 16)} 6"
    is_translated_in_queue = is_talk if rules.rewrites_in_kernel else has_header
    outgoing: list[str] = []
    incoming: list[str] = []
    claim: list[str] = []
    called = f"@{name}_called {{ {THIS_CONNECTION} }}"
    if service.policy == "last":
        outgoing.append(f"update {called}")
    if service.rewrites:
        outgoing += [
            f"{is_hang_up} counter name hang_ups add @{name}_hung_up {{ ip saddr . ip daddr }}",
            f"{is_translated_in_queue} goto talk",
        ]
        called_us = rules.connection_mark(service, OPENED_OUTSIDE)
        incoming += [
            f"{is_translated_in_queue} ct mark & {rules.mark_mask:#010x} == {called_us:#010x}"
            " goto callers_talk",
            f"{is_translated_in_queue} goto talk",
        ]
        just_hung_up = f"ip saddr . ip daddr @{name}_hung_up"
        claim += [  # a hang-up never claims, and what trails behind one doesn't either
            *([f"{is_hang_up} delete {called}"] if service.policy == "last" else []),
            f"{is_hang_up} counter name hang_ups drop",
            f"{just_hung_up} udp length < {UDP_HEADER + HEADER} drop",
            f"{just_hung_up} {payload(rules, 176, 16)} != 101 drop",
            f"{just_hung_up} {payload(rules, 160, 16)} != 1 drop",
        ]
    # What conntrack can't follow can't be translated: it must not get a port, nor keep its host from one.
    claim.insert(0, "ct state invalid drop")
    if rules.fenced:
        claim.append(f"{WITHOUT_LEASE} {add_mark(rules, REFUSED)} accept")
    if service.policy == "last":
        # Only a new connection takes over. What goes on as if nothing had happened is a former holder's.
        claim.append(
            f"{THIS_CONNECTION} @{name}_called update {called} counter name refused"
            f" {add_mark(rules, REFUSED)} accept"
        )
    claim += [
        f"{service.sender} @{name}_refused counter name refused {add_mark(rules, REFUSED)} accept",
        # A lost upcall is tried again when the element runs out.
        f"{service.sender} @{name}_pending drop",
        # The element's limit makes it one upcall a host, whatever number of processors sees its packets at
        # once: the element's own lock lets one through. The other one is for hosts that nobody can count.
        f"limit rate {CLAIM_RATE_PER_S}/second burst {2 * CLAIM_RATE_PER_S} packets"
        f" add @{name}_pending {{ {service.sender} limit rate 1/minute burst 1 packets }}"
        f" counter name claims_queued {add_mark(rules, CLAIM)} accept",
        "counter name claims_over_rate drop",
    ]
    yield chain(f"{name}_outgoing", "", outgoing)
    yield chain(f"{name}_incoming", "", incoming)
    yield chain(f"{name}_claim", "", claim)


def queue_chains(rules: Ruleset) -> Iterator[str]:
    if rules.native_queue:
        yield chain(
            "queueing",
            "type filter hook forward priority -150; policy accept;",
            [
                f"{has_mark(rules, CLAIM)} queue num {rules.claim_queue}",
                f"{has_mark(rules, TALK)} queue flags bypass to {rules.talk_queue}",
            ],
        )
    refused = {
        "icmp": "reject with icmp type admin-prohibited",
        "drop": "drop",
        "pass": clear_marks(rules, REFUSED),
    }[rules.refusal]
    yield chain(
        "verdict",
        "type filter hook forward priority -140; policy accept;",
        [
            f"{has_mark(rules, REFUSED)} {refused}",
            # Nobody took it into the queue: a claim nobody decided must not pass.
            f"{has_mark(rules, CLAIM)} counter name never_queued drop",
            # Nobody read it: it goes on all the same, its header rewritten.
            f"{has_mark(rules, TALK)} counter name talks_unread meta mark set meta mark"
            f" & {~rules.packet_mark(TALK) & 0xFFFFFFFF:#010x}"
            if rules.rewrites_in_kernel
            else f"{has_mark(rules, TALK)} counter name never_queued drop",
        ],
    )


def fence_chain(rules: Ruleset) -> str:
    lan, wan = names(rules.lan), names(rules.wan)
    fence: list[str] = []
    for service in rules.services:
        name = service.label
        mine = of_service(rules, service)
        unless_passed = f" {service.sender} != @{name}_refused" if rules.refusal == "pass" else ""
        unless_answered = unless_passed.replace(service.sender, service.receiver)
        if rules.fenced:
            fence += [
                f"{mine} {WITHOUT_LEASE} drop",
                f"iifname {lan} oifname {wan} {service.sender} @{service.held}"
                f" meta l4proto . th dport @{name}_ports {WITHOUT_LEASE} drop",
            ]
        if is_hairpinned(rules, service):
            hairpin = opened_by(rules, service, HAIRPIN)
            fence += [f"{hairpin} {WITHOUT_LEASE} drop"] if rules.fenced else []
            fence += [
                f"{hairpin} ct direction {direction} ip {side} != @{name}_holders"
                " counter name not_the_holder drop"
                for direction, side in (("original", "daddr"), ("reply", "saddr"))
            ]
        fence += [
            f"iifname {lan} oifname {wan} meta l4proto . th dport @{name}_control"
            f" {service.sender} != @{service.held}{unless_passed} counter name not_the_holder drop",
            # Conntrack remembers what was unbound; a packet held in a queue could even bring it back.
            f"iifname {wan} {mine} {service.receiver} != @{service.held} counter name not_the_holder drop",
            f"iifname {lan} {mine} {service.sender} != @{service.held} counter name not_the_holder drop",
            # Opened past our rules, before they stood or while somebody had flushed them.
            f"iifname {wan} ct direction reply meta l4proto . th sport @{name}_control"
            f" {service.receiver} != @{service.held}{unless_answered} counter name not_the_holder drop",
        ]
    if rules.rewrites_in_kernel:
        fence.append(
            f"iifname {lan} meta l4proto udp udp length >= {UDP_HEADER + HEADER}"
            f" udp sport . @ih,80,16 @own_port {add_mark(rules, SAME_PORT)}"
        )
    return chain("leaving", "type filter hook postrouting priority 97; policy accept;", fence)


def nat_chains(rules: Ruleset) -> Iterator[str]:
    """Both NAT chains as production has them; the laboratory makes its own for a vector's ports."""
    lan, wan = names(rules.lan), names(rules.wan)
    arriving: list[str] = []
    leaving: list[str] = []
    others: list[str] = []
    if rules.keep_source_ports:
        ports = ", ".join(ports.text() for ports in merged(rules.keep_source_ports))
        others.append(f"iifname {lan} oifname {wan} meta l4proto . th dport {{ {ports} }} masquerade")
    for service in rules.services:
        name = service.label
        if service.passthrough:
            # To what it is already: nobody else's rule behind this one translates it.
            leaving.append(f"iifname {lan} oifname {wan} {of_service(rules, service)} snat to ip saddr")
            continue
        arriving += caller_rules(rules, service)
        if is_hairpinned(rules, service):
            leaving.append(
                f"{opened_by(rules, service, HAIRPIN)} ct direction original snat to ct original ip daddr"
            )
        for protocol in sorted({ports.protocol for ports in service.ports()}):
            # With a port to keep, NAT drops without a word what can't keep it; without one, it takes another,
            # and the rules behind it see that.
            port = "" if is_looked_after(rules, service) else f" : {protocol} sport"
            leaving += [
                f"iifname {lan} oifname {wan} {service.sender} @{service.held} meta l4proto {protocol}"
                f" meta l4proto . th dport @{name}_ports {mark_connection(rules, service, OPENED_INSIDE)}"
                f" snat to {service.sender} map @{name}_outbound{port}",
                # Not in the map: somebody flushed it. Untranslated, the flow would stay so all its life.
                f"iifname {lan} oifname {wan} {service.sender} @{service.held} meta l4proto {protocol}"
                f" meta l4proto . th dport @{name}_ports counter name not_the_holder drop",
            ]
            if service.unsolicited == "holder":
                # The same two hosts may open to each other at once, on two processors. NAT would give the
                # caller's packet another source port, and a client knows its peer by it: lost is better.
                leaving.append(
                    f"iifname {wan} {opened_by(rules, service, OPENED_OUTSIDE)} meta l4proto {protocol}"
                    f" snat to ip saddr : {protocol} sport"
                )
            others += [
                # Another host's flow from a held port would take the holder's tuple, and the holder's own
                # packets would then vanish without a word (insert_failed in conntrack's statistics).
                f"iifname {lan} oifname {wan} {service.sender} != @{service.held} meta l4proto {protocol}"
                f" meta l4proto . th sport @{name}_ports masquerade to :{RESERVED_FOR_OTHERS}",
            ]
    yield chain("nat_arriving", "type nat hook prerouting priority -101; policy accept;", arriving)
    yield chain("nat_leaving", "type nat hook postrouting priority 99; policy accept;", [*leaving, *others])


def is_looked_after(rules: Ruleset, service: Service) -> bool:
    """Whether somebody beside the holder may have the tuples that he wants."""
    return bool(rules.keep_source_ports) or service.unsolicited == "local"


def caller_rules(rules: Ruleset, service: Service) -> Iterator[str]:
    """Connections that are opened to the public address, while somebody holds the service there."""
    name = service.label
    if service.unsolicited == "local":
        return
    called = f"{service.receiver} @{name}_inbound meta l4proto . th dport @{service.called_at}"
    new = "ct state new " if service.passthrough else ""  # NAT sees no others
    outside = f"iifname {names(rules.wan)} {new}{called}"
    if rules.fenced:  # dropped, not answered by the gateway itself: a connection to nobody would stay
        yield f"{outside} {WITHOUT_LEASE} drop"
    # Dropped, not passed: a connection to the gateway itself would keep the holder from calling that peer.
    turned_away = f"counter name {name}_turned_away drop"
    if service.unsolicited == "nobody":
        yield f"{outside} {turned_away}"
        return
    if service.callers == "contacted":
        yield f"{outside} ip daddr . ip saddr != @{name}_contacted {turned_away}"
    elif service.callers is not None:
        yield f"{outside} ip saddr != @{name}_may_call {turned_away}"
    if (rate := service.new_callers_per_minute) is not None:
        yield f"{outside} limit rate over {rate}/minute burst {rate} packets {turned_away}"
    if service.passthrough:
        yield f"{outside} counter name {name}_callers {mark_connection(rules, service, OPENED_OUTSIDE)}"
        return
    to_holder = f"counter name {name}_callers {{}} dnat to {service.receiver} map @{name}_inbound"
    yield f"{outside} {to_holder.format(mark_connection(rules, service, OPENED_OUTSIDE))}"
    if is_hairpinned(rules, service):
        calling = " update @calling_address { ip saddr . @nh,96,32 }" if rules.rewrites_in_kernel else ""
        yield (
            f"iifname {names(rules.lan)} {called} {service.sender} != @{service.held}{calling}"
            f" {to_holder.format(mark_connection(rules, service, HAIRPIN))}"
        )


def idle_chain(rules: Ruleset) -> str:
    """The idle timers: what really leaves starts them again; after NAT, for the map's key."""
    timers: list[str] = [*kept_port_rules(rules)] if rules.kept_ports() else []
    for service in rules.services:
        name = service.label
        peer = " . ip daddr" if service.per_peer else ""
        for opened, direction, holder in (
            (OPENED_INSIDE, "original", "ct original ip saddr"),
            (OPENED_OUTSIDE, "reply", "ct reply ip saddr"),
            (HAIRPIN, "reply", "ct reply ip saddr"),
        ):
            if opened == HAIRPIN and not is_hairpinned(rules, service):
                continue
            mark = opened_by(rules, service, opened)
            if service.passthrough:
                timers.append(f"{mark} ct direction {direction} counter name {name}_sent return")
                timers.append(f"{mark} counter name {name}_received return")
                continue
            if opened == OPENED_INSIDE and service.callers == "contacted":
                contacted = f"@{name}_contacted {{ ip saddr . ip daddr }}"
                timers.append(f"{mark} ct direction original update {contacted}")
            timers += [
                f"{mark} ct direction {direction} update @{name}_holders {{ {holder}{peer} }}"
                f" update @{name}_inbound {{ ip saddr{peer} : {holder} }} counter name {name}_sent return",
                f"{mark} counter name {name}_received return",
            ]
    return chain("idle", "type filter hook postrouting priority 149; policy accept;", timers)


def passing_chain(rules: Ruleset) -> Iterator[str]:
    """Connections of a host that carries the public address itself; what comes in is marked for routing."""
    lan, wan = names(rules.lan), names(rules.wan)
    passing: list[str] = []
    for service in rules.services:
        if service.passthrough:
            held, mark = f"@{service.held}", mark_connection(rules, service, OPENED_INSIDE)
            passing += [
                f"iifname {lan} ip saddr {held} ct state new {mark}",
                *caller_rules(rules, service),
                f"iifname {wan} {of_service(rules, service)} ip daddr {held} {add_mark(rules, PASSED)}",
            ]
    if passing:
        yield chain("passing", "type filter hook prerouting priority -140; policy accept;", passing)


def kept_port_rules(rules: Ruleset) -> Iterator[str]:
    """What could not keep its source port does not leave, and its next packet is refused (see `select`)."""
    before = "ct original ip saddr . ct original proto-src . ct original ip daddr . ct original proto-dst"
    for protocol in sorted({ports.protocol for ports in rules.kept_ports()}):
        yield (
            f"iifname {names(rules.lan)} oifname {names(rules.wan)} meta l4proto {protocol} ct state new"
            f" ct direction original meta l4proto . th dport @kept_ports"
            f" ct original proto-src . {protocol} sport != @source_port"
            f" update @cannot_keep {{ meta l4proto . {before} }} counter name ports_taken drop"
        )


def speaker_rules(rules: Ruleset, own: str, copied: str, addresses: str = "own_address") -> Iterator[str]:
    """Speaker addresses that are our own: one rule each, left at the declared count or the packet's end."""
    for index in range(rules.most_speakers):
        at = SPEAKERS_AT + 4 * index
        yield f"udp length < {UDP_HEADER + at + 4} return"
        yield f"@ih,208,8 & 0x3f <= {index} return"
        yield f"{own} . @ih,{at * 8},32 @{addresses} @ih,{at * 8},32 set {copied}"


def port_rules(target: str, at: int) -> Iterator[str]:
    """A port of the UDP header, `at` bits into it, copied into the payload.

    Counted from the IP header's start, because nft takes `@th,0,16` for a port and refuses to store one as
    raw bits; hence a rule for each length that an IP header can have.
    """
    for words in range(5, 16):
        yield f"ip hdrlength {words} {target} set @nh,{words * 32 + at},16"


def rewriting_chains(rules: Ruleset) -> str:
    """The header's translation, from after all NAT: what the vectors are held against, byte for byte.

    Chains come in pairs because the sender's own address before NAT is the connection's original source
    where it was opened inside, and its reply source where it was opened outside (`ct original ip saddr` is
    the caller there).
    """
    private, public = "@nh,128,32", "@nh,96,32"  # destination after DNAT, source after SNAT
    same_port = has_mark(rules, SAME_PORT)
    out: dict[str, str] = {"inside": "ct original ip saddr", "outside": "ct reply ip saddr"}
    arriving: dict[str, str] = {"inside": "ct reply ip daddr", "outside": "ct original ip daddr"}
    text: list[str] = []
    for opened in ("inside", "outside"):
        own = out[opened]
        text += [
            chain(f"out_speakers_{opened}", "", speaker_rules(rules, own, public)),
            chain(
                f"out_header_{opened}",
                "",
                [
                    "@ih,96,32 0 return",
                    f"@ih,64,16 2 {own} . @ih,96,32 != @own_address return",
                    f"{same_port} jump out_port",
                    f"@ih,96,32 set {public}",
                ],
            ),
            chain(f"in_speakers_{opened}", "", speaker_rules(rules, arriving[opened], private)),
            chain(
                f"out_{opened}",
                "",
                [f"jump out_header_{opened}", f"@ih,176,16 3 goto out_speakers_{opened}"],
            ),
            chain(
                f"in_{opened}",
                "",
                ["jump in_header", f"@ih,176,16 3 goto in_speakers_{opened}"],
            ),
        ]
    in_header = [
        "@ih,32,32 0 return",
        f"{same_port} @ih,176,16 != 101 jump in_port",
        f"@ih,32,32 set {private}",
    ]
    text = [
        chain("out_port", "", port_rules("@ih,80,16", 0)),
        chain("in_port", "", port_rules("@ih,16,16", 16)),
        chain("in_header", "", in_header),
        *text,
    ]
    text += [
        chain("opened_inside", "", ["ct direction original goto out_inside", "goto in_inside"]),
        chain("opened_outside", "", ["ct direction original goto in_outside", "goto out_outside"]),
    ]
    ways = [
        f"{rules.connection_mark(service, opened):#010x} : jump {target}"
        for service in rules.services
        if service.rewrites
        for opened, target in (
            (OPENED_INSIDE, "opened_inside"),
            (OPENED_OUTSIDE, "opened_outside"),
            *([(HAIRPIN, "hairpin")] if is_hairpinned(rules, service) else []),
        )
    ]
    if rules.hairpin:
        text += hairpin_chains(rules)
    rewrite = [clear_marks(rules)]
    if ways:
        rewrite.insert(
            0,
            f"meta l4proto udp udp length >= {UDP_HEADER + HEADER}"
            f" ct mark & {rules.mark_mask:#010x} vmap {{ {', '.join(ways)} }}",
        )
    text += [
        chain(
            "arriving",
            "type filter hook prerouting priority -110; policy accept;",
            [
                f"iifname {names(rules.wan)} meta l4proto udp udp length >= {UDP_HEADER + HEADER}"
                f" udp dport . @ih,16,16 @own_port {add_mark(rules, SAME_PORT)}",
            ],
        ),
        chain(
            "arrived",  # the mark is ours alone: it goes no further than our own connections
            "type filter hook prerouting priority -90; policy accept;",
            [f"ct mark & {rules.mark_mask:#010x} == 0 {clear_marks(rules)}"],
        ),
        chain("rewrite", "type filter hook postrouting priority 150; policy accept;", rewrite),
    ]
    return "\n".join(text)


def hairpin_chains(rules: Ruleset) -> Iterator[str]:
    """Between two hosts of the LAN: each sees the other at the public address, and itself at its own."""
    private, public = "@nh,128,32", "@nh,96,32"
    speakers = speaker_rules(rules, CALLER, public, "calling_address")
    yield chain("hairpin_speakers_out", "", speakers)
    yield chain(
        "hairpin",
        "",
        [
            f"@ih,32,32 != 0 @ih,32,32 set {private}",
            "ct direction reply goto out_outside",
            f"@ih,64,16 2 {CALLER} . @ih,96,32 != @calling_address return",
            f"@ih,96,32 != 0 {has_mark(rules, SAME_PORT)} jump out_port",
            f"@ih,96,32 != 0 @ih,96,32 set {public}",
            "@ih,176,16 3 goto hairpin_speakers_out",
        ],
    )


def unmarking_chain(rules: Ruleset) -> str:
    """What is left of the rewriting where the worker does it."""
    return chain("rewrite", "type filter hook postrouting priority 150; policy accept;", [clear_marks(rules)])


# --- the whole, and the batches after it ------------------------------------------------------------------


def table(rules: Ruleset, epoch: int, bindings: Sequence[Element], nat: Iterable[str]) -> str:
    """The table's body with the given NAT chains."""
    sets = [*shared_sets(rules, epoch, bindings)]
    for service in rules.services:
        sets += service_sets(rules, service, bindings)
    parts = [
        "\n".join(f"  {line}" for line in sets),
        *passing_chain(rules),
        *select_chains(rules),
        *queue_chains(rules),
        fence_chain(rules),
        *nat,
        idle_chain(rules),
        rewriting_chains(rules) if rules.rewrites_in_kernel else unmarking_chain(rules),
    ]
    return f"table ip {TABLE} {{\n" + "\n".join(parts) + "\n}\n"


def fence(epoch: int, new_epoch: int | None = None) -> str:
    """The compare-and-set that opens every batch: it fails whole when another epoch stands in the kernel."""
    new = epoch if new_epoch is None else new_epoch
    return f"delete element ip {TABLE} epoch {{ {epoch} }}\nadd element ip {TABLE} epoch {{ {new} }}\n"


def render(rules: Ruleset, epoch: int, bindings: Sequence[Element], *, replaces: int | None) -> str:
    """The first batch of an epoch: the whole table, with the bindings that are adopted.

    `replaces` is the epoch of the table that stands there now, None when there is none. Both ways it fails
    whole when the kernel holds something else: nobody replaces a newer worker's table.
    """
    body = table(rules, epoch, bindings, nat_chains(rules))
    if replaces is None:
        return f"create table ip {TABLE}\n{body}"
    return f"{fence(replaces)}delete table ip {TABLE}\n{body}"


def install(rules: Ruleset, epoch: int, binding: Element) -> str:
    """Give the port: holder, both directions of NAT. Nothing in it depends on a set that others can fill."""
    service = rules.service(binding.service)
    name, timing = service.label, left(service, binding)
    held_by, held_at = key_text(binding.held_by), key_text(binding.held_at)
    forget = f"flush set ip {TABLE} {name}_contacted\n" if service.callers == "contacted" else ""
    return (
        fence(epoch)
        + forget
        + f"add element ip {TABLE} {name}_holders {{ {held_by}{timing} }}\n"
        + f"add element ip {TABLE} {name}_outbound {{ {held_by} : {binding.public} }}\n"
        + f"add element ip {TABLE} {name}_inbound {{ {held_at}{timing} : {binding.holder} }}\n"
        + f"add element ip {TABLE} own_address {{ {address_pair(binding.holder)} }}\n"
        + f"add element ip {TABLE} own_address {{ {address_pair(binding.public)} }}\n"
    )


def withdraw(
    epoch: int, service: Service, remove: Iterable[tuple[str, str]], *, to_anybody: bool = False
) -> str:
    """Take the port: `remove` has (set, key) pairs that the kernel was seen to hold; it refuses others.

    `to_anybody`: nobody took it over, so that whoever goes on with an older call may have it.
    """
    lines = [f"delete element ip {TABLE} {name} {{ {key} }}\n" for name, key in remove]
    flushes = [f"{service.label}_refused"]
    if service.policy == "last" and to_anybody:
        flushes.append(f"{service.label}_called")
    return fence(epoch) + "".join(lines) + "".join(f"flush set ip {TABLE} {name}\n" for name in flushes)


def refuse(epoch: int, service: Service, host: Key) -> str:
    """Answer a host from the kernel for a while, without another upcall."""
    name = service.label
    return (
        fence(epoch)
        + f"add element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + f"delete element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + f"add element ip {TABLE} {name}_refused {{ {key_text(host)} }}\n"
        + settled(service, host)
    )


def settle(epoch: int, service: Service, host: Key) -> str:
    """A claim that is over: the host may ask again at once."""
    return fence(epoch) + settled(service, host)


def settled(service: Service, host: Key) -> str:
    name, key = f"{service.label}_pending", key_text(host)
    return f"add element ip {TABLE} {name} {{ {key} }}\ndelete element ip {TABLE} {name} {{ {key} }}\n"


def offer(epoch: int, nonce: int, lease_ms: int) -> str:
    """Before the heartbeat `nonce` leaves: its acknowledgement is worth something for half a lease."""
    return fence(epoch) + f"add element ip {TABLE} offered {{ {nonce} timeout {half_ms(lease_ms)}ms }}\n"


def renew(epoch: int, nonce: int, lease_ms: int) -> str:
    """The heartbeat `nonce` was acknowledged. Fails whole, as it must, when its offer has run out."""
    lasting = ", ".join(f"{protocol} timeout {half_ms(lease_ms)}ms" for protocol in LEASED.split(", "))
    return (
        fence(epoch)
        + f"delete element ip {TABLE} offered {{ {nonce} }}\n"
        # A timeout is only new with a new element; between two batches no packet sees it missing.
        + f"add element ip {TABLE} lease {{ {LEASED} }}\ndelete element ip {TABLE} lease {{ {LEASED} }}\n"
        + f"add element ip {TABLE} lease {{ {lasting} }}\n"
    )


def half_ms(lease_ms: int) -> int:
    """How long an offer lasts, and how long a lease, of the tracker's `lease_ms`."""
    return max(1, lease_ms // 2 - TIMER_SLACK_MS)


def end_lease(epoch: int) -> str:
    """Forward nothing any more, and take no acknowledgement that is still under way."""
    return fence(epoch) + f"flush set ip {TABLE} lease\nflush set ip {TABLE} offered\n"


def keep_alive(epoch: int) -> str:
    """Say that a worker reads the OpenContinue queue; to be repeated each second."""
    return (
        fence(epoch)
        + f"add element ip {TABLE} alive {{ udp }}\ndelete element ip {TABLE} alive {{ udp }}\n"
        + f"add element ip {TABLE} alive {{ udp }}\n"
    )
