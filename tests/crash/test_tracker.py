"""The tracker as a process of its own, killed, starved and shouted at: what it acknowledged is in the log."""

import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
import zmq

from eventlog.store import LogReader
from tests.crash.place import ROOT, Place, answers, claim, hole, opening, settle
from tracker.audit import outages
from tracker.clock import read_clock
from tracker.events import (
    KernelStateRestored,
    PortBound,
    RecordsMissed,
    ServiceDefined,
    SessionOpened,
    SnapshotTaken,
    TrackerStarted,
    TrackerStopped,
    WorkerLost,
)
from tracker.messages import (
    Acknowledged,
    Body,
    ClaimGranted,
    Durable,
    GetStatus,
    Heartbeat,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    ReplyBody,
    Request,
    SessionGranted,
    Status,
    Volatile,
    decode_reply,
    encode_request,
)


def test_killed_under_load_again_and_again_it_loses_nothing_it_acknowledged(place: Place) -> None:
    place.start()
    client = place.client()
    (first,) = settle(client, opening())
    assert isinstance(first.reply, SessionGranted)
    epoch = first.reply.epoch
    replies: dict[int, object] = {}
    sent = 0
    for _ in range(5):
        end = time.monotonic() + random.uniform(0.1, 0.4)
        while time.monotonic() < end:
            if client.pending < 500:
                client.submit_all([hole(sent), claim(epoch, sent)], read_clock())
                sent += 1
            replies.update((answer.sequence, answer.reply) for answer in client.receive(read_clock()))
        place.kill()
        place.start()
    left = answers(client, lambda: client.pending == 0)
    replies.update((answer.sequence, answer.reply) for answer in left)
    client.close()
    place.kill()
    events = place.events()
    logged = [event.lost_since_ns for event in events if isinstance(event, KernelStateRestored)]
    assert logged == list(range(sent))
    bound = {event.binding for event in events if isinstance(event, PortBound)}
    granted = [reply.binding.binding for reply in replies.values() if isinstance(reply, ClaimGranted)]
    assert set(granted) == bound
    assert len(granted) == len(bound) == sent
    assert not any(isinstance(event, RecordsMissed) for event in events)
    with LogReader.open(place.log) as log:
        assert [it.kind for it in outages(log) if it.kind != "kernel-state-lost"] == ["tracker-down"] * 5
    place.check()


def test_a_repeat_gets_the_same_bytes_from_the_next_tracker(place: Place) -> None:
    place.start()
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.set(zmq.LINGER, 0)
        raw.connect(place.endpoint)

        def ask(sequence: int, body: Durable) -> bytes:
            raw.send(encode_request(Request("w1", 7, sequence, 0, 0, 5, body)))
            assert raw.poll(5000)
            frame: bytes = raw.recv()
            return frame

        first = [ask(1, opening()), ask(2, claim(1, 5)), ask(3, claim(1, 5))]
        place.kill()
        place.start()
        assert [ask(1, opening()), ask(2, claim(1, 5)), ask(3, claim(1, 5))] == first
    assert sum(isinstance(event, PortBound) for event in place.events()) == 1


WORKER = """
import sys
from contextlib import closing
from pathlib import Path
from tracker.client import TrackerClient
from tracker.clock import read_clock
from tracker.events import KernelStateRestored
endpoint, outbox, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
client = TrackerClient.open(endpoint, worker="w1", outbox=outbox, now=read_clock())
while True:
    if client.pending < 500:
        client.submit(KernelStateRestored("gw", 1, "test", number, number), read_clock())
        print(number, flush=True)
        number += 1
    client.receive(read_clock())
"""


def test_a_worker_killed_under_load_has_said_all_it_submitted_once(place: Place) -> None:
    place.start()
    outbox = str(place.directory / "w1.outbox")
    submitted = -1
    for _ in range(3):
        arguments = [place.endpoint, outbox, str(submitted + 1)]
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        first = worker.stdout.readline()
        time.sleep(0.4)
        worker.kill()
        said = (first + worker.communicate(timeout=10)[0]).split()
        submitted = int(said[-1])
    client = place.client()
    found = answers(client, lambda: client.pending == 0)
    assert all(answer.inherited and isinstance(answer.reply, Acknowledged) for answer in found)
    client.close()
    logged = [event.lost_since_ns for event in place.events() if isinstance(event, KernelStateRestored)]
    # Killed between the disk and the print, a worker has submitted one more than it said, and says it anew.
    assert sorted(set(logged)) == list(range(max(logged) + 1))
    assert max(logged) in (submitted, submitted + 1)
    assert len(logged) - len(set(logged)) <= 3
    assert not any(isinstance(event, RecordsMissed) for event in place.events())


def test_a_lost_outbox_is_a_hole_in_the_log(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening(), hole(1))
    client.close()
    for path in place.directory.glob("w1.outbox*"):
        path.unlink()
    client = place.client()
    settle(client, opening())
    client.close()
    (missed,) = [event for event in place.events() if isinstance(event, RecordsMissed)]
    assert (missed.worker, missed.first_sequence, missed.last_sequence) == ("w1", 3, None)


