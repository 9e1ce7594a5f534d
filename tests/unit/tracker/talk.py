"""A tracker without socket and disk, spoken to in requests: for the tests of its machine."""

from eventlog.record import Record
from tests.unit.tracker.wire import (
    at,
    counting,
    speaker,
)
from tracker.events import (
    KernelStateRestored,
    from_record,
)
from tracker.instant import Instant
from tracker.machine import Batch, Machine
from tracker.messages import (
    Body,
    Reply,
    Request,
    decode_reply,
    encode_request,
)
from tracker.transitions import State


class Disk:
    """What outlives a tracker: the records and answers of the batches that were appended."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.answers: dict[tuple[str, int, int], bytes] = {}
        self.latest: dict[str, tuple[str, int, int]] = {}
        self._nonces = counting()

    def append(self, batch: Batch) -> None:
        self.records.extend(batch.records)
        for answer in batch.answers:
            key = (answer.worker, answer.incarnation, answer.sequence)
            assert key not in self.answers, "decided twice"
            self.answers[key] = answer.frame
            self.latest[answer.worker] = key
        for seen in batch.seen.values():
            of_worker = seen.worker, seen.incarnation
            for key in [key for key in self.answers if key[:2] == of_worker and key[2] <= seen.through]:
                del self.answers[key]

    def machine(self, now: Instant, key: str | None = None) -> Machine:
        machine = Machine(
            State(lease_ms=10_000),
            version="1",
            nonce=lambda: next(self._nonces),
            stored_answer=lambda *key: self.answers.get(key),
            key=key,
            consistency=lambda old, new: [bytes([old, new]) * 16],
        ).recover(self.records, self.latest.values())
        machine.start(now, "boot", None)
        return machine

    def events(self) -> list[object]:
        return [from_record(record) for record in self.records]


class Talk:
    """One tracker, spoken to in requests."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.disk = Disk()
        self.machine = self.disk.machine(at(0), key)
        self.flush()

    def flush(self) -> list[Reply]:
        batch = self.machine.take()
        self.disk.append(batch)
        return [decode_reply(frame) for _, frame in batch.frames]

    def restart(self, seconds: float) -> None:
        self.machine = self.disk.machine(at(seconds), self.key)
        self.flush()

    def say(
        self,
        body: Body,
        sequence: int,
        seconds: float = 1,
        *,
        incarnation: int = 7,
        acknowledged: int = 0,
        worker: str = "w1",
        age_ms: int = 0,
    ) -> list[Reply]:
        request = Request(worker, incarnation, sequence, acknowledged, age_ms, 5, body)
        self.machine.receive("peer", encode_request(request), at(seconds), speaker(body, worker))
        return self.flush()


def hole(number: int) -> KernelStateRestored:
    return KernelStateRestored("gw", 1, "table", number, number)
