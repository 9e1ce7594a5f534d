"""Claims on their way to the tracker: who asks, which packet waits for the answer, and until when.

Rule 1: a host (per peer: with its peer) has one claim at a time, whatever it sends meanwhile.
Rule 2: a packet that waits here gets its one verdict when it leaves. Its claim outlives it for a while: what
  is answered then is late, and known to be.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from rewriter.effects import Action, Verdict
from rewriter.holding import SECOND_NS
from rewriter.vocabulary import Key, key_of
from tracker.instant import Instant
from tracker.messages import ClaimPort

TRACKER_SILENT_NS: Final = 3 * SECOND_NS
"""So long without any answer, and claims are refused at once instead of after their own time-out."""

Claimant = tuple[str, Key]
"""The service, and who asks for it."""


def claimant_of(request: ClaimPort) -> Claimant:
    peer = None if request.peer is None else IPv4Address(request.peer)
    return request.service, key_of(IPv4Address(request.holder), peer)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A claim on its way to the tracker; `packet` None once its packet was given up."""

    request: ClaimPort
    packet: int | None
    deadline_ns: int


class Claims:
    """All that wait, by who asks."""

    def __init__(self) -> None:
        self._waiting: dict[Claimant, Waiting] = {}

    def __contains__(self, claimant: Claimant) -> bool:
        return claimant in self._waiting

    def has_packet(self, claimant: Claimant) -> bool:
        """Whether a packet of theirs waits already."""
        waiting = self._waiting.get(claimant)
        return waiting is not None and waiting.packet is not None

    def deadlines_ns(self) -> Iterator[int]:
        """When packets have waited long enough."""
        return (waiting.deadline_ns for waiting in self._waiting.values() if waiting.packet is not None)

    def add(self, request: ClaimPort, packet: int | None, deadline_ns: int) -> None:
        """It is asked from now on; `packet` waits for the answer, until then."""
        self._waiting[claimant_of(request)] = Waiting(request, packet, deadline_ns)

    def take(self, claimant: Claimant) -> Waiting | None:
        """Whoever asks has been answered, by whichever of their claims; None: nobody waits any more."""
        return self._waiting.pop(claimant, None)

    def take_refused(self, request: ClaimPort) -> Waiting | None:
        """This very claim was refused; None: it is over, or another of theirs is under way."""
        waiting = self._waiting.get(claimant_of(request))
        return self.take(claimant_of(request)) if waiting is not None and waiting.request == request else None

    def renew(self, request: ClaimPort, renewed: ClaimPort) -> bool:
        """The same claim is asked again, within the same time; False: its packet was given up."""
        claimant = claimant_of(request)
        waiting = self._waiting.get(claimant)
        if waiting is None or waiting.request != request or waiting.packet is None:
            return False
        self._waiting[claimant] = Waiting(renewed, waiting.packet, waiting.deadline_ns)
        return True

    def drop_all(self) -> Iterator[Verdict]:
        """No answer is waited for any more."""
        for waiting in self._waiting.values():
            if waiting.packet is not None:
                yield Verdict(waiting.packet, Action.DROP)
        self._waiting.clear()

    def given_up(self, now: Instant) -> Iterator[tuple[Claimant, int]]:
        """Whose packet has waited long enough; what was given up long ago is forgotten."""
        for claimant, waiting in list(self._waiting.items()):
            if waiting.packet is not None and waiting.deadline_ns <= now.monotonic_ns:
                self._waiting[claimant] = Waiting(waiting.request, None, waiting.deadline_ns)
                yield claimant, waiting.packet
            elif waiting.packet is None and waiting.deadline_ns + TRACKER_SILENT_NS <= now.monotonic_ns:
                del self._waiting[claimant]  # whatever comes now is late, and goes back
