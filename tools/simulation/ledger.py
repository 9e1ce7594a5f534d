"""What is on the disk and what was said, kept by a model of its own: the log's half of the reference.

Rule 1: it takes nothing of the code under test but the words of records and messages. Rule 2: it knows what
was committed, submitted and sent, and when, by true time; from that it says which record may be there, and
which answer may leave.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final

from eventlog.record import Record
from eventlog.store import Answer
from tools.simulation.disk import SimulatedOutbox
from tools.simulation.operator import Operator
from tools.simulation.promises import (
    ALIKE,
    BEFORE,
    EPOCHS,
    HOLES,
    KEPT,
    LEASED,
    LEASES,
    ONCE,
    STALE,
    UNIQUE,
)
from tools.simulation.site import Place, Site, Unit
from tools.simulation.world import MILLISECOND_NS, SECOND_NS, WALL_NS, Process, World
from tracker.events import (
    TRACKER,
    BindingInstalled,
    BindingWithdrawn,
    Event,
    KernelStateRestored,
    PortBound,
    PortUnbound,
    QueueOverflowed,
    RecordsMissed,
    SessionEnded,
    SessionOpened,
    TrackerStarted,
    WorkerLost,
    WorkerReturned,
    from_record,
)
from tracker.messages import (
    Acknowledged,
    ClaimGranted,
    ClaimPort,
    ClaimRefused,
    Durable,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    SessionDenied,
    SessionGranted,
    decode_body,
    decode_reply,
    decode_request,
)

POLL_GAP_NS: Final = SECOND_NS
TAKER_NS: Final = 6 * SECOND_NS
"""Who waits to take over is forgotten before."""
TOLERANCE_NS: Final = 150 * MILLISECOND_NS


_reply: Final = lru_cache(maxsize=1024)(decode_reply)
_request: Final = lru_cache(maxsize=1024)(decode_request)
"""What is sent is looked at again when it is read."""


@dataclass(slots=True)
class Bound:
    """An open binding, by the log; `disagrees_since_ns`: kernel and log differ about it since then."""

    gateway: str
    public: str
    service: str
    holder: str
    since_ns: int
    disagrees_since_ns: int | None = None


@dataclass(slots=True)
class Session:
    """A gateway's last session, by the log; `heard_ns` and the like are true time."""

    epoch: int
    worker: str
    open: bool = True
    lost: bool = False
    opened_ns: int = 0
    heard_ns: int = 0
    before_ns: int = 0

    def hear(self, now_ns: int, round_ns: int) -> None:
        """A heartbeat; what the tracker's round has decided before it, it decided without it."""
        if self.heard_ns < round_ns:
            self.before_ns = self.heard_ns
        self.heard_ns = now_ns


@dataclass(slots=True)
class Tampering:
    """Somebody changed our kernel state; `owed`: a record of it must come."""

    place: str
    at_ns: int
    owed: bool = True
    reported: bool = False


@dataclass(slots=True)
class Submitted:
    """A message that an outbox took."""

    message: Durable
    at_ns: int


