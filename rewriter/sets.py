"""What the table remembers: its sets, maps and counters, and how many and how long.

Rule 1: who holds a port is an element; chains only look up. Rule 2: what anybody outside can fill has a size
  and times out (`DYNAMIC`), and is never the set that a holder is found in.
"""

from collections.abc import Iterator, Sequence
from ipaddress import collapse_addresses

from rewriter.phrases import address_pair, elements, milliseconds
from rewriter.vocabulary import Element, Ruleset, Service, key_text, merged

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
