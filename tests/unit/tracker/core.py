"""The tracker's core and its log in one, for the tests of what it decides."""

import copy
from collections.abc import Sequence

from tests.unit.tracker.wire import (
    at,
)
from tracker.events import (
    BindingWithdrawn,
    Ending,
    Event,
)
from tracker.instant import Instant
from tracker.messages import (
    Durable,
    Heartbeat,
    ReplyBody,
)
from tracker.ownership import (
    Command,
    FromWorker,
    decide,
)
from tracker.transitions import State, apply, apply_unlogged

LEASE_MS = 10_000


class World:
    """A tracker's core and its log, as one list of events."""

    def __init__(self) -> None:
        self.state = State(lease_ms=LEASE_MS)
        self.log: list[tuple[int, Event]] = []

    def __call__(self, command: Command, now: Instant) -> tuple[Sequence[Event], ReplyBody | None]:
        before = copy.deepcopy(self.state)
        decision = decide(self.state, command, now)
        assert self.state == before, "decide changed the state"
        for event in decision.events:
            apply(self.state, event, now.wall_ns)
            self.log.append((now.wall_ns, event))
        for change in decision.unlogged:
            apply_unlogged(self.state, change)
        return decision.events, decision.reply

    def say(
        self, body: Durable | Heartbeat, seconds: float = 0, *, worker: str = "w1", age_ms: int = 0
    ) -> tuple[Sequence[Event], ReplyBody | None]:
        return self(FromWorker(worker, body, age_ms), at(seconds))

    def replayed(self) -> State:
        state = State(lease_ms=LEASE_MS)
        for wall_ns, event in self.log:
            apply(state, event, wall_ns)
        return state


def withdrawn(binding: int = 1, epoch: int = 1, reason: Ending = Ending.IDLE) -> BindingWithdrawn:
    return BindingWithdrawn("gw", epoch, binding, reason, at(5).wall_ns, None, 3, 400, 2)
