"""Were there ever two holders at once? From what the workers saw in their kernels, not from what was decided.

Rule 1: a binding was in the kernel from its BindingInstalled to its BindingWithdrawn, by the worker's own
times and by the order in which it said so. Both must keep the bindings of a resource apart: a worker speaks
in the order in which things happen. Only where the clock was set meanwhile the order decides alone.
Rule 2: what the tracker decided (PortBound, PortUnbound) says whose a binding was, never that it was gone.
Rule 3: where nobody looked the answer is unknown, with the times and the reason.
Rule 4: the records are read once, however many; what is remembered is the present, and what was found.
Rule 5: what a record said that can't be read any more is unknown, and so is a binding of whose coming it
spoke, as long as that lasted. Reading them, and what the tables know of them: examining.py.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Event,
    PortBound,
    PortUnbound,
    Resource,
    SessionOpened,
)
from tracker.outages import QUEUE_RULES, Outage


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two bindings of one resource that were in the kernel at once, in [since_ns, until_ns).

    `by`: "times", "order", or "times and order". Where the order alone says so, the times are those of the
    two reports that contradict each other. `positions`: of the four reports, as far as there are.
    """

    resource: Resource
    first: int
    first_holder: bytes
    second: int
    second_holder: bytes
    since_ns: int
    until_ns: int
    by: str
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unobserved:
    """A time for which nobody can tell; `resource` None: for nothing of that gateway (None: of any)."""

    because: str
    gateway: str | None
    resource: Resource | None
    since_ns: int | None
    until_ns: int | None
    detail: str
    position: int | None


@dataclass(slots=True)
class Verdict:
    """What was found for [since_ns, until_ns).

    `handovers`: how often a resource was seen to go from one binding to the next, `shortest_gap_ns`: how
    long it was then seen to be in no kernel, at least.
    """

    since_ns: int
    until_ns: int
    resources: int = 0
    bindings: int = 0
    handovers: int = 0
    shortest_gap_ns: int | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    unobserved: list[Unobserved] = field(default_factory=list)

    @property
    def shown(self) -> bool:
        """Never two at once, and somebody looked all the time."""
        return not self.overlaps and not self.unobserved


@dataclass(slots=True, eq=False)
class Presence:
    """A binding in the kernel: what was said of its coming and going; positions None: it was not said."""

    binding: int
    resource: Resource
    holder: bytes
    bound_at: int
    bound_ns: int
    installed_at: int | None = None
    installed_ns: int = 0
    withdrawn_at: int | None = None
    withdrawn_ns: int = 0
    unbound_ns: int | None = None
    after: int | None = None
    """The binding that was the last of the resource to be withdrawn before this was installed."""

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(at for at in (self.installed_at, self.withdrawn_at) if at is not None)


