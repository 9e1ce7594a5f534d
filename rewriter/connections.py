"""What conntrack remembers, and how it forgets.

Rule 1: entries are listed by the conntrack tool, and deleted by netlink from here: a flood leaves as many as
there were addresses, and a process for each of them would keep the worker from its calls for minutes.
"""

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from rewriter.command import KernelRefused, run

NETLINK_NETFILTER: Final = 12
NFNL_SUBSYS_CTNETLINK: Final = 1
IPCTNL_MSG_CT_DELETE: Final = 2
NLM_F_REQUEST, NLM_F_ACK, NLA_F_NESTED = 1, 4, 0x8000
"""include/uapi/linux/netlink.h, netfilter/nfnetlink.h, netfilter/nfnetlink_conntrack.h"""
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


@dataclass(frozen=True, slots=True)
class Connection:
    """A conntrack entry: (source, destination, source port, destination port) of both directions."""

    protocol: str
    original: tuple[IPv4Address, IPv4Address, int, int]
    reply: tuple[IPv4Address, IPv4Address, int, int]
    replied: bool
    mark: int


TUPLE = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")


def parse_connection(line: str) -> Connection | None:
    """A line of `conntrack -L`; None for what has no ports."""
    tuples = TUPLE.findall(line)
    if len(tuples) != 2:
        return None
    mark = re.search(r"mark=(\d+)", line)
    original, reply = (
        (IPv4Address(source), IPv4Address(destination), int(sport), int(dport))
        for source, destination, sport, dport in tuples
    )
    replied = "[UNREPLIED]" not in line
    return Connection(line.split(maxsplit=1)[0], original, reply, replied, int(mark[1]) if mark else 0)


def connections(*filters: str) -> list[Connection]:
    """The entries that the conntrack tool lists for these options."""
    lines = run(["conntrack", "-L", *filters]).splitlines()
    return [found for found in map(parse_connection, lines) if found is not None]


def delete_connections(found: Iterable[Connection]) -> None:
    """Forget these entries, of TCP and UDP; that one is gone already is no fault."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        for connection in found:
            if connection.protocol not in PROTOCOLS:
                continue  # no service has its ports there
            kernel.send(deletion(connection))
            # The answer is a struct nlmsgerr behind its header: 0, or an errno below it.
            (answer,) = struct.unpack_from("=i", kernel.recv(4096), 16)
            if answer not in (0, -errno.ENOENT):
                raise KernelRefused(f"conntrack entry {connection.original}: {os.strerror(-answer)}")


def deletion(connection: Connection) -> bytes:
    """The message that asks for it: CTA_TUPLE_ORIG with CTA_TUPLE_IP and CTA_TUPLE_PROTO."""
    source, destination, sport, dport = connection.original
    addresses = attribute(1, source.packed) + attribute(2, destination.packed)
    number = attribute(1, bytes([PROTOCOLS[connection.protocol]]))
    ports = attribute(2, sport.to_bytes(2, "big")) + attribute(3, dport.to_bytes(2, "big"))
    nested = attribute(1 | NLA_F_NESTED, addresses) + attribute(2 | NLA_F_NESTED, number + ports)
    body = struct.pack("!BBH", socket.AF_INET, 0, 0) + attribute(1 | NLA_F_NESTED, nested)
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    return struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body


def attribute(kind: int, octets: bytes) -> bytes:
    """A netlink attribute, padded to four octets."""
    return struct.pack("=HH", 4 + len(octets), kind) + octets + bytes(-len(octets) % 4)
