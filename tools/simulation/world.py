"""Time, hosts and processes of a simulation: one thing happens at a time, and always in the same order.

Rule 1: simulated time passes only here; nothing asks the real clock. Rule 2: a process is a greenlet: it runs
while everything else stands still, from one system call to the next, so the code in it is the real one, its
loop included. Rule 3: whatever a real process can suffer between two system calls (killed, stopped,
simply slow) can happen at each `Process.call`. Rule 4: all chance comes from streams named after their use
and seeded with the run's seed, so that a change in one place leaves the others' chance alone.
"""

import heapq
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final, TypeVar

from greenlet import greenlet

from tracker.instant import Instant

SECOND_NS: Final = 1_000_000_000
MILLISECOND_NS: Final = 1_000_000
MILLION: Final = 1_000_000
WALL_NS: Final = 1_700_000_000 * SECOND_NS
"""What a right wall clock shows when a run begins."""

Found = TypeVar("Found")


class Killed(BaseException):
    """Kill -9: unwinds the process; no system call works on the way."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a run has found to be wrong: which promise, when, and how."""

    promise: str
    at_ns: int
    detail: str

    def __str__(self) -> str:
        return f"{self.promise}, at {self.at_ns / SECOND_NS:.6f} s: {self.detail}"


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of the story: when, who, what."""

    at_ns: int
    who: str
    what: str
    details: tuple[object, ...]

    def __str__(self) -> str:
        said = " ".join(str(detail) for detail in self.details)
        return f"{self.at_ns / SECOND_NS:11.6f}  {self.who:10}  {self.what} {said}".rstrip()


class World:
    """The queue of what is going to happen."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.limit_ns = 0
        self.running: Process | None = None
        self.fault: Fault | None = None
        self.story: list[Moment] = []
        self.steps = 0
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._order = count()
        self._streams: dict[str, random.Random] = {}

    def chance(self, use: str) -> random.Random:
        """The stream of chance for one use."""
        if use not in self._streams:
            self._streams[use] = random.Random(f"{self.seed}/{use}")  # noqa: S311 - a simulation's chance
        return self._streams[use]

    def at(self, at_ns: int, action: Callable[[], object]) -> None:
        heapq.heappush(self._events, (max(at_ns, self.now_ns), next(self._order), action))

    def after(self, delay_ns: int, action: Callable[[], object]) -> None:
        self.at(self.now_ns + delay_ns, action)

    def nothing_before(self, at_ns: int) -> bool:
        """Whether time can go on to there with nothing else happening."""
        return at_ns <= self.limit_ns and (not self._events or self._events[0][0] > at_ns)

    def run(self, until_ns: int) -> None:
        """Everything up to then, or up to the first fault."""
        self.limit_ns = until_ns
        while self._events and self._events[0][0] <= until_ns and self.fault is None:
            self.now_ns, _, action = heapq.heappop(self._events)
            self.steps += 1
            action()
        if self.fault is None:
            self.now_ns = until_ns

    def tell(self, who: str, what: str, *details: object) -> None:
        """Add a line to the story."""
        self.story.append(Moment(self.now_ns, who, what, details))

    def fail(self, promise: str, detail: str) -> None:
        """A promise is broken; the first one counts."""
        if self.fault is None:
            self.fault = Fault(promise, self.now_ns, detail)
            self.tell("reference", promise, detail)

    @property
    def process(self) -> "Process":
        """Who makes the present system call."""
        if self.running is None:
            raise RuntimeError("a system call outside of any process")
        return self.running


