"""The CU-SeeMe header's translation in the kernel: a packet's own addresses, after all NAT, copied into it.

Two fields of a packet can't be compared in nftables, but their concatenation can be looked up in a set of
equal pairs: `ip saddr . @ih,96,32 @own_address` with {a . a} says "addr is the sender's own".
Offsets: cuseeme-protocol.md. `@ih` counts bits from the UDP payload's start; its `set` mends the checksum
(net/netfilter/nft_payload.c).
"""

from collections.abc import Iterator

from rewriter.phrases import (
    HEADER,
    UDP_HEADER,
    add_mark,
    chain,
    clear_marks,
    has_mark,
    is_hairpinned,
    names,
)
from rewriter.vocabulary import HAIRPIN, OPENED_INSIDE, OPENED_OUTSIDE, SAME_PORT, Ruleset

SPEAKERS_AT = 34  # offset of the first speaker address in an audio packet
CALLER = "ct original ip saddr"


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
    """Between two hosts of the LAN: each sees the other at the public address, and itself at its own.

    Where two of them call from the same port, the second one's is changed. What it says of its port follows;
    the dest_port of what comes back does not: no client was seen to look at it.
    """
    private, public = "@nh,128,32", "@nh,96,32"
    speakers = speaker_rules(rules, CALLER, public, "calling_address")
    yield chain("hairpin_speakers_out", "", speakers)
    yield chain(
        "hairpin",
        "",
        [
            f"@ih,32,32 != 0 @ih,32,32 set {private}",
            "@ih,176,16 3 jump in_speakers_outside",  # before the sender becomes the public address, too
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