class Examination:
    """Takes events in the order of the log; at the end `verdict` says what they show."""

    def __init__(self, since_ns: int, until_ns: int) -> None:
        self._found = Verdict(since_ns, until_ns)
        self._present: dict[int, Presence] = {}
        """Bound, and not yet said to be withdrawn."""
        self._kept: dict[Resource, list[Presence]] = {}
        """Those seen in the kernel with which what comes may still overlap."""
        self._strangers: dict[int, tuple[str, int, int]] = {}
        """Installed, but bound in no record: gateway, time and position."""
        self._resources: set[Resource] = set()
        self._steps: list[int] = []
        self._gap: Unobserved | None = None

    def take(self, position: int, wall_ns: int, event: Event) -> None:
        """The next event of the log, of whatever type."""
        self._end_of_gap(wall_ns)
        match event:
            case PortBound(binding, resource, holder):
                if binding in self._present:
                    self._doubt("bound-twice", self._present[binding], wall_ns, None, f"binding {binding}")
                self._present[binding] = Presence(binding, resource, holder, position, wall_ns)
            case BindingInstalled(gateway, _, binding, installed_ns):
                self._installed(binding, gateway, installed_ns, position)
            case BindingWithdrawn(_, _, binding, _, withdrawn_ns):
                self._withdrawn(binding, withdrawn_ns, position)
            case PortUnbound(binding):
                if binding in self._present:  # nobody saw it go
                    self._present[binding].unbound_ns = wall_ns
            case SessionOpened(gateway):
                self._swept(gateway, wall_ns)
            case ClockStepped():
                self._steps.append(position)
            case _:
                pass

    def take_unreadable(self, position: int, wall_ns: int, why: str) -> None:
        """Records that would have said something, but can't be read any more; `wall_ns`: of those before."""
        if self._gap is None:
            self._gap = Unobserved("records-gone", None, None, wall_ns, None, why, position)

    def take_end(self, position: int, binding: int, left_ns: int) -> None:
        """A binding that is present had left the kernel by then: known, though no record says it any more."""
        self._withdrawn(binding, left_ns, position)

    @property
    def present(self) -> tuple[int, ...]:
        """The bindings that are bound and not yet said to be withdrawn."""
        return tuple(self._present)

    def verdict(self, outages: Iterable[Outage], cut: Iterable[Unobserved] = ()) -> Verdict:
        """What the events show; `outages`: the times nobody looked; `cut`: what else nobody can tell."""
        found = self._found
        self._end_of_gap(None)
        for gap in cut:
            self._unknown(gap)
        for presence in self._present.values():
            if presence.unbound_ns is not None:
                self._never_gone(presence, None)
            elif presence.installed_at is None:
                self._never_there(presence, None)
            else:
                self._count(presence, found.until_ns)
                for other in self._kept[presence.resource]:
                    if other.withdrawn_at is not None or other.bound_at < presence.bound_at:
                        self._compare(*_by_order(other, presence))
        for binding in list(self._strangers):
            self._never_bound(binding, None)
        for outage in outages:
            if _is_blind(outage):
                ends = (outage.since_ns, outage.until_ns)
                detail = outage.detail or outage.worker or ""
                self._unknown(Unobserved(outage.kind, outage.gateway, None, *ends, detail, outage.position))
        found.resources = len(self._resources)
        found.unobserved.sort(key=lambda it: (it.since_ns or 0, it.position or 0))
        found.overlaps.sort(key=lambda it: (it.since_ns, it.first, it.second))
        return found

    def _end_of_gap(self, until_ns: int | None) -> None:
        if self._gap is not None:
            self._unknown(replace(self._gap, until_ns=until_ns))
            self._gap = None

    def _installed(self, binding: int, gateway: str, installed_ns: int, position: int) -> None:
        presence = self._present.get(binding)
        if presence is None:
            self._strangers[binding] = (gateway, installed_ns, position)
        elif presence.installed_at is None:
            presence.installed_at, presence.installed_ns = position, installed_ns
            kept = self._kept.setdefault(presence.resource, [])
            gone = [it for it in kept if it.withdrawn_at is not None]
            last = max(gone, key=lambda it: it.withdrawn_at or 0, default=None)
            presence.after = None if last is None else last.binding
            kept.append(presence)

    def _withdrawn(self, binding: int, withdrawn_ns: int, position: int) -> None:
        presence = self._present.pop(binding, None)
        if presence is None:
            if binding in self._strangers:
                self._never_bound(binding, withdrawn_ns)
            return
        presence.withdrawn_at, presence.withdrawn_ns = position, withdrawn_ns
        if presence.installed_at is None:
            # Never seen in the kernel, and it may have been there unseen from its grant on.
            if any(_overlap_by_order(other, presence) for other in self._kept.get(presence.resource, ())):
                self._never_there(presence, withdrawn_ns)
            return
        if withdrawn_ns < presence.installed_ns and not self._stepped(presence.bound_at, position):
            why = f"by its times binding {binding} had left the kernel before it came"
            self._doubt("times-contradict-order", presence, withdrawn_ns, presence.installed_ns, why)
        self._count(presence, withdrawn_ns)
        for other in self._kept[presence.resource]:
            if other is not presence and other.withdrawn_at is not None:
                self._compare(*_by_order(other, presence))
        self._forget(presence.resource)

    def _compare(self, first: Presence, second: Presence) -> None:
        """`first` was installed first, by the order."""
        if first.withdrawn_at is None:
            if first.unbound_ns is None:  # otherwise it is `_never_gone` anyway
                self._unaccounted(first, second)
            return
        by_order = _overlap_by_order(first, second)
        comparable = not self._stepped(first.bound_at, second.installed_at or 0)
        since_ns = max(first.installed_ns, second.installed_ns)
        until_ns = min(first.withdrawn_ns, self._gone_ns(second))
        by_times = comparable and since_ns < until_ns
        if by_order or by_times:
            by = " and ".join(word for word, so in (("times", by_times), ("order", by_order)) if so)
            if not by_times:
                since_ns, until_ns = sorted((second.installed_ns, first.withdrawn_ns))
            self._overlap(first, second, (since_ns, until_ns), by)
        elif comparable and second.installed_ns < first.withdrawn_ns:
            why = f"by its times binding {second.binding} came before {first.binding}, by the order after it"
            self._doubt("times-contradict-order", second, second.installed_ns, first.withdrawn_ns, why)
        elif (
            second.after == first.binding
            and self._found.since_ns <= second.installed_ns < self._found.until_ns
        ):
            self._handover(second.installed_ns - first.withdrawn_ns if comparable else None)

    def _handover(self, gap_ns: int | None) -> None:
        found = self._found
        found.handovers += 1
        if gap_ns is not None and (found.shortest_gap_ns is None or gap_ns < found.shortest_gap_ns):
            found.shortest_gap_ns = gap_ns

    def _gone_ns(self, presence: Presence) -> int:
        return self._found.until_ns if presence.withdrawn_at is None else presence.withdrawn_ns

    def _forget(self, resource: Resource) -> None:
        """Drops what nothing that is still to come can overlap with."""
        kept = self._kept[resource]
        there = [it.installed_at or 0 for it in kept if it.withdrawn_at is None]
        gone = [(it.withdrawn_at, it) for it in kept if it.withdrawn_at is not None]
        step = self._steps[-1] if self._steps else -1
        latest = max((it for at, it in gone if at > step), key=lambda it: it.withdrawn_ns, default=None)
        last = max(gone, key=lambda pair: pair[0])[1]
        done = {it for at, it in gone if it not in (latest, last) and not any(at > begun for begun in there)}
        self._kept[resource] = [it for it in kept if it not in done]

    def _swept(self, gateway: str, wall_ns: int) -> None:
        """A session begins by removing from the kernel what no binding speaks for."""
        for presence in list(self._present.values()):
            if presence.unbound_ns is not None and presence.resource.gateway == gateway:
                del self._present[presence.binding]
                self._never_gone(presence, wall_ns)
                if presence.installed_at is not None:
                    self._kept[presence.resource].remove(presence)

    def _never_gone(self, presence: Presence, until_ns: int | None) -> None:
        why = f"binding {presence.binding} was ended, but nobody said that it had left the kernel"
        self._doubt("never-seen-gone", presence, presence.unbound_ns, until_ns, why)

    def _never_there(self, presence: Presence, until_ns: int | None) -> None:
        why = f"binding {presence.binding} was granted, but nobody said that it was in the kernel"
        self._doubt("never-seen-there", presence, presence.bound_ns, until_ns, why)

    def _never_bound(self, binding: int, until_ns: int | None) -> None:
        gateway, since_ns, at = self._strangers.pop(binding)
        why = f"binding {binding} was put into the kernel, but no record says for whom"
        self._unknown(Unobserved("holder-not-known", gateway, None, since_ns, until_ns, why, at))

    def _unaccounted(self, first: Presence, second: Presence) -> None:
        why = f"binding {second.binding} came, but nobody said that {first.binding} had left the kernel"
        until_ns = None if second.withdrawn_at is None else second.withdrawn_ns
        self._doubt("never-seen-gone", second, second.installed_ns, until_ns, why)

    def _doubt(
        self, because: str, presence: Presence, since_ns: int | None, until_ns: int | None, why: str
    ) -> None:
        resource = presence.resource
        at = presence.bound_at if presence.installed_at is None else presence.installed_at
        self._unknown(Unobserved(because, resource.gateway, resource, since_ns, until_ns, why, at))

    def _stepped(self, after: int, before: int) -> bool:
        """Whether the clock was set between two records."""
        found = bisect_right(self._steps, after)
        return found < len(self._steps) and self._steps[found] < before

    def _count(self, presence: Presence, until_ns: int) -> None:
        if presence.installed_ns < self._found.until_ns and until_ns > self._found.since_ns:
            self._found.bindings += 1
            self._resources.add(presence.resource)

    def _overlap(self, first: Presence, second: Presence, span: tuple[int, int], by: str) -> None:
        if span[0] >= self._found.until_ns or max(span[0] + 1, span[1]) <= self._found.since_ns:
            return
        since_ns, until_ns = max(span[0], self._found.since_ns), min(span[1], self._found.until_ns)
        positions = tuple(sorted((*first.positions, *second.positions)))
        one, other = (first.binding, first.holder), (second.binding, second.holder)
        self._found.overlaps.append(Overlap(first.resource, *one, *other, since_ns, until_ns, by, positions))

    def _unknown(self, gap: Unobserved) -> None:
        found = self._found
        since_ns = found.since_ns if gap.since_ns is None else max(gap.since_ns, found.since_ns)
        until_ns = found.until_ns if gap.until_ns is None else min(gap.until_ns, found.until_ns)
        if since_ns < until_ns:
            found.unobserved.append(replace(gap, since_ns=since_ns, until_ns=until_ns))


def _by_order(one: Presence, other: Presence) -> tuple[Presence, Presence]:
    first = (one.installed_at or 0) < (other.installed_at or 0)
    return (one, other) if first else (other, one)


def _overlap_by_order(first: Presence, second: Presence) -> bool:
    """Whether each was there, or may have been, before the other was said to be gone."""
    begins = [it.bound_at if it.installed_at is None else it.installed_at for it in (first, second)]
    return all(
        it.withdrawn_at is None or other < it.withdrawn_at
        for it, other in zip((first, second), reversed(begins), strict=True)
    )


def _is_blind(outage: Outage) -> bool:
    """Whether nobody watched the kernels, or nobody could tell the log what they saw."""
    match outage.kind:
        case "kernel-state-lost":
            return outage.detail != QUEUE_RULES
        case "tracker-down":
            return outage.until_ns is None  # a past one's reports have come since, from the outboxes
        case "clock-stepped":
            return False  # the order is left, see Rule 1
        case _:
            return True
