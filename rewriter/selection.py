"""Which packets the worker is asked about: claims and OpenContinues, their queues, and what came of them.

Rule 1: one upcall for a claim, however many packets; the element in `pending` is what makes it one.
Rule 2: a call goes on without the worker. An OpenContinue is queued only while `alive` stands and below a
  rate; the others keep their header's rewriting (but see `ruleset.py` for kernels that have none).
"""

from collections.abc import Iterator

from rewriter.phrases import (
    HEADER,
    THIS_CONNECTION,
    UDP_HEADER,
    WITHOUT_LEASE,
    add_mark,
    chain,
    clear_marks,
    has_mark,
    is_hairpinned,
    names,
    of_service,
    opened_by,
    payload,
)
from rewriter.vocabulary import CLAIM, HAIRPIN, HAIRPINNED, OPENED_OUTSIDE, REFUSED, TALK, Ruleset, Service

TALK_RATE_PER_S = 50
CALLERS_TALK_RATE_PER_S = 500
"""OpenContinues of all who called from outside, together: their addresses may be as many as they like."""
CLAIM_RATE_PER_S = 50
"""Upcalls of all hosts together; each costs the worker an fsync, and it has OpenContinues to read, too."""


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
            # Its rewriting looks up whose address is the caller's own: with each packet, so that the set may
            # be emptied in mid-call.
            if rules.rewrites_in_kernel:
                itself = "update @calling_address { ip saddr . @nh,96,32 }"
                select.append(f"{hairpin} ct direction original {itself}")
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
        if of_callers:
            # Who is answered is somebody's peer; of all others together a bound reaches the worker.
            unanswered = f"ct state new limit rate over {CALLERS_TALK_RATE_PER_S}/second"
            yield f"{unanswered} burst {CALLERS_TALK_RATE_PER_S} packets counter name never_queued drop"
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