def test_an_older_copy_of_the_log_says_what_it_lacks(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening(), hole(1))
    place.kill(signal.SIGTERM)
    copy = place.directory / "copy"
    shutil.copy(place.log, copy)
    place.start()
    settle(client, hole(2), hole(3))
    place.kill(signal.SIGTERM)
    for path in place.directory.glob("log.sqlite*"):
        path.unlink()
    shutil.copy(copy, place.log)
    place.start()
    settle(client, hole(4))
    client.close()
    (missed,) = [event for event in place.events() if isinstance(event, RecordsMissed)]
    assert (missed.first_sequence, missed.last_sequence) == (3, 4)
    place.check()


def noise(seed: int) -> Iterator[list[bytes]]:
    """Frames that are no messages."""
    chance = random.Random(seed)
    good = encode_request(Request("w9", 7, 1, 0, 0, 5, opening()))
    for _ in range(400):
        yield [chance.randbytes(chance.randrange(200))]
        yield [good[: chance.randrange(len(good))]]
        yield [good[:1] + bytes([chance.randrange(2, 128)]) + good[2:]]
        yield [good, good]
    yield [b"\x00" * 100_000]
    yield [msgpack.packb([1, 3, {"a": 1.5}] * 9)]
    yield [b"\x91" * 60_000]


def test_garbage_is_counted_and_dropped_while_others_are_served(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.set(zmq.LINGER, 0)
        raw.connect(place.endpoint)
        sent = 0
        for parts in noise(1):
            raw.send_multipart(parts)
            sent += 1
            if sent % 200 == 0:
                settle(client, hole(sent))
        counted = 0
        end = time.monotonic() + 10
        while counted < sent and time.monotonic() < end:
            counters = {it.name: it.value for it in place.status().counters}
            counted = sum(value for name, value in counters.items() if name.startswith("garbage"))
        assert counted == sent
        raw.send(b"\x00" * 2_000_000)  # libzmq hangs up on this one
    speaker = socket.socket(socket.AF_UNIX)
    speaker.connect(place.endpoint.removeprefix("ipc://"))
    with speaker:
        speaker.sendall(os.urandom(4096))
        settle(client, hole(0))
    client.close()
    code, said = place.kill(signal.SIGTERM)
    assert code == 0
    assert said.count("not taken") <= 2
    place.check()


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    disk = place.directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "porthold-test", disk], check=True)
    place.log = disk / "log.sqlite"
    place.write_configuration()
    yield disk
    if place.process is not None:
        place.kill()
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_it_with_its_reason_and_with_room_it_goes_on(place: Place, small_disk: Path) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    (small_disk / "ballast").write_bytes(b"\x00" * 1_500_000)
    acknowledged: list[int] = []
    sent = 0
    end = time.monotonic() + 30
    assert place.process is not None
    while place.process.poll() is None:
        assert time.monotonic() < end
        client.submit_all([hole(sent + index) for index in range(20)], read_clock())
        sent += 20
        client.socket.poll(20)
        for answer in client.receive(read_clock()):
            assert isinstance(answer.request, KernelStateRestored)
            acknowledged.append(answer.request.lost_since_ns)
    code, said = place.ended()
    assert code == 1
    assert "the log can't be written, so this ends" in said
    assert "full" in said
    assert "Traceback" not in said
    (small_disk / "ballast").unlink()
    place.start()
    answers(client, lambda: client.pending == 0)
    client.close()
    logged = [event.lost_since_ns for event in place.events() if isinstance(event, KernelStateRestored)]
    assert logged == list(range(sent))
    assert acknowledged == list(range(len(acknowledged)))
    place.check()


def test_a_tracker_that_was_stopped_for_longer_than_the_lease_holds_it_against_nobody(place: Place) -> None:
    place.configuration.write_text(place.configuration.read_text() + "lease_s = 1.0\n")
    place.start()
    assert place.process is not None
    client = place.client()
    settle(client, opening())
    end = time.monotonic() + 2.6
    for number in range(1000):
        if number == 5:
            place.process.send_signal(signal.SIGSTOP)
        elif number == 20:
            place.process.send_signal(signal.SIGCONT)
        client.send(Heartbeat("gw", 1, number), read_clock())
        client.receive(read_clock())
        time.sleep(0.1)
        if time.monotonic() > end:
            break
    client.close()
    assert [type(event) for event in place.events()] == [TrackerStarted, SessionOpened, ServiceDefined]
    time.sleep(1.6)
    assert isinstance(place.events()[-1], WorkerLost)


@pytest.mark.parametrize("damage", ["UPDATE log_notes SET value = x'00'", "DELETE FROM log_notes"])
def test_without_its_last_sign_of_life_the_outage_is_counted_from_the_last_record(
    place: Place, damage: str
) -> None:
    place.start()
    place.kill()
    with LogReader.open(place.log) as log:
        last_ns = log.last_wall_ns
    with closing(sqlite3.connect(place.log, isolation_level=None)) as forged:
        forged.execute(damage)
    place.start()
    started = [event for event in place.events() if isinstance(event, TrackerStarted)]
    assert [it.previous_alive_ns for it in started] == [None, last_ns]


