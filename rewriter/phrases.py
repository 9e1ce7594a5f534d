"""What the chains say in the same words: marks, interfaces, lists of elements, a chain's frame.

Rule: packets are judged by their connection (ct mark: which service, opened from which side), not by ports
  alone: a caller from another port is a caller too.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from rewriter.vocabulary import (
    CLAIM,
    HAIRPINNED,
    OPENED_INSIDE,
    OPENED_OUTSIDE,
    PASSED,
    REFUSED,
    SAME_PORT,
    TALK,
    Ruleset,
    Service,
)

UDP_HEADER = 8
HEADER = 26  # CU-SeeMe's
WITHOUT_LEASE = "meta l4proto != @lease counter name without_lease"
THIS_CONNECTION = "meta l4proto . ip saddr . th sport . ip daddr . th dport"


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


def address_pair(address: IPv4Address) -> str:
    return f"{address} . {int(address)}"


def elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f" elements = {{ {joined} }};" if joined else ""


def chain(name: str, hook: str, rules: Iterable[str]) -> str:
    body = "".join(f"\n    {rule}" for rule in (hook, *rules) if rule)
    return f"  chain {name} {{{body}\n  }}"
