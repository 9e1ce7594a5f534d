"""The tracker without its socket and its disk: frames in; records, answers and frames out.

Rule 1: the same frames at the same times give the same bytes (chance comes in as `nonce`). Rule 2: what
`take` gives is one batch: its records and answers are appended before one of its frames is sent; if the
append fails, this machine's state is a lie and must go. Rule 3: the messages of a worker are decided in the
order of their sequence, each once; a repeat gets the bytes of the first answer. Rule 4: what can never come
any more is said in a record (RecordsMissed), what may still come is asked for (ResendFrom). Rule 5: frames
that are no messages are counted and dropped, whatever is in them. Rule 6: every worker that is heard gets
each checkpoint; who signs it and keeps it is not known here. Rule 7: what its caller may not say (roles.py)
changes nothing but a counter.

Longer than other modules: sequences, answers, readers and the batch are one state, and a frame may touch all.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from eventlog.record import Record, Source
from eventlog.snapshot import Snapshot, snapshot_fields
from tracker import image, messages, ownership, transitions
from tracker.events import (
    TRACKER,
    BindingWithdrawn,
    Event,
    KeyChanged,
    PortUnbound,
    RecordsMissed,
    SnapshotTaken,
    to_record,
)
from tracker.feed import GetState, Read, Readers, ReadFeed, state_parts
from tracker.image import Memory
from tracker.instant import Instant
from tracker.messages import (
    BINDINGS_LIMIT,
    Acknowledged,
    CheckpointMade,
    ClaimGranted,
    ClaimRefused,
    FindPort,
    GetCheckpoint,
    GetStatus,
    Heartbeat,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    OutboxSuperseded,
    Place,
    PortFound,
    Protection,
    Reply,
    ReplyBody,
    Request,
    ResendFrom,
    RestrictionView,
    SessionView,
    Status,
    Volatile,
    WithdrawalView,
    decode_request,
    encode_reply,
)
from tracker.orders import Order, ReleaseBinding, RevokeBinding, Withdrawing, Withdrawn
from tracker.ownership import Command, FromOperator, FromWorker, PassTime, Start, Stop, WasAway
from tracker.roles import Caller, refusal
from tracker.shapes import ProtocolError, unpack
from tracker.transitions import Decision, State

Peer = Hashable
"""Where a frame came from, and its answer goes to."""

_COUNTED: Final[dict[type, str]] = {
    ClaimGranted: "claims granted",
    ClaimRefused: "claims refused",
    Acknowledged: "reports acknowledged",
}


@dataclass(slots=True)
class Heard:
    """The last message taken of a worker; `told_ns`: not later than when it was submitted."""

    incarnation: int
    sequence: int
    told_ns: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The first answer to a message: kept, so that a repeat gets it again."""

    worker: str
    incarnation: int
    sequence: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """The worker has the answers up to `through`; they may be forgotten."""

    worker: str
    incarnation: int
    through: int


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint: the note, over how many records it is, and when it was made (wall time)."""

    note: bytes
    size: int
    made_ns: int


@dataclass(slots=True)
class Batch:
    """What is appended together, and what is sent once it is there; `events` are what the records say."""

    records: list[Record] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    frames: list[tuple[Peer, bytes]] = field(default_factory=list)

    @property
    def durable(self) -> bool:
        """Whether there is something that must be on the disk before the frames go out."""
        return bool(self.records or self.answers)


def no_proof(_old_size: int, _size: int) -> Sequence[bytes]:
    """Of a machine without a log, which has no checkpoints either."""
    return ()


class Machine:
    """Drive it with `recover`, `start`, then `receive`, `pass_time` and `take`; at last `stop`.

    `key`: the public key whose private half signs the log, if any does; then tell it of each checkpoint.
    `consistency`: RFC 6962's proof between two sizes of the log.
    """

    def __init__(
        self,
        state: State,
        *,
        version: str,
        nonce: Callable[[], bytes],
        stored_answer: Callable[[str, int, int], bytes | None],
        key: str | None = None,
        consistency: Callable[[int, int], Sequence[bytes]] = no_proof,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._memory = Memory(state)
        self._version = version
        self._nonce = nonce
        self._stored_answer = stored_answer
        self._key = key
        self._consistency = consistency
        self._checkpoint: Signed | None = None
        self._ordering: list[tuple[Peer, Request]] = []
        self._readers = Readers()
        self._ending: dict[int, dict[Peer, Request]] = {}  # binding → who waits for its end
        self._orders: list[tuple[str, messages.WithdrawBinding]] = []
        self._peers: dict[str, tuple[Peer, int]] = {}
        self._heard: dict[str, Heard] = {}
        self._batch = Batch()
        self._answers: dict[tuple[str, int, int], bytes] = {}
        self._own_sequence = 0
        self._size = 0
        self._started_ns = 0
        self._now: Instant | None = None

    @property
    def state(self) -> State:
        """What its decisions depend on."""
        return self._memory.state

    def recover(
        self,
        records: Iterable[Record],
        latest: Iterable[tuple[str, int, int]],
        snapshot: Snapshot | None = None,
    ) -> Self:
        """Folds the log, and goes on after `latest`: each worker's name, incarnation and last sequence.

        With a snapshot, `records` are those behind it. ProtocolError: it has no state that we know.
        """
        if snapshot is not None:
            self._memory = image.decoded(snapshot.state, lease_ms=self.state.lease_ms)
            self._size = snapshot.size
        for record in records:
            self._memory.take_in(record)
            self._size += 1
        for name, incarnation, sequence in latest:
            self._heard[name] = Heard(incarnation, sequence, self._memory.told_ns.get(name, 0))
        return self

    def start(
        self, now: Instant, boot: str, previous_alive_ns: int | None, endorsement: bytes | None = None
    ) -> None:
        """The tracker's first word. Leases begin anew.

        `endorsement`: what the key that has signed the log so far says of the new one.
        """
        self._started_ns = now.wall_ns
        self._now = now
        news = None if self._key in (None, self.state.key) else KeyChanged(str(self._key), endorsement)
        self._decide_own(Start(self._version, boot, previous_alive_ns, news), now)

    def stop(self, now: Instant) -> None:
        """Its last one."""
        self._decide_own(Stop(), now)

    def pass_time(self, now: Instant) -> None:
        """Whatever time alone brings about."""
        self._now = now
        self._decide_own(PassTime(), now)

    def was_away(self, away_ns: int, now: Instant) -> None:
        """Nobody was listened to for so long: what came meanwhile has yet to be heard."""
        self._decide_own(WasAway(away_ns), now)

    def snapshot(self, now: Instant, root: bytes) -> Snapshot:
        """A snapshot of the state that the appended records give, `root` being their tree's.

        Right after `take` and the append; its record is the next batch, which is appended with it.
        """
        if self._batch.records:
            raise RuntimeError("a snapshot of what is not appended yet")
        snapshot = Snapshot(image.NAME, image.VERSION, self._size, image.encoded(self._memory))
        said = unpack(SnapshotTaken, snapshot_fields(snapshot, root))
        transitions.apply(self.state, said, now.wall_ns)
        self._log((said,), TRACKER, self.state.run, self._next_own(), now)
        return snapshot

    @property
    def checkpoint_ordered(self) -> bool:
        """Whether somebody waits for a checkpoint over all that is appended."""
        return bool(self._ordering)

    def checkpoint_made(self, signed: Signed) -> None:
        """The latest checkpoint: to those who ordered it and, if it is new, to every worker."""
        before, self._checkpoint = self._checkpoint, signed
        for peer, request in self._ordering:
            self._send(peer, request, self._checkpoint_since(0))
        self._ordering.clear()
        if before != signed:
            news = self._checkpoint_since(0 if before is None else before.size)
            for peer, incarnation in self._peers.values():
                self._tell(peer, incarnation, news)

    def next_deadline(self) -> int | None:
        """When `pass_time` is due, by the monotonic clock."""
        return ownership.next_deadline(self.state)

    def feed(self, size: int, read: Read) -> bool:
        """Right after an append, when the log has `size` records: what the readers get of it.

        Whether somebody has room for more of what there is: call again.
        """
        for peer, number, told in self._readers.serve(size, read):
            self._tell(peer, number, told)
        return self._readers.is_behind(size)

    def take(self) -> Batch:
        """The batch since the last time; see Rule 2."""
        batch, self._batch = self._batch, Batch()
        self._answers.clear()
        return batch

    def receive(self, peer: Peer, frame: bytes, now: Instant, caller: Caller) -> None:
        """Takes a frame of `caller`, whose answers go to `peer`."""
        if now != self._now:
            self.pass_time(now)
        try:
            request = decode_request(frame)
        except ProtocolError as error:
            self.drop(error)
            return
        if (refused := refusal(caller, request)) is not None:
            self.counters[f"refused: {refused.objection}"] += 1
            self._send(peer, request, NotAllowed(refused.reason))
            return
        if not self._answered_at_once(peer, request, now, caller):
            self._from_worker(peer, request, now)
        self._give_orders()

    def _answered_at_once(self, peer: Peer, request: Request, now: Instant, caller: Caller) -> bool:
        """Whether it was a question or an order, which needs no place in an order."""
        match request.body:
            case GetStatus():
                self._send(peer, request, self._status(now))
            case GetCheckpoint(size):
                self._send(peer, request, self._checkpoint_since(size))
            case MakeCheckpoint() if self._key is None:
                self._send(peer, request, self._checkpoint_since(0))
            case MakeCheckpoint():
                self._ordering.append((peer, request))
            case ReadFeed():
                refused = self._readers.ask(peer, request.incarnation, request.body, now)
                if refused is not None:
                    self._send(peer, request, refused)
            case GetState():
                for part in state_parts(self._size, image.encoded(self._memory)):
                    self._send(peer, request, part)
            case FindPort():
                self._send(peer, request, self._find_port(request.body))
            case body if isinstance(body, Order):
                self._order(peer, request, body, caller, now)
            case _:
                return False
        return True

    def _order(self, peer: Peer, request: Request, order: Order, caller: Caller, now: Instant) -> None:
        ended = order.binding if isinstance(order, ReleaseBinding | RevokeBinding) else None
        again = ended is not None and peer in self._ending.get(ended, {})
        decision = self._decide(FromOperator(_operator(caller, request), order, again), now)
        if decision.events:
            self._log(decision.events, TRACKER, self.state.run, self._next_own(), now)
        self._reply(peer, request, decision)
        if isinstance(decision.reply, Withdrawing):
            self._ending.setdefault(decision.reply.binding, {})[peer] = request

    def _give_orders(self) -> None:
        """To the workers, as far as they have been heard; the others hear of them with their heartbeat."""
        for worker, order in self._orders:
            if worker in self._peers:
                self._tell(*self._peers[worker], order)
        self._orders.clear()

    def _tell_ended(self, events: Iterable[Event]) -> None:
        """Operators wait for the end of the bindings that they have ended."""
        withdrawn_ns = None
        for event in events:
            if isinstance(event, BindingWithdrawn):
                withdrawn_ns = event.withdrawn_ns
            elif isinstance(event, PortUnbound):
                for peer, request in self._ending.pop(event.binding, {}).items():
                    self._send(peer, request, Withdrawn(event.binding, event.reason, withdrawn_ns))

    def _from_worker(self, peer: Peer, request: Request, now: Instant) -> None:
        heard = self._heard.get(request.worker)
        if heard is not None and request.incarnation < heard.incarnation:
            self.counters["superseded"] += 1
            self._send(peer, request, OutboxSuperseded(heard.incarnation))
        elif isinstance(request.body, Heartbeat):
            self.counters["heartbeats"] += 1
            decision = self._decide(FromWorker(request.worker, request.body), now)
            self._log(decision.events, TRACKER, self.state.run, self._next_own(), now)
            self._reply(peer, request, decision)
            self._meet(peer, request)
        else:
            self._durable(peer, request, heard, now)
            self._meet(peer, request)

    def _meet(self, peer: Peer, request: Request) -> None:
        """Remember where this worker is to be found; whoever is new there gets the latest checkpoint."""
        if request.worker not in self._heard:
            return
        before = self._peers.get(request.worker)
        self._peers[request.worker] = peer, request.incarnation
        if before != (peer, request.incarnation) and self._checkpoint is not None:
            self._tell(peer, request.incarnation, self._checkpoint_since(0))

    def drop(self, error: ProtocolError) -> None:
        """Counts garbage by where it is wrong: few words, however many frames."""
        place = error.field.partition(".")[0].partition("[")[0]
        self.counters[f"garbage: {place}"] += 1

    def _durable(self, peer: Peer, request: Request, heard: Heard | None, now: Instant) -> None:
        known = heard if heard is not None and heard.incarnation == request.incarnation else None
        last = 0 if known is None else known.sequence
        if request.sequence <= last:
            self._repeat(peer, request)
            return
        due = max(last, request.acknowledged) + 1
        if request.sequence != due:
            # Lost on the way, or still coming: the worker has it, so it is no hole.
            self.counters["resends asked"] += 1
            self._send(peer, request, ResendFrom(due))
            return
        missed = []
        if heard is not None and known is None:
            missed.append(
                RecordsMissed(request.worker, heard.incarnation, heard.sequence + 1, None, heard.told_ns)
            )
        if due > last + 1:
            # Answered by a tracker whose log is not this one (an old copy, a new file): gone for good.
            since_ns = None if known is None else known.told_ns
            missed.append(RecordsMissed(request.worker, request.incarnation, last + 1, due - 1, since_ns))
        self.counters["holes"] += len(missed)
        self._take(peer, request, missed, now)

    def _take(self, peer: Peer, request: Request, missed: list[RecordsMissed], now: Instant) -> None:
        body = request.body
        if isinstance(body, Volatile):
            raise TypeError(f"{type(body).__name__} has no sequence")
        # Later messages were submitted after this one, which may have waited long in the outbox.
        told_ns = max(0, now.wall_ns - request.age_ms * transitions.MILLISECOND_NS)
        self._heard[request.worker] = Heard(request.incarnation, request.sequence, told_ns)
        for event in missed:
            transitions.apply(self.state, event, now.wall_ns)
        decision = self._decide(FromWorker(request.worker, body, request.age_ms), now)
        events = (*missed, *decision.events)
        self._log(events, request.worker, request.incarnation, request.sequence, now)
        self.counters[_COUNTED.get(type(decision.reply), "sessions")] += 1
        if isinstance(decision.reply, ClaimRefused):
            self.refusals[decision.reply.reason.value] += 1
        frame = self._reply(peer, request, decision)
        self._batch.answers.append(Answered(request.worker, request.incarnation, request.sequence, frame))
        self._answers[request.worker, request.incarnation, request.sequence] = frame
        if request.acknowledged:
            seen = Seen(request.worker, request.incarnation, request.acknowledged)
            self._batch.seen[request.worker] = seen

    def _repeat(self, peer: Peer, request: Request) -> None:
        self.counters["repeats"] += 1
        key = (request.worker, request.incarnation, request.sequence)
        frame = self._answers.get(key) or self._stored_answer(*key)
        if frame is None:
            # Forgotten, because the worker had said that it has it: any answer will do.
            self._send(peer, request, Acknowledged())
        else:
            self._batch.frames.append((peer, frame))

    def _decide_own(self, command: Command, now: Instant) -> None:
        decision = self._decide(command, now)
        if decision.events:
            self._log(decision.events, TRACKER, self.state.run, self._next_own(), now)

    def _decide(self, command: Command, now: Instant) -> Decision:
        decision = ownership.decide(self.state, command, now)
        for event in decision.events:
            transitions.apply(self.state, event, now.wall_ns)
        for change in decision.unlogged:
            transitions.apply_unlogged(self.state, change)
        self._orders.extend(decision.orders)
        self._tell_ended(decision.events)
        return decision

    def _next_own(self) -> int:
        self._own_sequence += 1
        return self._own_sequence

    def _log(self, events: Iterable[Event], name: str, incarnation: int, sequence: int, now: Instant) -> None:
        for part, event in enumerate(events):
            source = Source(name, incarnation, sequence, part)
            record = to_record(event, wall_ns=now.wall_ns, source=source, nonce=self._nonce())
            self._batch.records.append(record)
            self._batch.events.append(event)
            self._memory.hear(record)
            self._size += 1

    def _reply(self, peer: Peer, request: Request, decision: Decision) -> bytes:
        if decision.reply is None:
            raise TypeError(f"no answer to {type(request.body).__name__}")
        return self._send(peer, request, decision.reply)

    def _send(self, peer: Peer, request: Request, body: ReplyBody) -> bytes:
        frame = encode_reply(Reply(request.incarnation, request.sequence, body))
        self._batch.frames.append((peer, frame))
        return frame

    def _tell(self, peer: Peer, incarnation: int, body: ReplyBody) -> None:
        """What answers nothing."""
        self._batch.frames.append((peer, encode_reply(Reply(incarnation, 0, body))))

    def _checkpoint_since(self, size: int) -> CheckpointMade | NoCheckpoint:
        """The latest checkpoint, shown to continue one over `size` records if it is over as many or more."""
        if self._checkpoint is None:
            return NoCheckpoint("no key signs this log" if self._key is None else "none is made yet")
        if not 0 < size <= self._checkpoint.size:
            return CheckpointMade(self._checkpoint.note, 0, ())
        proof = self._consistency(size, self._checkpoint.size)
        return CheckpointMade(self._checkpoint.note, size, tuple(proof))

    def _status(self, now: Instant) -> Status:
        bindings = sorted(self.state.bindings)
        counters = tuple(messages.Counter(name, value) for name, value in sorted(self.counters.items()))
        return Status(
            self._version,
            self.state.run,
            self._started_ns,
            self._size,
            tuple(self._sessions(now)),
            tuple(self.state.bindings[number].view() for number in bindings[:BINDINGS_LIMIT]),
            max(0, len(bindings) - BINDINGS_LIMIT),
            counters,
            self._protection(),
            tuple(
                RestrictionView(
                    scope.restraint,
                    scope.gateway,
                    scope.service,
                    scope.host or it.reserved_for,
                    it.since_ns,
                    it.until_ns,
                    it.by,
                    it.why,
                )
                for scope, it in self.state.restrictions.items()
            ),
            tuple(
                WithdrawalView(number, ordered)
                for number in bindings
                if (ordered := self.state.bindings[number].ordered) is not None
            ),
        )

    def _find_port(self, wanted: FindPort) -> PortFound:
        places = [
            Place(gateway, service.name)
            for gateway, known in sorted(self.state.gateways.items())
            for service in known.services.values()
            if wanted.gateway in (None, gateway) and wanted.fits(service)
        ]
        bindings = [
            binding.view()
            for number, binding in sorted(self.state.bindings.items())
            if wanted.binding in (None, number)
            and wanted.holder in (None, binding.bound.holder)
            and Place(binding.bound.resource.gateway, binding.bound.resource.service) in places
        ]
        return PortFound(tuple(places), tuple(bindings[:BINDINGS_LIMIT]))

    def _protection(self) -> Protection | None:
        if self._key is None:
            return None
        if self._checkpoint is None:
            return Protection(self._key, 0, None)
        return Protection(self._key, self._checkpoint.size, self._checkpoint.made_ns)

    def _sessions(self, now: Instant) -> Iterable[SessionView]:
        for name, gateway in sorted(self.state.gateways.items()):
            if (session := gateway.session) is not None:
                left_ns = 0 if session.lost_since_ns is not None else session.deadline_ns - now.monotonic_ns
                yield SessionView(
                    name,
                    session.epoch,
                    session.worker,
                    session.host,
                    session.lost_since_ns is not None,
                    max(0, left_ns) // transitions.MILLISECOND_NS,
                    len(gateway.bindings),
                )


def _operator(caller: Caller, request: Request) -> str:
    """Who gave an order, for the log: a key's name; of a local user what he calls himself, and who he is."""
    return caller.name if caller.key is not None else f"{request.worker} ({caller.name})"