@dataclass(eq=False)
class Host:
    """A machine: its wall clock may be wrong and set, its monotonic one begins with its boot.

    `rate_ppm`: so much faster both run than true time does.
    """

    world: World
    name: str
    wall_error_ns: int = 0
    rate_ppm: int = 0
    booted_ns: int = -5_000 * SECOND_NS
    boots: int = 1

    def clock(self) -> Instant:
        now_ns = self.world.now_ns
        since_ns = now_ns - self.booted_ns
        if not self.rate_ppm:
            return Instant(WALL_NS + now_ns + self.wall_error_ns, since_ns)
        wall_ns = WALL_NS + now_ns + now_ns * self.rate_ppm // MILLION + self.wall_error_ns
        return Instant(wall_ns, since_ns + since_ns * self.rate_ppm // MILLION)

    def lasting_ns(self, duration_ns: int) -> int:
        """How long it takes in true time until so much has passed here."""
        return duration_ns * MILLION // (MILLION + self.rate_ppm)

    def reboot(self) -> None:
        """The monotonic clock begins anew."""
        self.booted_ns = self.world.now_ns - SECOND_NS
        self.boots += 1


@dataclass(slots=True)
class Blow:
    """What befalls a process at its `calls`-th system call from now; `stop_ns` None: it is killed."""

    calls: int
    stop_ns: int | None


@dataclass(eq=False)
class Process:
    """A real loop on simulated system calls. `files`: what its descriptors stand for."""

    world: World
    host: Host
    name: str
    main: Callable[[], None]
    ended: Callable[["Process"], None]
    error: BaseException | None = None
    alive: bool = True
    stopped: bool = False
    stop_requested: bool = False
    died: list[Callable[[], object]] = field(default_factory=list)
    files: dict[int, Hashable] = field(default_factory=dict)
    polled: Callable[[], object] = lambda: None
    stopped_ns: int = 0
    went_on_ns: int = -SECOND_NS
    ambush: Blow | None = None
    _killed: bool = False
    _blow: Blow | None = None
    _token: int = 0
    _waiting: bool = False
    _missed: bool = False

    def start(self) -> None:
        """Begin, within the present event."""
        self._flow = greenlet(self._body)
        self._resume()

    # --- from outside ------------------------------------------------------------------------------------

    def strike(self, blow: Blow) -> None:
        """Let it be killed or stopped at a system call to come; a call is never long in coming."""
        if self.alive:
            self._blow = blow
            self.notify()

    def kill(self) -> None:
        """Kill -9, now; never from within itself."""
        if self.alive:
            self._killed = True
            self._resume()

    def stop(self, for_ns: int) -> None:
        """SIGSTOP, and SIGCONT after that time."""
        if self.alive and not self.stopped:
            self.world.tell(self.name, "stopped for", f"{for_ns / SECOND_NS:.3f} s")
            self.stopped = True
            self.stopped_ns = self.world.now_ns
            self.world.after(for_ns, self.go_on)

    def go_on(self) -> None:
        """SIGCONT."""
        if self.alive and self.stopped:
            self.world.tell(self.name, "goes on")
            self.stopped, self.went_on_ns = False, self.world.now_ns
            if self._missed:
                self._missed = False
                self.world.after(0, partial(self._due, self._token))

    def request_stop(self) -> None:
        """SIGTERM."""
        self.stop_requested = True
        self.notify()

    def notify(self) -> None:
        """Something has come that it may be waiting for."""
        if self._waiting:
            self.world.after(0, partial(self._due, self._token))

    # --- from within, that is: system calls --------------------------------------------------------------

    def call(self, spend_ns: int = 0) -> None:
        """Enter or leave a system call, which takes so long; here a process can die or be stopped."""
        if self._killed:
            raise Killed
        if self._blow is not None:
            self._blow.calls -= 1
            if self._blow.calls <= 0:
                self._suffer()
        if spend_ns:
            self._sleep(self.world.now_ns + spend_ns, None)

    def wait(self, ready: Callable[[], Found], until_ns: int) -> Found:
        """Until something is ready or the time has come; `ready` gives something that is true, or not."""
        self.call()
        self._sleep(until_ns, ready)
        return ready()

    def _suffer(self) -> None:
        blow, self._blow = self._blow, None
        if blow is None or blow.stop_ns is None:
            self._killed = True
            raise Killed
        self.stop(blow.stop_ns)
        self._missed = True
        self._pause()

    def _sleep(self, until_ns: int, ready: Callable[[], object] | None) -> None:
        while self.world.now_ns < until_ns and not (ready is not None and ready()):
            if self._blow is not None and ready is not None:
                self.call()
                if self.world.now_ns >= until_ns:
                    return
            if self.world.nothing_before(until_ns) and not self.stopped:
                self.world.now_ns = until_ns
                return
            self.world.at(until_ns, partial(self._due, self._token))
            self._waiting = ready is not None
            self._pause()

    def _pause(self) -> None:
        if self._flow.parent is None:
            raise RuntimeError("a process without a world")
        self._flow.parent.switch()
        self._token += 1
        self._waiting = False
        if self._killed:
            raise Killed

    # --- the code in it -----------------------------------------------------------------------------------

    def _due(self, token: int) -> None:
        if token != self._token or not self.alive:
            return
        if self.stopped:
            self._missed = True
        else:
            self._resume()

    def _resume(self) -> None:
        world = self.world
        world.running = self
        self._flow.switch()
        world.running = None
        if not self.alive:
            for action in self.died:
                action()
            self.ended(self)

    def _body(self) -> None:
        try:
            self.main()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever ends a process is the supervisor's to judge
            self.error = error
        finally:
            self.alive = False
