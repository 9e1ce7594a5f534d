"""Packets in the worker's hands: taken from the queues of its epoch, numbered, and given their verdicts.

Rule 1: a packet that was taken leaves once: with its verdict, or dropped where the worker ends.
Rule 2: the queues of another epoch are listened to before its table sends anything there, and the former ones
  left only when nothing is sent to them any more.
Rule 3: where the kernel does not rewrite, what is of a call leaves translated, or not at all.
"""

from collections import Counter
from typing import Protocol

import zmq
from netfilterqueue import Packet

from rewriter import packet
from rewriter.effects import Action, Verdict
from rewriter.packet import UdpPacket
from rewriter.queues import Queue
from rewriter.vocabulary import CLAIM, HAIRPINNED, REFUSED, TALK, Ruleset


class Translate(Protocol):
    """A packet's payload as it has to go on; None where it is nobody's here."""

    def __call__(self, udp: UdpPacket, *, hairpinned: bool) -> bytes | None: ...


class Upcalls:
    """The queues "claims" and "talks". `counted`: how many packets came, by queue."""

    def __init__(self, poller: zmq.Poller, translate: Translate, *, rewrites_in_kernel: bool) -> None:
        self.counted: Counter[str] = Counter()
        self._poller = poller
        self._translate = translate
        self._rewrites_in_kernel = rewrites_in_kernel
        self._queues: dict[str, Queue] = {}
        self._former: list[Queue] = []
        self._packets: dict[int, Packet] = {}
        self._last_number = 0

    # --- queues ----------------------------------------------------------------------------------------

    @property
    def queues(self) -> dict[str, int]:
        """The numbers of those that are listened to; none before the first epoch."""
        return {name: queue.number for name, queue in self._queues.items()}

    def descriptor(self, name: str) -> int | None:
        """What the poller says to be ready; None: it is not listened to."""
        queue = self._queues.get(name)
        return None if queue is None else queue.fileno()

    def listen(self, rules: Ruleset) -> None:
        """To the queues of these rules; raises QueueBusy."""
        numbers = {"claims": rules.claim_queue, "talks": rules.talk_queue}
        if self.queues == numbers:
            return
        queues = {
            # A call's keep-alive goes on with its header rewritten, if there is somebody to rewrite it.
            name: Queue(number, passes_when_full=name == "talks" and self._rewrites_in_kernel)
            for name, number in numbers.items()
        }
        for queue in queues.values():
            self._poller.register(queue.fileno(), zmq.POLLIN)
        self._former += self._queues.values()
        self._queues = queues

    def leave_former(self) -> None:
        """The queues that were listened to before; what is still in them is dropped."""
        for queue in self._former:
            for queued in queue.receive():
                queued.drop()
            self._poller.unregister(queue.fileno())
            queue.close()
        self._former.clear()

    def close(self) -> None:
        """What waits is dropped, and the queues are nobody's: OpenContinues pass, claims are dropped."""
        for queued in self._packets.values():
            queued.drop()
        for queue in self._queues.values():
            queue.close()

    # --- packets ---------------------------------------------------------------------------------------

    def receive(self, name: str) -> list[Packet]:
        """All that have come; each has to be kept (`keep`) before the next is looked at."""
        queue = self._queues.get(name)
        arrived = [] if queue is None else queue.receive()
        self.counted[name] += len(arrived)
        return arrived

    def keep(self, queued: Packet) -> int:
        """Until its verdict; the number that this will have."""
        self._last_number += 1
        self._packets[self._last_number] = queued
        return self._last_number

    def give(self, verdict: Verdict, rules: Ruleset) -> None:
        """Raises KeyError for a packet that had its verdict."""
        queued = self._packets.pop(verdict.packet)
        mark = queued.get_mark() & ~(rules.packet_mark(CLAIM | TALK | REFUSED))
        match verdict.action:
            case Action.DROP:
                queued.drop()
                return
            case Action.REFUSE:
                queued.set_mark(mark | rules.packet_mark(REFUSED))
            case Action.ACCEPT:
                is_talk = bool(queued.get_mark() & rules.packet_mark(TALK))
                if not self._replace_payload(queued, verdict.payload, rules) and is_talk:
                    queued.drop()
                    return
                queued.set_mark(mark)
        queued.accept()

    def _replace_payload(self, queued: Packet, payload: bytes | None, rules: Ruleset) -> bool:
        """Put the payload in; a claim's packet comes without: the kernel rewrites it, or nobody but us.

        False for one that nobody can rewrite: its lengths lie, or netlink had no room for its last octets.
        """
        if payload is None and self._rewrites_in_kernel:
            return True
        udp = packet.parse(queued.get_payload())
        if udp is None:
            return self._rewrites_in_kernel
        if payload is None:
            payload = self._translate(udp, hairpinned=is_hairpinned(queued, rules))
        if payload is not None and udp.payload != payload:
            queued.set_payload(udp.with_payload(payload))
        return True


def is_hairpinned(queued: Packet, rules: Ruleset) -> bool:
    """Whether both its ends are on the LAN."""
    return bool(queued.get_mark() & rules.packet_mark(HAIRPINNED))
