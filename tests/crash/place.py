"""A tracker as a process of its own in a directory of its own, and what its tests say to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from eventlog.store import LogReader
from eventlog.verify import compare_projection, verify
from tracker.client import Answer, Keeper, TrackerClient, ask_status
from tracker.clock import read_clock
from tracker.events import (
    Event,
    KernelStateRestored,
    Policy,
    PortRange,
    ServiceDefinition,
    Sharing,
    from_record,
)
from tracker.image import Fold
from tracker.messages import ClaimPort, Durable, OpenSession, Status
from tracker.projections import PROJECTIONS

ROOT = Path(__file__).parents[2]
PUBLIC = bytes([203, 0, 113, 1])
SHARED = ServiceDefinition(
    "shared",
    (PortRange(17, 7648, 7648),),
    (PortRange(17, 7648, 7649),),
    Policy.FIRST,
    Sharing.PER_PEER,
    1000,
    None,
)


class Place:
    """A directory with a configuration, and the tracker that runs by it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log.sqlite"
        self.endpoint = f"ipc://{directory}/tracker.ipc"
        self.reader_endpoint = f"ipc://{directory}/reader.ipc"
        self.operator_endpoint = f"ipc://{directory}/operator.ipc"
        self.configuration = directory / "porthold.toml"
        self._said = directory / "tracker.said"
        self.process: subprocess.Popen[str] | None = None
        self.environment: dict[str, str] = {}
        self.options: tuple[str, ...] = ()
        self.write_configuration()

    def write_configuration(self, **settings: object) -> None:
        """What every tracker here has, and further settings of [tracker]."""
        more = "".join(f"{name} = {json.dumps(value, default=str)}\n" for name, value in settings.items())
        self.configuration.write_text(
            f'[tracker]\nlog = "{self.log}"\nendpoint = "{self.endpoint}"\n'
            f'reader_endpoint = "{self.reader_endpoint}"\n'
            f'operator_endpoint = "{self.operator_endpoint}"\nalive_s = 0.2\n{more}'
        )

    def begin(self, stderr: int | TextIO = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from tools.tracker import command; command()"]
        return subprocess.Popen(
            [*command, "--config", str(self.configuration), *self.options],
            cwd=ROOT,
            stderr=stderr,
            text=True,
            env={**os.environ, **self.environment},
        )

    def start(self) -> None:
        # Not a pipe: nobody reads it meanwhile, and a full one would stop the tracker in its next line.
        with self._said.open("w") as output:
            self.process = self.begin(output)
        self.status()

    def status(self) -> Status:
        status = ask_status(self.reader_endpoint, 20)
        assert status is not None
        return status

    def kill(self, number: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
        assert self.process is not None
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        assert self.process is not None
        _, said = self.process.communicate(timeout=20)
        code = self.process.returncode
        if self.process.stderr is None:
            said = self._said.read_text()
        self.process = None
        return code, said

    def client(self, worker: str = "w1", keeper: Keeper | None = None) -> TrackerClient:
        outbox = self.directory / f"{worker}.outbox"
        return TrackerClient.open(
            self.endpoint, worker=worker, outbox=outbox, now=read_clock(), keeper=keeper
        )

    def sourced_events(self) -> list[tuple[Event, str]]:
        """Each event with the name of who caused it."""
        with LogReader.open(self.log) as log:
            records = [record for entry in log.read() if (record := entry.record) is not None]
        return [(from_record(record), record.source.name) for record in records]

    def events(self) -> list[Event]:
        with LogReader.open(self.log) as log:
            return [from_record(record) for entry in log.read() if (record := entry.record) is not None]

    def check(self) -> None:
        with LogReader.open(self.log) as log:
            report = verify(log, PROJECTIONS, folds=[Fold()])
            assert report.clean, report.faults
            assert [compare_projection(log, projection) for projection in PROJECTIONS] == [[]]


def hole(number: int) -> KernelStateRestored:
    return KernelStateRestored("gw", 1, "test", number, number)


def opening(gateway: str = "gw") -> OpenSession:
    return OpenSession(gateway, (PUBLIC,), (SHARED,), "host", take_over=False, fence=False)


def claim(epoch: int, peer: int) -> ClaimPort:
    remote = bytes([10, *peer.to_bytes(3, "big")])
    holder = bytes([192, 168, 0, 2])
    return ClaimPort("gw", epoch, PUBLIC, "shared", remote, holder, None, 17, 7648, remote, 7648, 60_000, 5)


def answers(client: TrackerClient, until: Callable[[], bool], seconds: float = 20) -> list[Answer]:
    """What comes until the condition holds; fails when it takes too long."""
    found: list[Answer] = []
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"{client.pending} messages have no answer"
        client.socket.poll(20)
        found.extend(client.receive(read_clock()))
    return found


def settle(client: TrackerClient, *messages: Durable) -> list[Answer]:
    client.submit_all(messages, read_clock())
    return answers(client, lambda: client.pending == 0)


def fill(client: TrackerClient, count: int, first: int = 0) -> None:
    """So many records, one after the other."""
    for number in range(first, first + count):
        settle(client, hole(number))
