"""A tracker whose log is memory and a kernel of dictionaries: what the gateway's machine is tried against.

Rule: what the tracker decides is decided by its real core; what the kernel does is as simple as can be.
"""

from ipaddress import IPv4Address

from rewriter.effects import (
    KernelView,
)
from rewriter.vocabulary import Element
from rewriter.vocabulary import Key as HolderKey
from tests.unit.rewriter.playbook import (
    IDLE_S,
    SECOND_NS,
    moment,
)
from tracker.messages import (
    ReplyBody,
)
from tracker.ownership import Command, Start, decide
from tracker.transitions import State, apply, apply_unlogged

IDLE_NS = round(IDLE_S * SECOND_NS)
Key = tuple[str, HolderKey]


class Tracker:
    """The real core, with a log in memory. What it says is kept by sequence, as the real one keeps it."""

    def __init__(self) -> None:
        self.state = State(lease_ms=10_000)
        self.say(Start("1", "boot", None), 0)

    def say(self, command: Command, seconds: float) -> ReplyBody | None:
        now = moment(seconds)
        decision = decide(self.state, command, now)
        for event in decision.events:
            apply(self.state, event, now.wall_ns)
        for change in decision.unlogged:
            apply_unlogged(self.state, change)
        return decision.reply

    def open_elements(self) -> dict[int, Element]:
        return {
            number: Element(
                binding.bound.resource.service,
                IPv4Address(binding.bound.holder),
                IPv4Address(binding.bound.resource.public_address),
            )
            for number, binding in self.state.bindings.items()
        }


class Kernel:
    """Holders with their time, and both maps; `strays` are put there by the test."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.queueing = False
        self.holders: dict[Key, int] = {}
        self.inbound: dict[Key, IPv4Address] = {}
        self.outbound: dict[Key, IPv4Address] = {}
        self.strays: set[Key] = set()

    def flush(self) -> None:
        self.epoch, self.queueing = None, False
        for elements in (self.holders, self.inbound, self.outbound):
            elements.clear()
        self.strays.clear()

    def expire(self, now_ns: int) -> None:
        for key in [key for key, expires_ns in self.holders.items() if expires_ns <= now_ns]:
            del self.holders[key]
            public = self.outbound.get(key)
            if public is not None and self.inbound.get((key[0], public)) == key[1]:
                del self.inbound[key[0], public]

    def add(self, element: Element, now_ns: int) -> None:
        left_ns = IDLE_NS if element.left_s is None else round(element.left_s * SECOND_NS)
        key = (element.service, element.holder)
        self.holders[key] = now_ns + left_ns
        self.inbound[element.service, element.public] = element.holder
        self.outbound[key] = element.public
        self.strays.discard(key)

    def remove(self, service: str, host: HolderKey) -> None:
        self.holders.pop((service, host), None)
        self.outbound.pop((service, host), None)
        for key in [key for key, to in self.inbound.items() if key[0] == service and to == host]:
            del self.inbound[key]
        self.strays.discard((service, host))

    def view(self, public: IPv4Address | None, now_ns: int) -> KernelView:
        left = {key: float((expires_ns - now_ns) // SECOND_NS) for key, expires_ns in self.holders.items()}
        return KernelView(self.epoch, left, dict(self.inbound), dict(self.outbound), self.queueing, public)
