"""The tracker's process: one thread, one poll; sockets and log around the machine.

Rule 1: drain what has come, decide it all, append it in one transaction, then send. Rule 2: no frame leaves
before the append of its batch has returned. Rule 3: a failed append ends the process, because what is on the
disk is then unknown; its answers are never sent, so the workers ask again. Rule 4: noise is logged at most
once in ten seconds. Rule 5: a snapshot that is not what its record in the tree says is not believed: the log
is folded from its first record, and that is said. Rule 6: asked to end, it first answers what has come.
Rule 7: a configuration that is read again takes effect whole or not at all; what needs a restart is named.
"""

import logging
import platform
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

import zmq
from prometheus_client.core import Metric

from eventlog.reading import RecordsGone
from eventlog.record import NONCE_SIZE, Record
from eventlog.shelf import Gap
from eventlog.snapshot import Snapshot, SnapshotDamaged
from eventlog.store import Answer, Forget, Log, LogBusy, LogUnreadable
from tracker import image, metrics
from tracker.audit import ALIVE, alive_note, alive_ns
from tracker.clock import read_clock
from tracker.configuration import ConfigurationError, TrackerSection
from tracker.doors import Door, Peer, Socket, opened_doors
from tracker.exposition import Exposition
from tracker.feed import Missing, Piece, Present
from tracker.instant import Instant
from tracker.journal import about, tell
from tracker.keyring import Keyring
from tracker.machine import Batch, Machine, no_proof
from tracker.notary import Notary
from tracker.porter import Porter
from tracker.projections import PROJECTIONS
from tracker.rates import Rates
from tracker.roles import Caller, Role
from tracker.shapes import ProtocolError
from tracker.supervision import Supervision
from tracker.transitions import State

LOGGER: Final = logging.getLogger(__name__)
_BURST: Final = 256
"""Frames of one socket in one round: more wait for the next batch."""
_NOISE: Final = ("garbage", "refused")
"""How the names of those counters begin that are worth a warning."""
_NOISE_NS: Final = 10_000_000_000
_STATUS_NS: Final = 1_000_000_000
_BEHIND_MS: Final = 50
"""What was sent before the signal may still be on its way through libzmq's own thread."""
_FAREWELL_S: Final = 0.2
_LOOK_NS: Final = 1_000_000_000
"""How often the directory of keys is looked at."""
_POLL_NS: Final = 500_000_000
_AWAY_NS: Final = 1_000_000_000
"""Longer from one poll to the next, and we have not been listening."""
_DRAIN_NS: Final = 1_000_000_000
"""So long are requests taken behind the one to end: whoever does not stop asking must not keep us."""
_RELOADED: Final = frozenset(
    {
        "alive_s",
        "checkpoint_directory",
        "checkpoint_every_records",
        "checkpoint_every_s",
        "snapshot_every_records",
        "verifying_keys",
    }
)
"""What a running tracker can change. Not the lease: it is a promise, and workers' kernels count it."""

Reread = Callable[[], TrackerSection]
"""The configuration as it is in the file now; ConfigurationError."""

Done = TypeVar("Done")
Round = dict[Socket | int, int]
"""What a poll has found: sockets, and the descriptor that says stop."""


