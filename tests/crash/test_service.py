"""The tracker as a service: what its manager hears, SIGHUP, SIGTERM, and its lines on stderr."""

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from eventlog.note import SigningKey, write_key_file
from eventlog.reading import LogReader
from tests.crash.place import Place, answers, hole, opening, settle
from tools.lab import wait_until
from tracker.clock import read_clock
from tracker.events import KernelStateRestored, TrackerStopped


class Manager:
    """A service manager: its socket, and what was said there."""

    def __init__(self, place: Place) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = place.directory / "notify"
        self._socket.bind(str(path))
        place.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        self.heard: list[str] = []
        self._awaited = 0

    def listen(self, seconds: float) -> list[str]:
        """What comes in so many seconds."""
        before = len(self.heard)
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except TimeoutError:
                break
        return self.heard[before:]

    def await_word(self, word: str, seconds: float = 20) -> str:
        """The next datagram that has the word, behind the one before it that was awaited."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for index, said in enumerate(self.heard[self._awaited :], start=self._awaited + 1):
                if word in said:
                    self._awaited = index
                    return said
            self.listen(0.05)
        raise AssertionError(f"no {word}, only {self.heard[self._awaited :]}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(place: Place) -> Iterator[Manager]:
    with closing(Manager(place)) as made:
        yield made


def test_the_manager_hears_when_it_is_ready_how_it_stands_and_that_it_ends(
    place: Place, manager: Manager
) -> None:
    place.process = place.begin()
    assert manager.await_word("READY=1") == "READY=1\nSTATUS=0 gateways, 0 bindings, 1 records"
    client = place.client()
    settle(client, opening())
    client.close()
    manager.await_word("STATUS=1 gateways, 0 bindings, 3 records")
    code, _ = place.kill(signal.SIGTERM)
    assert code == 0
    manager.await_word("STOPPING=1")


def test_signs_of_life_come_from_the_loop_and_stop_with_it(place: Place, manager: Manager) -> None:
    place.process = place.begin()
    manager.await_word("READY=1")
    manager.await_word("WATCHDOG=1")
    place.process.send_signal(signal.SIGSTOP)
    manager.listen(0.2)  # what was under way
    assert "WATCHDOG=1" not in manager.listen(1.5)
    place.process.send_signal(signal.SIGCONT)
    assert "WATCHDOG=1" in manager.listen(2)
    client = place.client()
    with closing(sqlite3.connect(place.log, isolation_level=None)) as writer:
        # The process lives, its loop does not come round: SQLite waits for this lock within one call.
        writer.execute("BEGIN IMMEDIATE")
        client.submit(opening(), read_clock())
        manager.listen(0.8)
        assert "WATCHDOG=1" not in manager.listen(1.0)
        writer.execute("ROLLBACK")
    assert "WATCHDOG=1" in manager.listen(2)
    answers(client, lambda: client.pending == 0)
    client.close()


def test_hangup_brings_a_new_configuration_and_names_what_needs_a_restart(
    place: Place, manager: Manager
) -> None:
    write_key_file(place.directory / "key", SigningKey.generate("test/log"))
    place.write_configuration(signing_key=place.directory / "key", checkpoint_every_s=3600.0)
    place.process = place.begin()
    manager.await_word("READY=1")
    client = place.client()
    settle(client, opening())
    with LogReader.open(place.log) as log:
        assert log.latest_checkpoint() is None
    place.write_configuration(signing_key=place.directory / "key", checkpoint_every_records=1, lease_s=77.0)
    place.process.send_signal(signal.SIGHUP)
    manager.await_word("RELOADING=1")
    manager.await_word("READY=1")
    settle(client, hole(1))
    client.close()
    wait_until(lambda: checkpoint_size(place) >= 4, "a checkpoint by the new configuration", 10)
    code, said = place.kill(signal.SIGTERM)
    assert code == 0
    assert "only a restart brings it: tracker.lease_s" in said
    assert "configuration read again: tracker.checkpoint_every_records, tracker.checkpoint_every_s" in said


def checkpoint_size(place: Place) -> int:
    with LogReader.open(place.log) as log:
        stored = log.latest_checkpoint()
        return 0 if stored is None else stored.size


def test_a_bad_new_configuration_is_refused_and_the_old_one_stays(place: Place, manager: Manager) -> None:
    place.process = place.begin()
    manager.await_word("READY=1")
    place.configuration.write_text("[tracker]\nlog = 'relative'\nnonsense = 1\n")
    place.process.send_signal(signal.SIGHUP)
    manager.await_word("READY=1")
    assert place.status().run == 1
    code, said = place.kill(signal.SIGTERM)
    assert code == 0
    assert said.count("not reloaded, the old configuration stays") == 2
    assert "tracker.nonsense: is not known" in said


def test_asked_to_end_it_first_answers_what_has_come(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    assert place.process is not None
    place.process.send_signal(signal.SIGSTOP)
    client.submit_all([hole(number) for number in range(100)], read_clock())
    place.process.send_signal(signal.SIGTERM)
    place.process.send_signal(signal.SIGCONT)
    answers(client, lambda: client.pending == 0)
    client.close()
    code, _ = place.ended()
    assert code == 0
    events = place.events()
    last = max(index for index, event in enumerate(events) if isinstance(event, KernelStateRestored))
    assert [index for index, event in enumerate(events) if isinstance(event, TrackerStopped)] > [last]
    place.check()


def test_asked_twice_it_ends_at_once(place: Place) -> None:
    place.start()
    assert place.process is not None
    with closing(sqlite3.connect(place.log, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # its last record can't be written now
        place.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        assert place.process.poll() is None
        began_s = time.monotonic()
        code, _ = place.kill(signal.SIGTERM)
        assert code == -signal.SIGTERM
        assert time.monotonic() - began_s < 2
    place.check()


def test_its_lines_are_json_when_programs_read_them_and_have_no_secret(place: Place) -> None:
    write_key_file(place.directory / "key", SigningKey.generate("test/log"))
    place.write_configuration(signing_key=place.directory / "key")
    place.options = ("--log-format", "json")
    place.start()
    client = place.client()
    settle(client, opening())
    client.close()
    code, said = place.kill(signal.SIGTERM)
    assert code == 0
    lines = [json.loads(line) for line in said.splitlines()]
    events = [line["event"] for line in lines]
    assert [
        name for name in events if name in ("started", "session-opened", "service-defined", "stopped")
    ] == [
        "started",
        "session-opened",
        "service-defined",
        "stopped",
    ]
    [opened] = [line for line in lines if line["event"] == "session-opened"]
    assert (opened["gateway"], opened["worker"], opened["epoch"]) == ("gw", "w1", 1)
    secret = (place.directory / "key").read_text().strip().split("+", 4)[4]  # base64 has "+" too
    assert secret not in said
