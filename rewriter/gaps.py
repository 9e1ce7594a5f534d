"""What the worker could not see, keep or guard: gaps that the log has to be told of.

Rule 1: a gap begins when all was last seen to be well, not when it was found, and never ends before it began:
  the clock may have been put back.
Rule 2: while nobody can be told, gaps are kept or added up, within bounds: a flood must not fill the outbox.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from rewriter.effects import Submit
from tracker.events import KernelStateRestored, OutboxFilled, QueueOverflowed
from tracker.instant import Instant

HOLES_KEPT: Final = 100
"""So many holes are remembered while there is no session to report them in."""


class Gaps:
    """Of one gateway. `epoch` is the session's in which it can be said; None where there is none."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._seen_good_ns: int | None = None  # wall time when the kernel was last as it should be
        self._holes: list[tuple[str, int, int]] = []  # (what, since, until): no session to report them in
        self._dropped: dict[str, int] = {}
        self._unsaid_drops: dict[str, int] = {}
        self._no_room_since_ns: int | None = None  # when the outbox last had none for claims
        self._refused_for_room = 0

    # --- holes in the kernel's state -------------------------------------------------------------------

    def see_good(self, now: Instant) -> None:
        """The kernel is as it should be."""
        self._seen_good_ns = now.wall_ns

    def restored(self, epoch: int | None, what: str, now: Instant) -> Iterator[Submit]:
        """It is so again, after `what` was missing."""
        since_ns = self._seen_good_ns if self._seen_good_ns is not None else now.wall_ns
        self._seen_good_ns = now.wall_ns
        if epoch is not None:
            yield self._hole(epoch, what, since_ns, now.wall_ns)
        else:
            self._holes = [*self._holes[1 - HOLES_KEPT :], (what, since_ns, now.wall_ns)]

    def begin_session(self, epoch: int, now: Instant, *, new_queues: bool) -> Iterator[Submit]:
        """The kernel has this epoch's table: what was kept is said."""
        self._seen_good_ns = now.wall_ns
        if new_queues:
            self._dropped = {}
        for what, since_ns, until_ns in self._holes:
            yield self._hole(epoch, what, since_ns, until_ns)
        self._holes.clear()

    def _hole(self, epoch: int, what: str, since_ns: int, until_ns: int) -> Submit:
        return Submit(KernelStateRestored(self._gateway, epoch, what, min(since_ns, until_ns), until_ns))

    # --- full queues -----------------------------------------------------------------------------------

    def see_dropped(
        self, epoch: int, dropped: Mapping[str, int], now: Instant, *, unheard: bool
    ) -> Iterator[Submit]:
        """How many packets each queue has lost so far; `unheard`: the tracker does not answer."""
        for queue, lost in dropped.items():
            more = max(0, lost - self._dropped.get(queue, 0))
            self._dropped[queue] = lost
            self._unsaid_drops[queue] = self._unsaid_drops.get(queue, 0) + more
        if unheard:
            return
        for queue, more in self._unsaid_drops.items():
            if more > 0:
                yield Submit(QueueOverflowed(self._gateway, epoch, queue, more, now.wall_ns))
        self._unsaid_drops.clear()

    # --- a full outbox ---------------------------------------------------------------------------------

    @property
    def is_outbox_full(self) -> bool:
        return self._no_room_since_ns is not None

    def refuse_for_room(self) -> None:
        """A claim found none in the outbox."""
        self._refused_for_room += 1

    def see_outbox(self, epoch: int | None, now: Instant, *, room: bool, drained: bool) -> Iterator[Submit]:
        """Whether it takes claims, and whether it is far from full."""
        if not room and self._no_room_since_ns is None:
            self._no_room_since_ns, self._refused_for_room = now.wall_ns, 0
        elif drained and self._no_room_since_ns is not None and epoch is not None:
            since_ns = min(self._no_room_since_ns, now.wall_ns)
            refused, self._no_room_since_ns = self._refused_for_room, None
            yield Submit(OutboxFilled(self._gateway, epoch, since_ns, refused, now.wall_ns))
