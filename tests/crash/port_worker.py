"""A worker without a kernel: a real process that opens, renews, claims, releases through the real client.

    python -m tests.crash.port_worker ENDPOINT DIRECTORY WORKER GATEWAY SEED [KEY TRACKER_KEY]

Rule 1: one operation at a time. What it is about to do is written down before, with the time, and what came
of it after; so whoever kills it knows all that may have happened. Rule 2: a successor first hears what became
of its predecessor's last words.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Final, TextIO

from tests.crash.place import PUBLIC, SHARED
from tracker.client import Credentials, TrackerClient
from tracker.clock import read_clock
from tracker.events import BindingWithdrawn, Ending
from tracker.messages import (
    Acknowledged,
    ClaimGranted,
    ClaimPort,
    ClaimRefused,
    Durable,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    ReplyBody,
    SessionDenied,
    SessionGranted,
    SessionOver,
)

PORTS: Final = 3
HOLDERS: Final = ("ann", "bob", "cyd")
PAUSE_S: Final = 0.004
RENEWED_S: Final = 0.15


class PortWorker:
    """`epoch` 0: no session; `bindings`: those of the gateway that it knows of."""

    def __init__(self, client: TrackerClient, worker: str, gateway: str, diary: TextIO) -> None:
        self._client = client
        self._worker = worker
        self._gateway = gateway
        self._diary = diary
        self._nonce = 0
        self.epoch = 0
        self.bindings: list[int] = []

    def hear_last_words(self) -> None:
        """What a process before this one said, and the answer that it did not live to hear."""
        self._write(begin=True)
        while self._client.pending:
            self._client.socket.poll(50)
            self._client.tick(read_clock())
            for answer in self._client.receive(read_clock()):
                if answer.request is not None:
                    self._write(result=in_words(answer.reply))

    def open(self) -> None:
        order = OpenSession(
            self._gateway, (PUBLIC,), (SHARED,), f"host of {self._worker}", take_over=False, fence=False
        )
        reply = self._durable(["open"], order)
        if isinstance(reply, SessionGranted):
            self.epoch, self.bindings = reply.epoch, [view.binding for view in reply.bindings]

    def claim(self, port: int, holder: int) -> None:
        now = read_clock()
        remote, host = bytes([10, 0, 0, port]), bytes([192, 168, 0, holder])
        order = ClaimPort(
            self._gateway,
            self.epoch,
            PUBLIC,
            SHARED.name,
            remote,
            host,
            None,
            17,
            7648,
            remote,
            7648,
            60_000,
            now.wall_ns,
        )
        reply = self._durable(["claim", self.epoch, str(port), HOLDERS[holder]], order)
        if isinstance(reply, ClaimRefused) and reply.holder is None:
            self.epoch = 0
        if isinstance(reply, ClaimGranted) and reply.binding.binding not in self.bindings:
            self.bindings.append(reply.binding.binding)

    def release(self, binding: int) -> None:
        self.bindings.remove(binding)
        now = read_clock()
        report = BindingWithdrawn(
            self._gateway, self.epoch, binding, Ending.HANG_UP, now.wall_ns, None, None, None, None
        )
        self._durable(["release", self.epoch, binding], report)

    def renew(self) -> None:
        """Sent once: without an answer nothing is known, and nothing has changed."""
        self._nonce += 1
        self._write(action=["renew", self.epoch])
        self._client.send(Heartbeat(self._gateway, self.epoch, self._nonce), read_clock())
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            self._client.socket.poll(20)
            self._client.tick(read_clock())
            for answer in self._client.receive(read_clock()):
                match answer.reply:
                    case HeartbeatAcknowledged(nonce=self._nonce):
                        self._write(result=["renewed"])
                        return
                    case SessionOver(epoch=self.epoch):
                        self._write(result=["over"])
                        self.epoch = 0
                        return
                    case _:
                        pass

    def _durable(self, action: list[object], message: Durable) -> ReplyBody:
        self._write(action=action)
        sequence = self._client.submit(message, read_clock())
        while True:
            self._client.socket.poll(50)
            self._client.tick(read_clock())
            for answer in self._client.receive(read_clock()):
                if answer.sequence == sequence:
                    self._write(result=in_words(answer.reply))
                    return answer.reply

    def _write(self, **what: object) -> None:
        print(json.dumps({"at": time.monotonic_ns(), **what}), file=self._diary, flush=True)


def in_words(reply: ReplyBody) -> list[object]:
    """As `linearizability.GatewayModel` has it."""
    match reply:
        case SessionGranted(epoch=epoch, bindings=views):
            held = [[str((it.resource.peer or b"?")[-1]), HOLDERS[it.holder[-1]], it.binding] for it in views]
            return ["granted", epoch, held]
        case SessionDenied(worker=worker):
            return ["denied", worker]
        case ClaimGranted(view):
            return ["granted", view.binding, HOLDERS[view.holder[-1]]]
        case ClaimRefused(holder=bytes(holder), binding=int(binding)):
            return ["held", binding, HOLDERS[holder[-1]]]
        case ClaimRefused(reason=reason):
            return [reason.value]
        case Acknowledged():
            return ["taken"]
        case _:
            raise TypeError(reply)


def main(endpoint: str, directory: str, worker: str, gateway: str, seed: str, *keys: str) -> None:
    chance = random.Random(f"{seed} {worker}")
    path = Path(directory)
    client = TrackerClient.open(
        endpoint,
        worker=worker,
        outbox=path / f"{worker}.outbox",
        now=read_clock(),
        credentials=Credentials.read(Path(keys[0]), keys[1]) if keys else None,
    )
    with (path / f"{worker}.diary").open("a") as diary:
        works = PortWorker(client, worker, gateway, diary)
        works.hear_last_words()
        renew_s = 0.0
        while not (path / "enough").exists():
            if works.epoch == 0:
                works.open()
                time.sleep(0 if works.epoch else 0.1)
            elif time.monotonic() >= renew_s and chance.random() < 0.5:  # or first say what may be over
                renew_s = time.monotonic() + RENEWED_S
                works.renew()
            elif works.bindings and chance.random() < 0.5:
                works.release(chance.choice(works.bindings))
            else:
                works.claim(chance.randrange(PORTS), chance.randrange(len(HOLDERS)))
            time.sleep(PAUSE_S)
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