class Server:
    """A tracker on its log; `serve` builds it."""

    def __init__(
        self,
        section: TrackerSection,
        log: Log,
        notary: Notary | None,
        machine: Machine,
        doors: Sequence[Door],
        *,
        porter: Porter,
        keyring: Keyring | None,
        supervision: Supervision,
        reread: Reread,
        exposition: Exposition,
    ) -> None:
        self._section = section
        self._supervision = supervision
        self._reread = reread
        self._exposition = exposition
        self._append_s = exposition.append_seconds()
        self._append_records = exposition.append_records()
        self._log = log
        self._notary = notary
        self._machine = machine
        self._doors = doors
        self._porter = porter
        self._keyring = keyring
        self._look_ns = 0
        limits = section.limits
        self._worker_rates = Rates(limits.worker_messages_per_s, 2 * limits.worker_messages_per_s)
        self._other_rates = Rates(limits.other_messages_per_s, 2 * limits.other_messages_per_s)
        self._snapshot_size = max((it.size for it in log.snapshots(image.NAME)), default=0)
        self._alive_every_ns = round(section.alive_s * 1e9)
        self._alive_due_ns = 0
        self._noise: Counter[str] = Counter()
        self._noise_due_ns = 0
        self._status_due_ns = 0
        self._listened_ns = 0
        self._feeding = False

    def run(self) -> None:
        """Serves until it is told to end. AppendFailed: the caller ends the process."""
        poller = zmq.Poller()
        for source in (
            *(door.socket for door in self._doors),
            *self._porter.sockets,
            self._supervision.fileno(),
        ):
            poller.register(source, zmq.POLLIN)
        now = read_clock()
        self._listened_ns = now.monotonic_ns
        self._begin(now)
        run = self._machine.state.run
        LOGGER.info("run %d on %s", run, self._log.path, extra=about("started", run=run))
        self._supervision.ready(self._summary())
        while not self._supervision.stopping:
            if self._supervision.fileno() in self._round(poller) and self._supervision.hear():
                self._reload()
        self._supervision.end("answering what has come")
        self._drain_all(poller)
        self._end(read_clock())
        LOGGER.info("stopped", extra=about("stopped", run=run))

    def _drain_all(self, poller: zmq.Poller) -> None:
        """Answer what was sent before we were told to end, and what comes close behind it."""
        poller.unregister(self._supervision.fileno())  # it may still say stop, and there would be no waiting
        until_ns = read_clock().monotonic_ns + _DRAIN_NS
        waiting = True
        while waiting and read_clock().monotonic_ns < until_ns:
            found = self._round(poller, timeout_ms=_BEHIND_MS)
            waiting = any(door.socket in found for door in self._doors)

    def _summary(self) -> str:
        """For `systemctl status`."""
        state = self._machine.state
        leased = sum(1 for it in state.gateways.values() if it.session and it.session.lost_since_ns is None)
        return f"{leased} gateways, {len(state.bindings)} bindings, {self._log.head().size} records"

    def _reload(self) -> None:
        self._supervision.reloading()
        try:
            wanted = self._reread()
        except ConfigurationError as error:
            for problem in error.problems:
                LOGGER.error(
                    "not reloaded, the old configuration stays: %s", problem, extra=about("reload-refused")
                )
        else:
            self._take_section(wanted)
        self._supervision.ready(self._summary())

    def _take_section(self, wanted: TrackerSection) -> None:
        before = self._section
        changed = {
            name for name in type(before).model_fields if getattr(before, name) != getattr(wanted, name)
        }
        kept = sorted(changed - _RELOADED)
        if kept:
            said = ", ".join(f"tracker.{name}" for name in kept)
            LOGGER.warning(
                "changed, but only a restart brings it: %s",
                said,
                extra=about("restart-needed", settings=said),
            )
        self._section = wanted.model_copy(update={name: getattr(before, name) for name in kept})
        self._alive_every_ns = round(self._section.alive_s * 1e9)
        if self._notary is not None:
            self._notary.follow(self._section)
        taken = ", ".join(f"tracker.{name}" for name in sorted(changed & _RELOADED)) or "nothing has changed"
        LOGGER.info("configuration read again: %s", taken, extra=about("reloaded", settings=taken))

    def _begin(self, now: Instant) -> None:
        endorsement = None
        if self._notary is None:
            self._say_unprotected()
        else:
            key_of_log = self._machine.state.key
            endorsement = self._notary.endorsement(key_of_log, self._section.previous_signing_key)
            if self._notary.last is not None:
                self._machine.checkpoint_made(self._notary.last)
        self._machine.start(now, boot_identity(), self._previously_alive_ns(), endorsement)
        self._commit(now)

    def _previously_alive_ns(self) -> int | None:
        """When the tracker before this one was last known to live; None in an empty log.

        Without a sign of life that can be believed it is the last record: rather too long an outage in the
        log than one that nobody hears of.
        """
        try:
            alive = alive_ns(self._log.note(ALIVE))
        except LogUnreadable as error:
            LOGGER.warning("%s", error, extra=about("sign-of-life-damaged", reason=str(error)))
            alive = None
        return self._log.last_wall_ns if alive is None else alive

    def _end(self, now: Instant) -> None:
        self._machine.stop(now)
        self._append(self._machine.take(), alive_note(now.wall_ns, 0))
        self._take_snapshot(now)
        self._sign(now)
        farewell = self._machine.take()
        if farewell.frames:
            self._send(farewell)
            # Workers lose what they have received and not read yet when we hang up (ZMQ_IMMEDIATE): a moment.
            time.sleep(_FAREWELL_S)

    def _say_unprotected(self) -> None:
        if self._machine.state.key is None:
            LOGGER.info("no signing_key is configured: nothing protects this log against who can write it")
        else:
            LOGGER.warning("no signing_key is configured, but this log has one: its end is not protected")

    def _round(self, poller: zmq.Poller, timeout_ms: int | None = None) -> Round:
        found: Round = dict(poller.poll(self._timeout_ms() if timeout_ms is None else timeout_ms))
        now = read_clock()
        away_ns = now.monotonic_ns - self._listened_ns
        self._listened_ns = now.monotonic_ns
        if away_ns > _AWAY_NS:
            # The heartbeats of that time wait in the socket, perhaps behind somebody's OpenSession.
            self._machine.was_away(away_ns, now)
        self._machine.pass_time(now)
        self._look_at_keys(now)
        self._porter.work()
        for door in self._doors:
            if door.socket in found:
                self._drain(door, now)
        self._commit(now)
        self._feed()
        self._say_noise(now)
        self._say_alive(now)
        self._exposition.tell(now, lambda: self._families(now))
        return found

    def _timeout_ms(self) -> int:
        if self._feeding:
            return 0  # whatever has come is first; then those who catch up
        now_ns = read_clock().monotonic_ns
        lease_ns = self._machine.next_deadline()
        due_ns = min(self._alive_due_ns, now_ns + _POLL_NS)
        due_ns = due_ns if lease_ns is None else min(due_ns, lease_ns)
        return max(0, -((now_ns - due_ns) // 1_000_000))

    def _look_at_keys(self, now: Instant) -> None:
        if self._keyring is not None and now.monotonic_ns >= self._look_ns:
            self._look_ns = now.monotonic_ns + _LOOK_NS
            for news in self._keyring.refresh():
                LOGGER.warning("%s", news)

    def _drain(self, door: Door, now: Instant) -> None:
        counters = self._machine.counters
        for _ in range(_BURST):
            arrival = door.receive()
            if arrival is None:
                return
            peer, caller, parts = arrival
            if caller is None:
                counters["refused: revoked key"] += 1
            elif not self._rates_of(caller).admit(caller.key or peer, now.monotonic_ns):
                counters["refused: rate"] += 1
            elif len(parts) == 1:
                self._machine.receive(peer, parts[0], now, caller)
            else:
                self._machine.drop(ProtocolError("parts", f"{len(parts)} instead of one"))

    def _rates_of(self, caller: Caller) -> Rates:
        return self._worker_rates if caller.role is Role.WORKER else self._other_rates

    def _commit(self, now: Instant) -> None:
        batch = self._machine.take()
        alive = now.monotonic_ns >= self._alive_due_ns
        if batch.durable or alive:
            # Append before replying: a crash here costs a retry, never a second holder.
            note = alive_note(now.wall_ns, 2 * self._alive_every_ns) if alive else None
            began = read_clock()
            self._append(batch, note)
            self._append_s.observe((read_clock().monotonic_ns - began.monotonic_ns) / 1e9)
            self._append_records.observe(len(batch.records))
        if alive:
            self._alive_due_ns = now.monotonic_ns + self._alive_every_ns
        self._send(batch)
        # Behind the answers, which nobody is to wait for longer than for the append.
        if self._log.head().size - self._snapshot_size >= self._section.snapshot_every_records:
            self._take_snapshot(now)
        if self._notary is not None:
            if self._notary.due(now) or self._machine.checkpoint_ordered:
                self._sign(now)
                self._send(self._machine.take())
            self._notary.write_copy(now)

    def _feed(self) -> None:
        self._feeding = self._machine.feed(self._log.head().size, self._read)
        self._send(self._machine.take())

    def _read(self, first: int, end: int) -> Iterator[Piece]:
        """For the feed: what cannot be read is told so, and ends no tracker."""
        try:
            for found in self._log.read_with_gaps(first, end):
                if isinstance(found, Gap):
                    yield Missing(found.span.first, found.span.end, found.why)
                    first = found.span.end
                else:
                    yield Present(found.position, found.data, found.leaf)
                    first = found.position + 1
        except sqlite3.DatabaseError as error:
            yield Missing(first, end, f"can't be read: {error}")

    def _append(self, batch: Batch, note: bytes | None, snapshot: Snapshot | None = None) -> None:
        answers = [Answer(it.worker, it.incarnation, it.sequence, it.frame) for it in batch.answers]
        forget = [Forget(it.worker, it.incarnation, it.through) for it in batch.seen.values()]
        notes = {} if note is None else {ALIVE: note}
        self._patiently(
            lambda: self._log.append(
                batch.records, answers=answers, forget_answers=forget, notes=notes, snapshot=snapshot
            )
        )
        for event in batch.events:
            tell(event)

    def _take_snapshot(self, now: Instant) -> None:
        snapshot = self._machine.snapshot(now, self._log.head().root)
        self._append(self._machine.take(), None, snapshot)
        self._snapshot_size = snapshot.size

    def _sign(self, now: Instant) -> None:
        notary = self._notary
        if notary is not None:
            self._machine.checkpoint_made(self._patiently(lambda: notary.sign(now)))
            notary.write_copy(now)

    def _patiently(self, write: Callable[[], Done]) -> Done:
        """What `write` gives, once nobody else holds the log's write lock."""
        while True:
            try:
                return write()
            except LogBusy as error:
                LOGGER.warning("%s; nobody is answered until it is free", error, extra=about("log-busy"))
                # Not dead, and a restart would wait as long.
                self._supervision.turned(read_clock().monotonic_ns, "waiting for the log's write lock")

    def _send(self, batch: Batch) -> None:
        for peer, frame in batch.frames:
            if not isinstance(peer, Peer):
                raise TypeError(f"no peer: {peer!r}")
            if not peer.door.send(peer, frame):
                # A worker asks again; whoever does not read has only himself to blame.
                self._machine.counters["frames not delivered"] += 1

    def _say_alive(self, now: Instant) -> None:
        """Behind a round's work: a tracker that can't finish one is not alive."""
        status = None
        if now.monotonic_ns >= self._status_due_ns:
            self._status_due_ns = now.monotonic_ns + _STATUS_NS
            status = self._summary()
        self._supervision.turned(now.monotonic_ns, status)

    def _families(self, now: Instant) -> Iterator[Metric]:
        machine = self._machine
        yield from metrics.families(machine.state, machine.counters, machine.refusals, now)
        octets = {}
        for name, suffix in (("database", ""), ("wal", "-wal")):
            with suppress(FileNotFoundError):
                octets[name] = Path(f"{self._section.log}{suffix}").stat().st_size
        last = None if self._notary is None else self._notary.last
        yield from metrics.log_families(self._log.head().size, octets, last)

    def _say_noise(self, now: Instant) -> None:
        if now.monotonic_ns < self._noise_due_ns:
            return
        counters = self._machine.counters
        noise = Counter({name: counters[name] for name in counters if name.startswith(_NOISE)})
        if fresh := noise - self._noise:
            LOGGER.warning("not taken: %s", ", ".join(f"{name} {count}" for name, count in fresh.items()))
            self._noise, self._noise_due_ns = noise, now.monotonic_ns + _NOISE_NS


def serve(section: TrackerSection, supervision: Supervision, reread: Reread) -> None:
    """Opens log and sockets, and serves until it is told to end.

    LogLocked, LogUnreadable, KeyUnusable, EndpointUnusable, MetricsUnusable: it can't begin;
    CheckpointContradicted: it must not; AppendFailed: it can't go on.
    """
    with ExitStack() as stack:
        log = stack.enter_context(Log.open(section.log, projections=PROJECTIONS))
        notary = Notary.open(section, log, read_clock())
        machine = _recovered(section, log, notary)
        exposition = Exposition()
        stack.enter_context(exposition.served(section.metrics))
        context = stack.enter_context(zmq.Context())
        keyring = None if section.authorised_keys is None else Keyring(section.authorised_keys)
        porter = Porter(context, keyring, section.limits.connections, machine.counters)
        stack.callback(porter.close)
        doors = stack.enter_context(opened_doors(context, section, porter, keyring))
        server = Server(
            section,
            log,
            notary,
            machine,
            doors,
            porter=porter,
            keyring=keyring,
            supervision=supervision,
            reread=reread,
            exposition=exposition,
        )
        server.run()


def boot_identity() -> str:
    """Which boot of which machine this is."""
    return f"{platform.node()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def _recovered(section: TrackerSection, log: Log, notary: Notary | None) -> Machine:
    """The machine that goes on where the log ends."""

    def fresh() -> Machine:
        return Machine(
            State(lease_ms=round(section.lease_s * 1000)),
            version=version("porthold"),
            nonce=lambda: secrets.token_bytes(NONCE_SIZE),
            stored_answer=log.answer,
            key=None if notary is None else notary.key,
            consistency=no_proof if notary is None else notary.consistency,
        )

    try:
        snapshot = log.latest_snapshot(image.NAME, image.VERSION)
        if snapshot is not None:
            machine = fresh().recover(_records(log, snapshot.size), _latest(log), snapshot)
            behind = log.size - snapshot.size
            LOGGER.info("state from the snapshot over %d records, and %d behind it", snapshot.size, behind)
            return machine
    except (SnapshotDamaged, ProtocolError) as error:
        LOGGER.warning("a snapshot is not believed: %s; `porthold verify` says more", error)
    LOGGER.info("state folded from all %d records", log.size)
    return fresh().recover(_records(log, 0), _latest(log))


def _latest(log: Log) -> list[tuple[str, int, int]]:
    return [(answer.name, answer.incarnation, answer.sequence) for answer in log.latest_answers()]


def _records(log: Log, first: int) -> Iterator[Record]:
    """LogUnreadable: some are gone, and no snapshot that is believed was made of them."""
    try:
        for entry in log.read(first):
            record = entry.record
            if record is None:
                what = f"record {entry.position} is redacted"
                raise LogUnreadable(
                    f"{log.path}: {what}, and no state of version {image.VERSION} knows of it"
                )
            yield record
    except RecordsGone as error:
        why = f"no state of version {image.VERSION} is kept, and none can be made: {error}"
        raise LogUnreadable(f"{log.path}: {why}") from error
