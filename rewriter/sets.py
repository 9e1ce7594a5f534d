"""What the table remembers: its sets, maps and counters, and how many and how long.

Rule 1: who holds a port is an element; chains only look up. Rule 2: what anybody outside can fill has a size
  and times out (`DYNAMIC`), and is never the set that a holder is found in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import collapse_addresses

from rewriter.phrases import address_pair, elements, milliseconds
from rewriter.vocabulary import Element, Ruleset, Service, key_text, merged

PENDING_TIMEOUT_S = 4
ALIVE_TIMEOUT_S = 3
HUNG_UP_TIMEOUT_S = 5
CALLED_TIMEOUT_S = 10
CANNOT_KEEP_TIMEOUT_S = 5
CALLING_TIMEOUT_S = 10
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
DYNAMIC = "size 4096; flags dynamic,timeout;"
"""The size is a bound, not a need. Where it is reached a rule that adds an element does not match, and the
next one follows; a batch that adds one is refused whole. Both must be right: `selection.service_chains`,
and `GatewayKernel.refuse`.
"""
PORT_SET = "type inet_proto . inet_service; flags interval;"


def pair(value: int) -> str:
    return f"{value} . {value}"


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
    # Who loads the table is alive, and reads its queues.
    yield f"set alive {{ type inet_proto; flags timeout; timeout {ALIVE_TIMEOUT_S}s; elements = {{ udp }}; }}"
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
        yield f"set calling_address {{ {pairs}; {DYNAMIC} timeout {CALLING_TIMEOUT_S}s; }}"
    if kept := rules.kept_ports():
        yield f"set kept_ports {{ {PORT_SET}{elements(ports.text() for ports in kept)} }}"
        yield f"set source_port {{ type inet_service . inet_service; {DYNAMIC} timeout 10s; }}"
        yield f"set cannot_keep {{ type {CONNECTION}; {DYNAMIC} timeout {CANNOT_KEEP_TIMEOUT_S}s; }}"
        yield "counter ports_taken { }"
    for name in COUNTERS:
        yield f"counter {name} {{ }}"


def left(service: Service, binding: Element) -> str:
    """An idle time that goes on where it stood: adopting a call must not lengthen its silence."""
    return "" if binding.left_s is None else expiring(service.idle_s, binding.left_s)


def expiring(timeout_s: float, left_s: float) -> str:
    """The times of an element that has been there for a while."""
    left_s = min(max(0.001, left_s), timeout_s)
    return f" timeout {milliseconds(timeout_s)} expires {milliseconds(left_s)}"


@dataclass(frozen=True, slots=True)
class Remembered:
    """What packets have written into a table, for the one that takes its place.

    `sets` (of `remembered_sets`): name → element, as text → seconds left; `counters` (`counter_names`):
    name → packets, octets.
    """

    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counters: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def remembered_sets(service: Service) -> dict[str, float]:
    """Those that a table which takes this one's place must know, too: name → time-out.

    Without them a restart would let a former holder's packets claim as if they were a new call.
    """
    found = {f"{service.label}_hung_up": float(HUNG_UP_TIMEOUT_S)}
    if service.callers == "contacted":
        found[f"{service.label}_contacted"] = service.idle_s
    if service.policy == "last":
        found[f"{service.label}_called"] = CALLED_TIMEOUT_S
    return found


def counter_names(service: Service) -> tuple[str, str, str]:
    """Of what a binding carries: sent, received, and connections opened to it."""
    return f"{service.label}_sent", f"{service.label}_received", f"{service.label}_callers"


def service_sets(
    rules: Ruleset, service: Service, bindings: Sequence[Element], remembered: Remembered
) -> Iterator[str]:
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
    hosts = f"type ipv4_addr . ipv4_addr; {DYNAMIC}"
    written = {
        found: f"timeout {milliseconds(timeout_s)};"
        + elements(
            f"{key}{expiring(timeout_s, left_s)}" for key, left_s in remembered.sets.get(found, {}).items()
        )
        for found, timeout_s in remembered_sets(service).items()
    }
    yield f"set {name}_hung_up {{ {hosts} {written[f'{name}_hung_up']} }}"
    for counter in counter_names(service):
        packets, octets = remembered.counters.get(counter, (0, 0))
        yield f"counter {counter} {{ packets {packets} bytes {octets} }}"
    if service.called_at != f"{name}_ports":
        forward = elements(ports.text() for ports in merged(service.forward))
        yield f"set {service.called_at} {{ {PORT_SET}{forward} }}"
    if service.callers == "contacted":
        yield f"set {name}_contacted {{ {hosts} {written[f'{name}_contacted']} }}"
    elif service.callers is not None:
        networks = elements(str(network) for network in collapse_addresses(service.callers))
        yield f"set {name}_may_call {{ type ipv4_addr; flags interval;{networks} }}"
    if service.unsolicited == "nobody" or service.callers is not None or service.new_callers_per_minute:
        yield f"counter {name}_turned_away {{ }}"
    if service.policy == "last":
        yield f"set {name}_called {{ type {CONNECTION}; {DYNAMIC} {written[f'{name}_called']} }}"
