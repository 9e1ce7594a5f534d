"""Tracker and workers as real processes, killed and stopped again and again under load: linearizable?

The history is what the workers' diaries say; the checker knows nothing of the tracker's code. 20 disasters by
default, 200 with `pytest -m soak tests/crash/test_linearizable.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash.linearizability import GatewayModel, Operation, is_linearizable
from tests.crash.place import ROOT, Place
from tools.lab import wait_until
from tracker.events import SessionOpened, TrackerStarted, WorkerLost

LEASE_S = 1.0
GATEWAYS = ("east", "north", "south", "west")
WORKERS = {f"{gateway}-{letter}": gateway for gateway in GATEWAYS for letter in "ab"}


@dataclass
class Fleet:
    """A tracker, and two workers for each of four gateways: one has it, the other wants it."""

    place: Place
    seed: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, worker: str) -> None:
        self.run(worker, self.place.endpoint)

    def run(self, worker: str, endpoint: str, *keys: str, within: Sequence[str] = ()) -> None:
        """Start it, with the words before its command that `within` are."""
        words = [endpoint, str(self.place.directory), worker, WORKERS[worker], str(self.seed), *keys]
        command = [*within, sys.executable, "-m", "tests.crash.port_worker", *words]
        self.processes[worker] = subprocess.Popen(command, cwd=ROOT)

    def restart(self, worker: str) -> None:
        self.processes[worker].kill()
        self.processes[worker].wait()
        self.start(worker)

    @contextmanager
    def stopped(self, *workers: str) -> Iterator[None]:
        for worker in workers:
            self.processes[worker].send_signal(signal.SIGSTOP)
        yield
        for worker in workers:
            self.processes[worker].send_signal(signal.SIGCONT)

    def end(self) -> None:
        """All finish what they are at."""
        (self.place.directory / "enough").touch()
        for worker, process in self.processes.items():
            assert process.wait(60) == 0, worker

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def history(self, gateway: str) -> list[Operation]:
        return [
            operation
            for worker, its in WORKERS.items()
            if its == gateway
            for operation in operations(worker, self.place.directory / f"{worker}.diary")
        ]


def operations(worker: str, diary: Path) -> list[Operation]:
    """What a diary says; a heartbeat that nobody answered changed nothing, and is left out."""
    found: list[Operation] = []
    begun: tuple[tuple[object, ...], int] | None = None

    def unheard() -> None:
        if begun is not None and begun[0][0] != "renew":
            found.append(Operation(worker, begun[0], None, begun[1], None))

    for line in diary.read_text().splitlines():
        entry = json.loads(line)
        if "action" in entry:
            unheard()
            begun = tuple(entry["action"]), entry["at"]
        elif "result" in entry:
            assert begun is not None, f"{worker}: an answer to nothing: {entry}"
            found.append(Operation(worker, begun[0], in_tuples(entry["result"]), begun[1], entry["at"]))
            begun = None
    unheard()
    return found


def in_tuples(result: list[object]) -> tuple[object, ...]:
    return tuple(frozenset(map(tuple, it)) if isinstance(it, list) else it for it in result)


# --- disasters --------------------------------------------------------------------------------------------


def kill_tracker(fleet: Fleet, chance: random.Random) -> None:
    fleet.place.kill()
    time.sleep(chance.uniform(0, 0.3))
    fleet.place.start()


def stop_tracker(fleet: Fleet, chance: random.Random) -> None:
    assert fleet.place.process is not None
    fleet.place.process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(1.2, 1.5) * LEASE_S)
    fleet.place.process.send_signal(signal.SIGCONT)


def kill_workers(fleet: Fleet, chance: random.Random) -> None:
    for worker in chance.sample(sorted(WORKERS), 3):
        fleet.restart(worker)


def stop_workers(fleet: Fleet, chance: random.Random) -> None:
    """Those that have the gateways, for longer than the lease: the others take them over."""
    with fleet.stopped(*(view.worker for view in fleet.place.status().sessions)):
        time.sleep(chance.uniform(1.2, 1.5) * LEASE_S)


def kill_tracker_while_workers_are_stopped(fleet: Fleet, chance: random.Random) -> None:
    with fleet.stopped(*(f"{gateway}-{chance.choice('ab')}" for gateway in GATEWAYS)):
        kill_tracker(fleet, chance)


DISASTERS: tuple[Callable[[Fleet, random.Random], None], ...] = (
    kill_tracker,
    stop_workers,
    kill_workers,
    kill_tracker_while_workers_are_stopped,
    stop_tracker,
)


@pytest.mark.parametrize(
    "cycles",
    [20, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
def test_whatever_dies_or_stops_every_answer_fits_one_order_of_events(place: Place, cycles: int) -> None:
    seed = int(os.environ.get("PORTHOLD_SEED", random.randrange(2**32)))
    chance = random.Random(seed)
    place.write_configuration(lease_s=LEASE_S)
    place.start()
    fleet = Fleet(place, seed)
    try:
        for worker in WORKERS:
            fleet.start(worker)
        wait_until(lambda: len(place.status().sessions) == len(GATEWAYS), "sessions of all gateways", 60)
        for cycle in range(cycles):
            DISASTERS[cycle % len(DISASTERS)](fleet, chance)
            time.sleep(chance.uniform(0.05, 0.2))
        fleet.end()
    finally:
        fleet.kill()
    assert place.kill(signal.SIGTERM)[0] == 0
    place.check()
    events = place.events()
    starts = 1 + sum(
        DISASTERS[it % 5] in (kill_tracker, kill_tracker_while_workers_are_stopped) for it in range(cycles)
    )
    assert sum(isinstance(event, TrackerStarted) for event in events) == starts
    assert any(isinstance(event, WorkerLost) for event in events)
    assert len({event.worker for event in events if isinstance(event, SessionOpened)}) == len(WORKERS)
    for gateway in GATEWAYS:
        history = fleet.history(gateway)
        done = [it.action[0] for it in history if it.result is not None]
        assert min(done.count(what) for what in ("open", "renew", "claim", "release")) >= cycles // 4, done
        assert is_linearizable(history, GatewayModel()), f"PORTHOLD_SEED={seed}: {gateway}"