def test_sigterm_is_answered_with_a_last_record_and_zero(place: Place) -> None:
    place.start()
    code, said = place.kill(signal.SIGTERM)
    assert code == 0
    assert said.endswith(" porthold tracker: stopped\n")
    started, stopped, taken = place.events()
    assert isinstance(started, TrackerStarted)
    assert isinstance(taken, SnapshotTaken)
    assert (started.run, started.previous_alive_ns, stopped) == (1, None, TrackerStopped(1))
    assert not (place.directory / "tracker.ipc").exists()


def test_a_second_tracker_on_the_same_log_is_refused_and_told_who_has_it(place: Place) -> None:
    place.start()
    assert place.process is not None
    second = place.begin()
    _, said = second.communicate(timeout=20)
    assert second.returncode == 2
    assert f"process {place.process.pid}" in said
    assert "Traceback" not in said
    assert place.status().run == 1


def said_by(endpoint: str, *bodies: Body) -> list[ReplyBody]:
    """What each is answered that somebody called w1 says at this endpoint."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.set(zmq.LINGER, 0)
        raw.connect(endpoint)
        answered = []
        for body in bodies:
            sequence = 0 if isinstance(body, Volatile) else 1
            raw.send(encode_request(Request("w1", 7, sequence, 0, 0, 5, body)))
            assert raw.poll(20_000)
            answered.append(decode_reply(raw.recv()).body)
        return answered


def test_each_role_has_a_socket_of_its_own_mode_and_what_others_say_there_is_refused(place: Place) -> None:
    place.write_configuration(operator_mode="0660", operator_group="daemon")
    place.start()
    modes = {path.stem: path.stat().st_mode & 0o777 for path in place.directory.glob("*.ipc")}
    assert modes == {"tracker": 0o600, "reader": 0o660, "operator": 0o660}
    assert (place.directory / "operator.ipc").group() == "daemon"
    asked, ordered, commanded = GetStatus(), MakeCheckpoint(), opening()
    status, refused, not_opened = said_by(place.reader_endpoint, asked, ordered, commanded)
    assert isinstance(status, Status)
    assert refused == NotAllowed("MakeCheckpoint is for operator, unix:0 is reader")
    assert not_opened == NotAllowed("OpenSession is for worker, unix:0 is reader")
    status, refused, not_opened = said_by(place.operator_endpoint, asked, ordered, commanded)
    assert isinstance(status, Status)
    assert refused == NoCheckpoint("no key signs this log")
    assert not_opened == NotAllowed("OpenSession is for worker, unix:0 is operator")
    opened, refused, not_told = said_by(place.endpoint, commanded, ordered, asked)
    assert isinstance(opened, SessionGranted)
    assert refused == NotAllowed("MakeCheckpoint is for operator, unix:0 is worker")
    assert not_told == NotAllowed("GetStatus is for operator and reader, unix:0 is worker")
    assert {it.name: it.value for it in place.status().counters}["refused: role"] == 5
    code, said = place.kill(signal.SIGTERM)
    assert (code, said.count("not taken: refused: role")) == (0, 1)
    assert sum(isinstance(event, SessionOpened) for event in place.events()) == 1


def test_a_dead_tracker_s_sockets_are_made_anew_and_what_is_no_socket_stays(place: Place) -> None:
    place.start()
    place.kill()
    assert (place.directory / "operator.ipc").is_socket()
    place.start()
    place.kill(signal.SIGTERM)
    (place.directory / "operator.ipc").write_text("precious")
    _, said = place.begin().communicate(timeout=20)
    assert "operator.ipc is there, and is no socket" in said
    assert (place.directory / "operator.ipc").read_text() == "precious"


def test_a_socket_where_others_could_put_theirs_is_refused(place: Place) -> None:
    place.directory.chmod(0o777)
    refused = place.begin()
    _, said = refused.communicate(timeout=20)
    assert refused.returncode == 2
    assert f"mend it: chmod go-w {place.directory}" in said


def test_a_second_tracker_at_the_same_sockets_is_refused(place: Place) -> None:
    place.start()
    first = place.process
    assert first is not None
    place.log = place.directory / "other.sqlite"
    place.write_configuration()
    second = place.begin()
    _, said = second.communicate(timeout=20)
    assert second.returncode == 2
    assert f"tracker.ipc is the socket of process {first.pid}" in said
    assert place.status().run == 1


@pytest.mark.parametrize("text", ['[tracker]\nlog = "relative"', "[tracker]\nnonsense = 1"])
def test_a_wrong_configuration_is_refused_at_start(place: Place, text: str) -> None:
    place.configuration.write_text(text)
    refused = place.begin()
    _, said = refused.communicate(timeout=20)
    assert refused.returncode == 2
    assert f"{place.configuration}: tracker." in said
    assert "Traceback" not in said
