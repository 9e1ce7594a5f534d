"""A binding as its worker knows it: what the kernel and the holder's own packets say of it.

Rule 1: times are monotonic nanoseconds; only `since_ns` is wall time, the tracker's, of the grant, which the
  epoch `epoch` had.
Rule 2: the idle time left is rounded down, and the look at it began before: what is learned are lower bounds.
  The highest one is nearest to the truth, and stays so when the element is gone: any packet after it would
  have kept the element.
Rule 3: whatever a host on the LAN can make grow has a bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final

from rewriter.cuseeme import CuSeeMePacket
from rewriter.vocabulary import Element
from tracker.events import Ending
from tracker.messages import BindingView

SECOND_NS: Final = 1_000_000_000
DIALLED_NS: Final = 6 * SECOND_NS
"""Clients repeat OpenContinue every 2 to 5 s: whom the holder has called so recently is a live peer."""
EXPIRY_SLACK_NS: Final = SECOND_NS
"""What vanished later than this before its time has run out; earlier, and somebody else removed it."""
NAMED_AGAIN_NS: Final = 60 * SECOND_NS
"""A holder that changes its name with each packet must fill neither outbox nor log."""
MOST_PEERS: Final = 512
"""So many peers are remembered before the dead ones are forgotten."""


@dataclass(slots=True)
class Held:
    """`packet` waits for the installation; `expires_ns`: it does not run idle before, so far as seen."""

    binding: int
    element: Element
    since_ns: int
    epoch: int
    idle_ns: int
    user_name: str | None
    packet: int | None = None
    installed: bool = False
    installed_ns: int | None = None
    seen_ns: int = 0
    expires_ns: int | None = None
    last_packet_ns: int | None = None
    named_ns: int | None = None
    hung_up: set[IPv4Address] = field(default_factory=set)
    dialled: dict[IPv4Address, int] = field(default_factory=dict)
    withdrawing: Ending | None = None

    # --- what the kernel says --------------------------------------------------------------------------

    def set_installed(self, now_ns: int) -> None:
        """The kernel has it since now, because of `packet` if that is still waiting."""
        self.installed, self.installed_ns, self.seen_ns = True, now_ns, now_ns
        self.expires_ns = now_ns + self.idle_ns
        if self.packet is not None:
            self.last_packet_ns = now_ns

    def see(self, left_s: float, now_ns: int) -> None:
        """The kernel has it, with so much of the idle time left."""
        self.seen_ns = now_ns
        expires_ns = now_ns + min(self.idle_ns, round(left_s * SECOND_NS))
        if self.expires_ns is None or expires_ns > self.expires_ns:
            self.expires_ns = expires_ns
        last_ns = self.expires_ns - self.idle_ns
        if self.installed_ns is None or last_ns > self.installed_ns:
            self.last_packet_ns = last_ns

    def set_idle(self, idle_ns: int) -> None:
        """Another idle time holds from here on; what was silent stays so for as long as it was."""
        if self.expires_ns is not None:
            self.expires_ns += idle_ns - self.idle_ns
        self.idle_ns = idle_ns

    def may_be_idle(self, now_ns: int) -> bool:
        """Whether its time can have run out in the kernel."""
        return self.expires_ns is None or now_ns >= self.expires_ns - EXPIRY_SLACK_NS

    def timed(self) -> Element:
        """Its element, with the idle time that was left when it was last seen."""
        left_s = None if self.expires_ns is None else max(0, self.expires_ns - self.seen_ns) / SECOND_NS
        return replace(self.element, left_s=left_s)

    # --- what the holder says --------------------------------------------------------------------------

    def learn(self, talk: CuSeeMePacket, peer: IPv4Address, now_ns: int) -> str | None:
        """An OpenContinue of the holder to `peer`; a name to be reported, if there is a new one."""
        if talk.is_hang_up:
            self.hung_up.add(peer)
            self.dialled.pop(peer, None)
        elif talk.is_new_call:
            self.hung_up.discard(peer)
            self.dialled[peer] = now_ns
            if len(self.dialled) > MOST_PEERS:
                self.forget_dialled(now_ns)
        name = talk.user_name
        recent = self.named_ns is not None and now_ns - self.named_ns < NAMED_AGAIN_NS
        return None if name is None or name == self.user_name or recent else name

    def set_name(self, name: str, now_ns: int) -> None:
        """The tracker is told this name."""
        self.user_name, self.named_ns = name, now_ns

    def forget_dialled(self, now_ns: int) -> None:
        """Whom the holder has not called for a while is live only if the kernel says so."""
        self.dialled = {peer: at for peer, at in self.dialled.items() if now_ns - at <= DIALLED_NS}

    def is_over(self, answering: Iterable[IPv4Address]) -> bool:
        """Whether the holder has hung up on everybody: those who answer, and those it is calling."""
        live = {*answering, *self.dialled}
        if len(self.hung_up) > MOST_PEERS:
            self.hung_up &= live
        return not live - self.hung_up


def held_from(view: BindingView, idle_ns: int, packet: int | None = None) -> Held:
    """A binding as the tracker gave it; `packet` waits for its installation."""
    resource = view.resource
    peer = None if resource.peer is None else IPv4Address(resource.peer)
    holder, public = IPv4Address(view.holder), IPv4Address(resource.public_address)
    element = Element(resource.service, holder, public, peer=peer)
    return Held(view.binding, element, view.since_ns, view.epoch, idle_ns, view.user_name, packet)
