"""`status` shows what a running tracker says, and ends with 1 where none answers."""

import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner, Result

from tests.unit.tools.sample_log import PUBLIC, REFLECTOR, SERVICE, host, mac
from tools.cli import main
from tracker.client import Answer, TrackerClient
from tracker.clock import read_clock
from tracker.configuration import TrackerSection
from tracker.events import HolderNamed
from tracker.messages import ClaimGranted, ClaimPort, Durable, OpenSession, SessionGranted
from tracker.server import serve
from tracker.supervision import Supervision


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: the path of a local socket has at most 100 octets."""
    with tempfile.TemporaryDirectory(prefix="ph-status-") as path:
        yield Path(path)


def section_in(directory: Path) -> TrackerSection:
    return TrackerSection(
        endpoint=f"ipc://{directory}/tracker.ipc",
        reader_endpoint=f"ipc://{directory}/reader.ipc",
        operator_endpoint=f"ipc://{directory}/operator.ipc",
        log=directory / "log.sqlite",
    )


@contextmanager
def running_tracker(directory: Path) -> Iterator[TrackerSection]:
    section = section_in(directory)
    reading, writing = socket.socketpair()
    with reading, writing:
        supervision = Supervision(reading.fileno())
        thread = threading.Thread(target=serve, args=(section, supervision, lambda: section))
        thread.start()
        try:
            yield section
        finally:
            supervision.stopping = True
            writing.send(b"!")
            thread.join(20)
    assert not thread.is_alive()


def tell(client: TrackerClient, message: Durable) -> Answer:
    """The tracker's answer to a message."""
    sequence = client.submit(message, read_clock())
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        client.socket.poll(50)
        for answer in client.receive(read_clock()):
            if answer.sequence == sequence:
                return answer
        client.tick(read_clock())
    raise TimeoutError(message)


def hold_a_port(section: TrackerSection, outbox: Path) -> None:
    client = TrackerClient.open(section.endpoint, worker="gw1", outbox=outbox, now=read_clock())
    try:
        session = OpenSession("gw1", (PUBLIC,), (SERVICE,), "machine/boot", take_over=False, fence=False)
        opened = tell(client, session).reply
        assert isinstance(opened, SessionGranted)
        claim = ClaimPort(
            gateway="gw1",
            epoch=opened.epoch,
            public_address=PUBLIC,
            service="cuseeme",
            peer=None,
            holder=host(10),
            mac=mac(10),
            protocol=17,
            source_port=7648,
            destination=REFLECTOR,
            destination_port=7648,
            claim_timeout_ms=5000,
            observed_ns=time.time_ns(),
        )
        granted = tell(client, claim).reply
        assert isinstance(granted, ClaimGranted)
        tell(client, HolderNamed("gw1", opened.epoch, granted.binding.binding, "Bob\x1b[2J"))
    finally:
        client.close()


def status(*words: str) -> Result:
    return CliRunner().invoke(main, ["status", *words])


def test_status_shows_sessions_bindings_and_counters(directory: Path) -> None:
    with running_tracker(directory) as section:
        hold_a_port(section, directory / "outbox")
        config = directory / "porthold.toml"
        config.write_text(
            f'[tracker]\nendpoint = "{section.endpoint}"\nreader_endpoint = "{section.reader_endpoint}"\n'
        )
        result = status("--config", str(config))
        as_json = status("--endpoint", section.reader_endpoint, "--json")
    assert result.exit_code == 0
    for fact in ("run 1", "gw1", "machine/boot", "lease for", "192.0.2.2", "cuseeme", "192.168.1.10"):
        assert fact in result.stdout
    assert "02:00:00:00:00:0a" in result.stdout
    assert "Bob\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout
    assert as_json.exit_code == 0
    found = json.loads(as_json.stdout)
    assert found["answers"] is True
    (session,), (binding,) = found["status"]["sessions"], found["status"]["bindings"]
    assert (session["worker"], session["lost"], session["bindings"]) == ("gw1", False, 1)
    assert (binding["holder"], binding["resource"]["service"]) == ("192.168.1.10", "cuseeme")
    assert binding["since"].endswith("Z")
    assert found["status"]["counters"] == sorted(found["status"]["counters"], key=lambda item: item["name"])


def test_status_of_a_tracker_without_work_says_so(directory: Path) -> None:
    with running_tracker(directory) as section:
        result = status("--endpoint", section.reader_endpoint)
    assert result.exit_code == 0
    assert "no worker has come yet" in result.stdout
    assert "nobody holds a port" in result.stdout
    assert "no signing key: none of these records is protected by a checkpoint" in result.stdout


def test_no_tracker_is_1_and_says_what_to_do(directory: Path) -> None:
    result = status("--endpoint", f"ipc://{directory}/reader.ipc", "--timeout", "0.1")
    assert result.exit_code == 1
    assert f"No tracker answers at ipc://{directory}/reader.ipc" in result.stderr
    assert "start `porthold tracker`" in result.stderr
    assert result.stdout == ""
    silent = status("--endpoint", f"ipc://{directory}/reader.ipc", "--timeout", "0.1", "--json")
    assert silent.exit_code == 1
    assert json.loads(silent.stdout)["answers"] is False


def test_a_socket_where_nobody_answers_is_1(directory: Path) -> None:
    endpoint = f"ipc://{directory}/reader.ipc"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as deaf:
        deaf.bind(endpoint)
        result = status("--endpoint", endpoint, "--timeout", "0.1")
    assert result.exit_code == 1
    assert "no answer in 0.1 s" in result.stderr


def test_garbage_for_an_answer_is_1_and_no_crash(directory: Path) -> None:
    endpoint = f"ipc://{directory}/reader.ipc"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as odd:
        odd.bind(endpoint)

        def answer_garbage() -> None:
            if odd.poll(5000):
                identity, *_ = odd.recv_multipart()
                odd.send_multipart([identity, b"garbage"])

        thread = threading.Thread(target=answer_garbage)
        thread.start()
        result = status("--endpoint", endpoint)
        thread.join()
    assert result.exit_code == 1
    assert "no tracker of this version" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--endpoint", "tcp://127.0.0.1:1"), "ipc:///PATH"),
        (("--config", "/nowhere/porthold.toml"), "/nowhere/porthold.toml: No such file"),
        (("--config", "x", "--endpoint", "ipc:///x"), "give one of them"),
        (("--timeout", "0"), "--timeout"),
    ],
)
def test_status_refuses_wrong_use(words: tuple[str, ...], said: str) -> None:
    result = status(*words)
    assert result.exit_code == 2
    assert said in result.stderr
