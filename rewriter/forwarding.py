"""What is forwarded: NAT both ways, the fence behind it, the idle timers, and passing on without NAT.

Rule 1: nothing is translated or passed on but to and from who is found among the holders. Rule 2: the fence
  comes after everybody's NAT and trusts no chain before it: conntrack remembers what was unbound.
"""

from collections.abc import Iterator

from rewriter.phrases import (
    HEADER,
    UDP_HEADER,
    WITHOUT_LEASE,
    add_mark,
    chain,
    is_hairpinned,
    mark_connection,
    names,
    of_service,
    opened_by,
)
from rewriter.vocabulary import (
    HAIRPIN,
    OPENED_INSIDE,
    OPENED_OUTSIDE,
    PASSED,
    SAME_PORT,
    Ruleset,
    Service,
    merged,
)

RESERVED_FOR_OTHERS = "32768-60999"


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
        yield (
            f"iifname {names(rules.lan)} {called} {service.sender} != @{service.held}"
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
