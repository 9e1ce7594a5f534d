"""Readiness, signs of life and signals, over a real notification socket."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracker.supervision import Supervision

SECOND_NS = 1_000_000_000


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind("\0porthold-test-" + str(os.getpid()))
        made.settimeout(5)
        yield made


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    name: bytes = manager.getsockname()
    return {"NOTIFY_SOCKET": "@" + name[1:].decode(), **more}


def waiting(manager: socket.socket) -> list[str]:
    """All datagrams that have come."""
    manager.setblocking(False)
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


def test_a_manager_hears_of_begin_reload_and_end(manager: socket.socket) -> None:
    with Supervision.of_this_process(environment(manager)) as supervision:
        supervision.ready("all well")
        supervision.reloading()
        supervision.ready("all well")
        supervision.end("ending")
    begun, reloading, again, ending = waiting(manager)
    assert begun == again == "READY=1\nSTATUS=all well"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(reloading.rpartition("=")[2]) > 0
    assert ending == "STOPPING=1\nSTATUS=ending"


def test_signs_of_life_come_at_half_the_time_that_the_manager_waits(manager: socket.socket) -> None:
    with Supervision.of_this_process(environment(manager, WATCHDOG_USEC="4000000")) as supervision:
        for second in range(1, 8):
            supervision.turned(second * SECOND_NS)
    assert waiting(manager) == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
def test_nobody_who_did_not_ask_for_signs_of_life_gets_any(
    manager: socket.socket, more: dict[str, str]
) -> None:
    with Supervision.of_this_process(environment(manager, **more)) as supervision:
        supervision.turned(9 * SECOND_NS)
    assert waiting(manager) == []


def test_a_status_is_said_once(manager: socket.socket) -> None:
    with Supervision.of_this_process(environment(manager)) as supervision:
        for text in ("one", "one", "two"):
            supervision.turned(SECOND_NS, text)
    assert waiting(manager) == ["STATUS=one", "STATUS=two"]


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    with Supervision.of_this_process(environment(manager)) as supervision:
        for number in range(100_000):
            supervision.turned(SECOND_NS, str(number))
    assert 0 < len(waiting(manager)) < 100_000


def test_without_a_manager_nothing_is_said() -> None:
    with Supervision.of_this_process({"WATCHDOG_USEC": "1000"}) as supervision:
        supervision.ready("all well")
        supervision.turned(SECOND_NS, "still")


def test_hangup_asks_for_a_reload_once() -> None:
    with Supervision.of_this_process({}) as supervision:
        assert not supervision.hear()
        os.kill(os.getpid(), signal.SIGHUP)
        assert supervision.hear()
        assert not supervision.hear()
        assert not supervision.stopping


def test_afterwards_the_process_has_its_signals_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with Supervision.of_this_process({}):
        pass
    assert [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


HANGING = """
import time
from tracker.supervision import Supervision
with Supervision.of_this_process({}) as supervision:
    print("begun", flush=True)
    while not supervision.stopping:
        time.sleep(0.01)
    print("stopping", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    words = [sys.executable, "-c", HANGING]
    with subprocess.Popen(words, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == -number
