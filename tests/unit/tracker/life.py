"""A tracker on a real log, told what happens second by second: what the audit's tests ask about."""

from pathlib import Path

from eventlog.store import Answer as StoredAnswer
from eventlog.store import Log
from tests.unit.tracker.wire import SECOND_NS, WORKER, at, counting
from tracker.audit import Finding, Holder, Nobody, Unknown, who
from tracker.events import BindingWithdrawn, Ending
from tracker.instant import Instant
from tracker.machine import Machine
from tracker.messages import Durable, Heartbeat, Request, encode_request
from tracker.projections import PROJECTIONS
from tracker.transitions import State


class Life:
    """A tracker on a real log, told what happens second by second."""

    def __init__(self, path: Path) -> None:
        self.log = Log.open(path, projections=PROJECTIONS)
        self.nonces = counting()
        self.sequence = 0
        self.incarnation = 7
        self.acknowledged: int | None = None
        self.start(0, None)

    def start(self, seconds: float, alive_s: float | None) -> None:
        self.start_at(at(seconds), None if alive_s is None else at(alive_s).wall_ns)

    def start_at(self, now: Instant, alive_ns: int | None) -> None:
        records = [record for entry in self.log.read() if (record := entry.record) is not None]
        latest = [(it.name, it.incarnation, it.sequence) for it in self.log.latest_answers()]
        self.machine = Machine(
            State(lease_ms=10_000),
            version="1",
            nonce=lambda: next(self.nonces),
            stored_answer=self.log.answer,
        ).recover(records, latest)
        self.machine.start(now, "boot", alive_ns)
        self.flush()

    def flush(self) -> None:
        batch = self.machine.take()
        answers = [StoredAnswer(it.worker, it.incarnation, it.sequence, it.frame) for it in batch.answers]
        self.log.append(batch.records, answers=answers)

    def say(self, seconds: float, body: Durable | Heartbeat) -> None:
        self.say_at(at(seconds), body)

    def say_at(self, now: Instant, body: Durable | Heartbeat) -> None:
        if not isinstance(body, Heartbeat):
            self.sequence += 1
        sequence = 0 if isinstance(body, Heartbeat) else self.sequence
        seen = max(0, sequence - 1) if self.acknowledged is None else self.acknowledged
        request = Request("w1", self.incarnation, sequence, seen, 0, now.wall_ns, body)
        self.machine.receive("peer", encode_request(request), now, WORKER)
        self.flush()

    def beat(self, since: int, until: int, epoch: int = 1, step_s: float = 0) -> None:
        """The worker is heard of, often enough."""
        for second in range(since, until, 5):
            self.say_at(stepped(second, step_s), Heartbeat("gw", epoch, second))

    def pass_time(self, seconds: float) -> None:
        self.machine.pass_time(at(seconds))
        self.flush()

    def who(self, seconds: float, port: int = 7648, protocol: int = 17) -> list[Finding]:
        return who(self.log, at_ns=at(seconds).wall_ns, protocol=protocol, port=port, gateway="gw")

    def answer(self, seconds: float) -> Holder | Nobody | Unknown:
        findings = [it.answer for it in self.who(seconds) if it.service in (None, "cuseeme")]
        assert len(findings) == 1
        return findings[0]

    def held_by(self, seconds: float) -> bytes | None:
        answer = self.answer(seconds)
        assert not isinstance(answer, Unknown), answer
        return answer.holding.holder if isinstance(answer, Holder) else None

    def unknown(self, seconds: float) -> list[str]:
        answer = self.answer(seconds)
        assert isinstance(answer, Unknown), answer
        return [outage.kind for outage in answer.because]


def stepped(seconds: float, step_s: float) -> Instant:
    """A moment after the wall clock was set by `step_s`."""
    now = at(seconds)
    return Instant(now.wall_ns + round(step_s * SECOND_NS), now.monotonic_ns)


def withdrawn(binding: int, seconds: float, reason: Ending = Ending.IDLE) -> BindingWithdrawn:
    return BindingWithdrawn("gw", 1, binding, reason, at(seconds).wall_ns, None, 3, 400, 2)
