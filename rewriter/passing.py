"""Routing for `passthrough`: what is marked for it goes to the host that carries the public address itself.

Rule 1: what is not marked is routed as ever, at every moment: the rule for the gateway's own addresses stands
twice before it stands only behind ours. Rule 2: whatever stands half is made whole, and taking down what is
not there is no fault.

The kernel delivers packets for one of its own addresses to itself because the first rule of all says so, that
of `local` at 0. Ours has to come before, so that one moves behind it.
"""

import json
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from rewriter.vocabulary import PASSED, Ruleset

TABLE: Final = "7648"
OURS_AT, LOCAL_AT = "10", "20"
ACCEPT_LOCAL: Final = "/proc/sys/net/ipv4/conf/{}/accept_local"
"""Lets packets in whose source is an address of this machine's own: what the host that carries it sends."""


Run = Callable[[Sequence[str]], str]
"""A tool's output; what it raises when the tool fails is the caller's."""


def set_up(run: Run, rules: Ruleset, public: IPv4Address, holder: IPv4Address) -> None:
    """Raises KernelRefused when `ip` would not."""
    for interface in rules.lan:
        Path(ACCEPT_LOCAL.format(interface)).write_text("1\n")
    run(["ip", "route", "replace", f"{public}/32", "via", str(holder), "table", TABLE])
    standing = priorities(run)
    if LOCAL_AT not in standing:
        run(["ip", "rule", "add", "priority", LOCAL_AT, "lookup", "local"])
    if OURS_AT not in standing:
        mark = f"{rules.packet_mark(PASSED):#x}"
        run(["ip", "rule", "add", "priority", OURS_AT, "fwmark", f"{mark}/{mark}", "lookup", TABLE])
    if "0" in standing:
        run(["ip", "rule", "delete", "priority", "0", "lookup", "local"])


def stands(run: Run, rules: Ruleset, public: IPv4Address, holder: IPv4Address) -> bool:
    """Whether all of `set_up` is as it left it. KernelRefused when not even its table of routes is there."""
    if priorities(run) != {OURS_AT, LOCAL_AT}:
        return False
    if any(Path(ACCEPT_LOCAL.format(interface)).read_text() != "1\n" for interface in rules.lan):
        return False
    routes: list[dict[str, Any]] = json.loads(run(["ip", "-j", "route", "show", "table", TABLE]) or "[]")
    return [(route["dst"], route.get("gateway")) for route in routes] == [(str(public), str(holder))]


def take_down(run: Run, rules: Ruleset) -> None:
    """Raises KernelRefused when `ip` would not."""
    standing = priorities(run)
    if "0" not in standing:
        run(["ip", "rule", "add", "priority", "0", "lookup", "local"])
    for priority in (OURS_AT, LOCAL_AT):
        if priority in standing:
            run(["ip", "rule", "delete", "priority", priority])
    if OURS_AT in standing:
        run(["ip", "route", "flush", "table", TABLE])
        for interface in rules.lan:
            Path(ACCEPT_LOCAL.format(interface)).write_text("0\n")


def priorities(run: Run) -> set[str]:
    """Of the rules that are ours, or that ours has to come before."""
    found: list[dict[str, Any]] = json.loads(run(["ip", "-j", "rule", "show"]) or "[]")
    ours = {(OURS_AT, TABLE), (LOCAL_AT, "local"), ("0", "local")}
    seen = {(str(rule["priority"]), str(rule.get("table"))) for rule in found}
    return {priority for priority, _ in seen & ours}