@dataclass
class Ledger:
    """`lease_ns` and `idle_ns` are the setting's; `opened`: a gateway's session begins; the rest is empty."""

    world: World
    site: Site
    operator: Operator
    lease_ns: int
    idle_ns: int
    opened: Callable[[str], object] = lambda _: None
    records: int = 0
    moves: int = 0
    """Bindings that were made anew at another place."""
    clock_set: bool = False
    bindings: dict[int, Bound] = field(default_factory=dict)
    ever: dict[int, Bound] = field(default_factory=dict)
    held: dict[tuple[str, str, str], int] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    tampered: list[Tampering] = field(default_factory=list)
    overflows: dict[str, int] = field(default_factory=dict)
    submissions: dict[tuple[str, int, int], Submitted] = field(default_factory=dict)
    installer: dict[int, str] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    """Gateways whose session is at another place than the one before, and has no table there yet."""
    _answers: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _read: set[tuple[int, int]] = field(default_factory=set)
    _sources: set[tuple[str, int, int, int]] = field(default_factory=set)
    _incarnations: dict[str, list[int]] = field(default_factory=dict)
    _missed: set[tuple[str, int]] = field(default_factory=set)
    _opened_ns: dict[str, int] = field(default_factory=dict)
    _taken_ns: dict[str, int] = field(default_factory=dict)
    _ages_ns: dict[tuple[int, int], int] = field(default_factory=dict)
    _polled_ns: int = 0
    _gaps: list[tuple[int, int]] = field(default_factory=list)
    _started_ns: int = 0
    _last_poller: Process | None = None

    # --- the log -----------------------------------------------------------------------------------------

    def committed(self, records: Sequence[Record], answers: Sequence[Answer]) -> None:
        """A batch is on the disk."""
        for record in records:
            source = record.source
            key = (source.name, source.incarnation, source.sequence, source.part)
            if key in self._sources:
                self.world.fail(ONCE, f"{key}")
            self._sources.add(key)
            event = from_record(record)
            self.records += 1
            self.world.tell("log", type(event).__name__, event)
            self.operator.recorded(event)
            self._record(event, record)
            self._incarnation(source.name, source.incarnation)
        for answer in answers:
            self._incarnation(answer.name, answer.incarnation)
            self._answers.setdefault((answer.incarnation, answer.sequence), answer.reply)
        if records:
            self.compare_all()

    def appending(self, records: Sequence[Record]) -> None:
        """The tracker wants these on the disk: none of them may be there."""
        for record in records:
            source = record.source
            if (source.name, source.incarnation, source.sequence, source.part) in self._sources:
                self.world.fail(ONCE, f"the tracker appends {source} again")

    def _incarnation(self, worker: str, incarnation: int) -> None:
        if worker == TRACKER:
            return
        known = self._incarnations.setdefault(worker, [incarnation])
        if incarnation not in known:
            if (worker, known[-1]) not in self._missed:
                self.world.fail(HOLES, f"{worker} has lost its outbox {known[-1]}, and no record says so")
            known.append(incarnation)

    def renamed(self, worker: str, before: int, after: int) -> None:
        """An outbox of which nothing was ever taken has another incarnation."""
        for key in [key for key in self.submissions if key[:2] == (worker, before)]:
            self.submissions[worker, after, key[2]] = self.submissions.pop(key)

    def _record(  # noqa: C901, PLR0912 - one branch for each event
        self, event: Event, record: Record
    ) -> None:
        now_ns = self.world.now_ns
        match event:
            case TrackerStarted():
                self._started_ns, self._polled_ns = now_ns, now_ns
            case PortBound():
                self._bound(event, record)
            case PortUnbound(binding):
                self._unbound(binding)
            case SessionOpened(gateway, epoch, worker):
                before = self.sessions.get(gateway)
                if before is not None and epoch <= before.epoch:
                    self.world.fail(EPOCHS, f"{epoch} after {before.epoch}")
                if before is not None and self.site.place_of[worker] is not self.site.place_of[before.worker]:
                    self.moved.add(gateway)
                self._taken_ns.pop(gateway, None)
                heard_ns = self._opened_ns.get(worker, now_ns)
                self.sessions[gateway] = Session(epoch, worker, opened_ns=now_ns, heard_ns=heard_ns)
                self.opened(gateway)
            case SessionEnded(gateway, epoch, worker, reason):
                self.sessions[gateway].open = False
                if reason.value == "lease-ended" and not self.sessions[gateway].lost:
                    self._check_lease(gateway)
                if reason.value == "lease-ended":
                    self._check_kernel_lease(gateway, epoch)
            case WorkerLost(gateway, epoch, worker):
                self._check_lease(gateway)
                self._check_kernel_lease(gateway, epoch)
                self.sessions[gateway].lost = True
            case WorkerReturned(gateway):
                self.sessions[gateway].lost = False
            case RecordsMissed(worker, incarnation):
                self._missed.add((worker, incarnation))
                reported = sum(name == worker for name, _ in self._missed)
                if reported > self._lost_outboxes(worker):
                    self.world.fail(HOLES, f"{event}, and nothing of it is missing")
            case KernelStateRestored():
                self._restored(event, self.site.place_of[record.source.name])
            case QueueOverflowed(dropped=dropped):
                place = self.site.place_of[record.source.name].name
                self.overflows[place] = self.overflows.get(place, 0) - dropped
                if self.overflows[place] < 0:
                    self.world.fail(HOLES, f"{event}, and so many were not dropped")
            case _:
                pass

    def _lost_outboxes(self, worker: str) -> int:
        return sum(it.outboxes[worker].lost for it in self.site.gateways.values() if worker in it.outboxes)

    def _bound(self, event: PortBound, record: Record) -> None:
        resource = event.resource
        public, holder = str(IPv4Address(resource.public_address)), str(IPv4Address(event.holder))
        key = (resource.gateway, public, resource.service)
        if key in self.held:
            self.world.fail(UNIQUE, f"{event} while binding {self.held[key]} has it")
        if event.binding in self.ever:
            self.world.fail(UNIQUE, f"binding {event.binding} is given twice")
        self.held[key] = event.binding
        self.bindings[event.binding] = self.ever[event.binding] = Bound(*key, holder, self.world.now_ns)
        source = record.source
        claim = self.submissions.get((source.name, source.incarnation, source.sequence))
        if claim is None or not isinstance(claim.message, ClaimPort):
            self.world.fail(UNIQUE, f"nobody asked for {event}")
            return
        age_ns = self._ages_ns.get((source.incarnation, source.sequence), 0)
        if age_ns > claim.message.claim_timeout_ms * MILLISECOND_NS + TOLERANCE_NS and not self.clock_set:
            self.world.fail(STALE, f"{event}, asked for {age_ns / SECOND_NS:.3f} s before")
        session = self.sessions[resource.gateway]
        if session.worker != source.name or session.epoch != event.epoch:
            self.world.fail(EPOCHS, f"{source.name} of epoch {event.epoch} was given binding {event.binding}")

    def _unbound(self, binding: int) -> None:
        bound = self.bindings.pop(binding, None)
        if bound is None:
            self.world.fail(UNIQUE, f"binding {binding} ends, and is not there")
            return
        del self.held[bound.gateway, bound.public, bound.service]

    # --- leases ------------------------------------------------------------------------------------------

    def _check_lease(self, gateway: str) -> None:
        session = self.sessions[gateway]
        heard_ns = session.before_ns if session.heard_ns >= self._polled_ns else session.heard_ns
        since_ns, until_ns = max(heard_ns, self._started_ns), self._polled_ns
        away_ns = sum(max(0, min(end, until_ns) - max(begin, since_ns)) for begin, end in self._gaps)
        listened_ns = until_ns - since_ns - away_ns
        if listened_ns < self.lease_ns - POLL_GAP_NS - TOLERANCE_NS:
            self.world.fail(LEASES, f"{gateway}: only {listened_ns / SECOND_NS:.3f} s after it was heard")

    def _check_kernel_lease(self, gateway: str, epoch: int) -> None:
        """Now another host may have the address: under fence the old kernel must forward nothing any more."""
        table = self.active(gateway).kernel.tables.table
        fenced = table is not None and "lease" in table.sets and table.epoch() == epoch
        if table is not None and fenced and table.is_leased(self.world.now_ns):
            self.world.fail(
                LEASED, f"{gateway}: the tracker's lease of epoch {epoch} has ended, its is there"
            )

    def _is_taken(self, gateway: str) -> bool:
        """Whether somebody waits at another place to take over: then no heartbeat has to renew the lease."""
        taken_ns = self._taken_ns.get(gateway)
        return taken_ns is not None and self.world.now_ns - taken_ns < TAKER_NS

    def polled(self, process: Process) -> None:
        """The tracker has come back from its poll."""
        now_ns = self.world.now_ns
        if process is not self._last_poller:
            self._last_poller = process
        elif now_ns - self._polled_ns > POLL_GAP_NS:
            self._gaps.append((self._polled_ns, now_ns))
        self._polled_ns = now_ns

    # --- frames ------------------------------------------------------------------------------------------

    def heard(self, process: Process, frame: bytes) -> None:
        """A process has read a frame."""
        if process.name != TRACKER:
            reply = _reply(frame)
            self._read.add((reply.incarnation, reply.sequence))
            return
        request = _request(frame)
        match request.body:
            case Heartbeat(gateway, epoch):
                session = self.sessions.get(gateway)
                own = session is not None and (session.worker, session.epoch) == (request.worker, epoch)
                if session is not None and own and not self._is_taken(gateway):
                    session.hear(self.world.now_ns, self._polled_ns)
            case OpenSession(gateway, take_over=takes):
                self._opened_ns[request.worker] = self.world.now_ns
                if takes and self.site.place_of[request.worker] is not self.active(gateway):
                    self._taken_ns[gateway] = self.world.now_ns
            case ClaimPort():
                found = self.submissions.get((request.worker, request.incarnation, request.sequence))
                if found is not None:
                    host = self._unit(request.body.gateway, request.worker).host
                    sent_ns = request.sent_ns - WALL_NS - host.wall_error_ns
                    key = (request.incarnation, request.sequence)
                    self._ages_ns[key] = min(sent_ns - found.at_ns, self._ages_ns.get(key, sent_ns))
            case _:
                pass

    def sent(self, frame: bytes) -> None:
        """A frame leaves the tracker."""
        reply = _reply(frame)
        self.operator.sent(reply)
        key = (reply.incarnation, reply.sequence)
        match reply.body:
            case SessionGranted() | SessionDenied() | ClaimGranted() | ClaimRefused() | Acknowledged():
                first = self._answers.get(key)
                if first is None:
                    self.world.fail(BEFORE, f"{reply}")
                elif first != frame and key not in self._read:
                    self.world.fail(ALIKE, f"{reply} after {decode_reply(first)}")
                self._backed(reply.body)
            case HeartbeatAcknowledged(gateway, epoch):
                session = self.sessions[gateway]
                if session.epoch != epoch and session.opened_ns < self._polled_ns:
                    self.world.fail(EPOCHS, f"{reply} while epoch {session.epoch} is {session.worker}'s")
            case _:
                pass

    def _backed(self, body: object) -> None:
        match body:
            case ClaimGranted(view) if view.binding not in self.ever:
                self.world.fail(KEPT, f"binding {view.binding} was granted and is not in the log")
            case SessionGranted(gateway, epoch) if self.sessions.get(gateway, Session(0, "")).epoch < epoch:
                self.world.fail(KEPT, f"epoch {epoch} was granted and is not in the log")
            case _:
                pass

    def submitted(self, worker: str, outbox: SimulatedOutbox, first: int, messages: Sequence[bytes]) -> None:
        """An outbox has taken messages."""
        for sequence, data in enumerate(messages, start=first):
            message = decode_body(data)
            self.world.tell(worker, "submits", sequence, message)
            key = (worker, outbox.incarnation, sequence)
            if key in self.submissions:
                self.world.fail(ONCE, f"{worker} gives sequence {sequence} twice")
            self.submissions[key] = Submitted(message, self.world.now_ns)
            match message:
                case BindingInstalled(binding=binding):
                    self.installer[binding] = worker
                case BindingWithdrawn():
                    self.withdrawn(worker, message)
                case _:
                    pass

    # --- what others do ----------------------------------------------------------------------------------

    def tamper(self, place: str, *, owed: bool) -> None:
        """Somebody takes our kernel state away; `owed`: it will be noticed, if nothing else happens."""
        self.tampered.append(Tampering(place, self.world.now_ns, owed=owed))

    def _restored(self, event: KernelStateRestored, place: Place) -> None:
        candidates = [it for it in self.tampered if it.place == place.name]
        if not candidates:
            self.world.fail(HOLES, f"{event}, and nobody took anything away")
        if not self.clock_set:
            zero_ns = WALL_NS + place.host.wall_error_ns
            within = [
                it
                for it in candidates
                if event.lost_since_ns - SECOND_NS <= zero_ns + it.at_ns <= event.restored_ns + TOLERANCE_NS
            ]
            if not within:
                self.world.fail(HOLES, f"{event}, and nobody took anything away then")
            candidates = within
        for it in candidates:
            it.reported = True

    # --- for the other half ------------------------------------------------------------------------------

    def compare_all(self) -> None:
        """The log has changed: does the kernel still agree?"""
        raise NotImplementedError

    def withdrawn(self, worker: str, message: BindingWithdrawn) -> None:
        """A worker says that the kernel has nothing of a binding any more: is it true?"""
        raise NotImplementedError

    def active(self, gateway: str) -> Place:
        """Where it is served, by the log."""
        session = self.sessions.get(gateway)
        return (
            self.site.gateways[gateway].places[0] if session is None else self.site.place_of[session.worker]
        )

    def _unit(self, gateway: str, worker: str) -> Unit:
        return next(unit for unit in self.site.gateways[gateway].workers if unit.name == worker)

    def holder_of(self, gateway: str, public: str, service: str) -> str | None:
        """Who holds it, by the log."""
        binding = self.held.get((gateway, public, service))
        return None if binding is None else self.bindings[binding].holder
