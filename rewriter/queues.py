"""NFQUEUE: packets that the kernel keeps until their verdict, and how many it could not keep.

Rule 1: a packet is asked for whole, and read with room for the longest: what is cut is never judged.
Rule 2: a queue has one reader. That another process reads it is `QueueBusy`, never a queue shared.
"""

import os
import socket
import struct
from pathlib import Path

import netfilterqueue

from rewriter.command import KernelRefused

QUEUE_STATISTICS = Path("/proc/net/netfilter/nfnetlink_queue")
QUEUE_LENGTH = 4096  # packets
LONGEST_MESSAGE = 1 << 17  # bytes: a packet of 64 KiB, and what netlink says of it


class QueueBusy(Exception):
    """Another process reads this queue, or this process may not."""


class Queue:
    """One NFQUEUE: packets are kept until their verdict.

    `passes_when_full`: what finds no room goes on as it is; else the kernel drops it.
    """

    def __init__(self, number: int, length: int = QUEUE_LENGTH, *, passes_when_full: bool = False) -> None:
        self.number = number
        self._arrived: list[netfilterqueue.Packet] = []
        self._queue = netfilterqueue.NetfilterQueue()
        try:
            self._queue.bind(number, self._keep, max_len=length, sock_len=4 * 1024 * 1024)
        except OSError as error:
            raise QueueBusy(f"queue {number}: {error}") from error
        self._socket = QueueSocket(fileno=os.dup(self._queue.get_fd()))
        self._socket.send(copy_whole_packets(number))
        if passes_when_full:
            self._socket.send(pass_when_full(number))

    def _keep(self, packet: netfilterqueue.Packet) -> None:
        packet.retain()
        self._arrived.append(packet)

    def fileno(self) -> int:
        return int(self._queue.get_fd())

    def receive(self) -> list[netfilterqueue.Packet]:
        """All packets that have come; never blocks."""
        self._queue.run_socket(self._socket)
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Stop listening: the kernel drops what still waits here."""
        self._queue.unbind()
        self._socket.close()


class QueueSocket(socket.socket):
    """A queue's netlink socket, read without blocking and with room for the longest packet.

    netfilterqueue's own buffer has 4096 bytes. What is cut there is no message any more: the packet would
    stay in the kernel's queue for ever, without a verdict, and enough of them would stop everybody's.
    """

    def recv(self, _bufsize: int, _flags: int = 0) -> bytes:
        return super().recv(LONGEST_MESSAGE, socket.MSG_DONTWAIT)


def copy_whole_packets(number: int) -> bytes:
    """NFQA_CFG_PARAMS: netfilterqueue itself asks for 4016 bytes of a packet (nfnetlink_queue.h)."""
    # The attribute's last octet: NFQNL_COPY_PACKET.
    return configure_queue(number, struct.pack("=HH", 9, 2) + struct.pack("!IBxxx", 0xFFFF, 2))


def pass_when_full(number: int) -> bytes:
    """NFQA_CFG_MASK and NFQA_CFG_FLAGS: NFQA_CFG_F_FAIL_OPEN (nfnetlink_queue.h)."""
    words = [struct.pack("=HH", 8, kind) + struct.pack("!I", 1) for kind in (4, 5)]
    return configure_queue(number, b"".join(words))


def configure_queue(number: int, attributes: bytes) -> bytes:
    """A message of NFNL_SUBSYS_QUEUE and NFQNL_MSG_CONFIG, NLM_F_REQUEST."""
    header = struct.pack("=IHHII", 20 + len(attributes), 3 << 8 | 2, 1, 0, 0)
    return header + struct.pack("!BBH", socket.AF_UNSPEC, 0, number) + attributes


def queue_lengths() -> dict[int, int]:
    """Packets that wait for us, by queue number (nfnetlink_queue_core.c, seq_show)."""
    try:
        lines = QUEUE_STATISTICS.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(line.split()[0]): int(line.split()[2]) for line in lines}


def queue_drops() -> dict[int, int]:
    """Packets lost per queue number because it was full or its socket was (nfnetlink_queue_core.c)."""
    try:
        lines = QUEUE_STATISTICS.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        # Going on would mean to lose packets without ever knowing it.
        raise KernelRefused(
            f"{QUEUE_STATISTICS} may not be read by this user: it is of group root,"
            " so the rewriter has to be, too (systemd: SupplementaryGroups=root)"
        ) from error
    fields = [[int(field) for field in line.split()] for line in lines]
    return {field[0]: field[5] + field[6] for field in fields if len(field) >= 8}
