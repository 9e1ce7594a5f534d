"""A running porthold in a laboratory: tracker and rewriter as the processes that users start.

Rule 1: nothing is faked: what is asked of kernel, tracker and log is asked the way an operator could.
Rule 2: every wait has an end, and its failure says what the daemons said last.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from eventlog.reading import LogReader
from eventlog.verify import verify
from rewriter.cuseeme import (
    Message,
)
from tests.lab.traffic import SERVICE_PORT, open_continue
from tools.lab import Actor, Lab, LabError, wait_until
from tracker.audit import Holding, holds
from tracker.client import ask_status
from tracker.events import Event, from_record
from tracker.messages import Status
from tracker.projections import PROJECTIONS

PUBLIC: Final = "192.0.2.2"
REFLECTOR: Final = "203.0.113.10"
CALLER: Final = "198.51.100.20"
ANN: Final = "192.168.1.10"
BOB: Final = "192.168.1.11"
PATIENCE_S: Final = 6.0
STARTED_S: Final = 20.0
"""Two processors are shared with whatever else runs: a start may take long, and that is no fault."""

CONFIGURATION: Final = """\
[tracker]
endpoint = "ipc://{directory}/tracker.ipc"
reader_endpoint = "ipc://{directory}/reader.ipc"
operator_endpoint = "ipc://{directory}/operator.ipc"
log = "{directory}/log.sqlite"
{tracker}
[gateway]
name = "gateway-1"
lan = ["lan0"]
wan = "wan0"
state_directory = "{directory}"
{gateway}
[services.cuseeme]
profile = "cuseeme"
{service}
"""

EventType = TypeVar("EventType", bound=Event)


class QueueLine(NamedTuple):
    """What /proc/net/netfilter/nfnetlink_queue says of a queue; `packets`: how many ever came."""

    waiting: int
    dropped: int
    packets: int


@dataclass
class Site:
    """One gateway with its tracker, in a lab of its own; `settings`: the configuration's lines by section.

    `wrappers`: by daemon, the words that start it; `environment`: what daemons find in theirs besides.

    It may serve one test after another: what is counted and logged is told as of the last `begin_test`.
    """

    lab: Lab
    directory: Path
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    wrappers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    tracker: subprocess.Popen[bytes] | None = None
    rewriter: subprocess.Popen[bytes] | None = None
    open_until_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    began_ns: int = 0
    first_record: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    queued: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = {
            section: "".join(
                f"{key} = {json.dumps(value)}\n" for key, value in self.settings.get(section, {}).items()
            )
            for section in ("tracker", "gateway", "service")
        }
        self.configuration.write_text(CONFIGURATION.format(directory=self.directory, **texts))

    @property
    def configuration(self) -> Path:
        """The one file of both processes."""
        return self.directory / "porthold.toml"

    @property
    def program(self) -> Path:
        """The command that users run."""
        return Path(sys.executable).with_name("porthold")

    # --- processes -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start both; returns when the rewriter has the gateway."""
        self.start_tracker()
        self.start_rewriter()

    def start_tracker(self) -> None:
        """Returns when it answers."""
        self.tracker = self._daemon(None, "tracker")
        self._await(lambda: self._status() is not None, self.tracker, "tracker", "a tracker that answers")

    def start_rewriter(self, *options: str, wait: bool = True) -> None:
        """`wait`: return when the tracker has granted it the gateway."""
        epochs = self.said("rewriter").count("bindings adopted")
        self.rewriter = self._daemon("gateway", "rewriter", *options)
        if wait:
            self._await(
                lambda: self.said("rewriter").count("bindings adopted") > epochs,
                self.rewriter,
                "rewriter",
                "a rewriter with a gateway",
            )

    def start_standby(
        self, *options: str, place: str = "gateway", waits: bool = True
    ) -> subprocess.Popen[bytes]:
        """A second worker of the same gateway, called `standby`; it writes what `said("standby")` reads."""
        other = self.directory / "standby.toml"
        own = self.configuration.read_text().replace("standby = true\n", "")
        its = f'name = "gateway-1"\nworker = "standby"\nstandby = {json.dumps(waits)}'
        other.write_text(own.replace('name = "gateway-1"', its))
        with (self.directory / "standby.log").open("ab") as output:
            words = [str(self.program), "rewriter", "--config", str(other), *options]
            return self.lab.start(place, words, stdout=output, stderr=output)

    def await_said(self, name: str, words: str, times: int = 1, timeout_s: float = STARTED_S) -> None:
        """Wait until a daemon has written these words so often."""
        try:
            wait_until(lambda: self.said(name).count(words) >= times, f"{name} says {words!r}", timeout_s)
        except LabError as error:
            raise LabError(f"{error}; it said: {self.said(name)}") from error

    def _daemon(self, place: str | None, command: str, *options: str) -> subprocess.Popen[bytes]:
        wrapper = self.wrappers.get(command, ())
        with (self.directory / f"{command}.log").open("ab") as output:
            return self.lab.start(
                place,
                [*wrapper, str(self.program), command, "--config", str(self.configuration), *options],
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
            )

    def _await(
        self, condition: Callable[[], bool], daemon: subprocess.Popen[bytes], name: str, what: str
    ) -> None:
        def ready() -> bool:
            if daemon.poll() is not None:
                raise LabError(f"{name} ended with {daemon.returncode}: {self.said(name)}")
            return condition()

        try:
            wait_until(ready, what, STARTED_S)
        except LabError as error:
            raise LabError(f"{error}; it said: {self.said(name)}") from error

    def said(self, name: str) -> str:
        """What a daemon has written so far, all its runs together."""
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        daemon = self.daemon(name)
        daemon.kill()
        daemon.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.daemon(name).send_signal(number)

    def daemon(self, name: str) -> subprocess.Popen[bytes]:
        daemon = self.tracker if name == "tracker" else self.rewriter
        if daemon is None:
            raise LabError(f"{name} was never started")
        return daemon

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """The daemon is stopped (SIGSTOP) in the block."""
        self.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(name, signal.SIGCONT)

    def begin_test(self) -> None:
        """From here on all counts begin anew."""
        self.counted, self.queued = {}, {}
        self.counted, self.queued = self.counters(), {n: q.packets for n, q in self.queues().items()}
        with self.reader() as reader:
            self.first_record = reader.size
        self.began_ns = time.time_ns()

    def end_test(self) -> bool:
        """Close what a test opened, end what it started, free the port; False: not fit for another."""
        self.open_until_end.close()
        for process in self.lab._processes:
            if process not in (self.tracker, self.rewriter) and process.poll() is None:
                process.kill()
                process.wait()
        if any(self.daemon(name).poll() is not None for name in ("tracker", "rewriter")):
            return False
        deadline_s = time.monotonic() + 4
        while self.views() != ([], [], []) and time.monotonic() < deadline_s:
            self._hang_up()
            time.sleep(0.1)
        return self.views() == ([], [], [])

    def _hang_up(self) -> None:
        """Say goodbye in the holder's name to everybody outside."""
        for address in self.holders():
            place = next(place for place, known in self.lab.addresses.items() if known == address)
            with self.udp_socket(place) as holder:
                for peer in (REFLECTOR, CALLER):
                    holder.sendto(open_continue(address, message=Message.CLOSE), (peer, SERVICE_PORT))

    def assert_running(self) -> None:
        for name in ("tracker", "rewriter"):
            assert self.daemon(name).poll() is None, f"{name} ended: {self.said(name)}"

    # --- the kernel ----------------------------------------------------------------------------------

    def nft(self, *words: str) -> list[dict[str, Any]]:
        """What `nft -j` lists."""
        listed = self.lab.run("gateway", ["nft", "-j", *words], check=False)
        found: list[dict[str, Any]] = json.loads(listed.stdout)["nftables"] if listed.returncode == 0 else []
        return found

    def counters(self) -> dict[str, int]:
        """Packets by named counter of our table."""
        items = [
            item["counter"]
            for item in self.nft("list", "counters", "table", "ip", "porthold")
            if "counter" in item
        ]
        ours = [item for item in items if item["table"] == "porthold"]
        return {item["name"]: item["packets"] - self.counted.get(item["name"], 0) for item in ours}

    def elements(self, kind: str, name: str) -> list[Any]:
        """The elements of a set or map of our table, timeouts stripped."""
        items = [item[kind] for item in self.nft("list", kind, "ip", "porthold", name) if kind in item]
        return [_without_timeout(element) for item in items for element in item.get("elem", [])]

    def holders(self, service: str = "cuseeme") -> list[str]:
        """Who holds the service in the kernel."""
        return sorted(str(element) for element in self.elements("set", f"{service}_holders"))

    def queues(self) -> dict[int, QueueLine]:
        """The gateway's NFQUEUEs by number (columns: nfnetlink_queue.c, seq_show)."""
        listed = self.lab.run("gateway", ["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
        rows = [[int(word) for word in line.split()] for line in listed.splitlines()]
        return {
            row[0]: QueueLine(row[2], row[5] + row[6], row[7] - self.queued.get(row[0], 0)) for row in rows
        }

    def claims_queue(self) -> QueueLine:
        """The queue of this epoch's claims: the lower number of the two."""
        queues = self.queues()
        return queues[min(queues)]

    def talks_queue(self) -> QueueLine:
        queues = self.queues()
        return queues[max(queues)]

    def connections(self, *words: str) -> list[str]:
        """Lines of conntrack that hold all these words."""
        listed = self.lab.run("gateway", ["conntrack", "-L"]).stdout.splitlines()
        return [line for line in listed if all(re.search(rf"{re.escape(word)}\b", line) for word in words)]

    # --- tracker and log -----------------------------------------------------------------------------

    def _status(self) -> Status | None:
        return ask_status(f"ipc://{self.directory}/reader.ipc", 0.5)

    def reader(self) -> LogReader:
        return LogReader.open(self.directory / "log.sqlite")

    def all_events(self) -> list[Event]:
        """The log's events, in order."""
        with self.reader() as reader:
            records = [entry.record for entry in reader.read(self.first_record) if entry.record is not None]
        return [from_record(record) for record in records]

    def events(self, kind: type[EventType]) -> list[EventType]:
        """Those of one kind."""
        return [event for event in self.all_events() if isinstance(event, kind)]

    def holdings(self) -> list[Holding]:
        """The bindings of the log, oldest first."""
        with self.reader() as reader:
            found = [holding for holding in holds(reader) if holding.since_ns >= self.began_ns]
        return sorted(found, key=lambda holding: holding.binding)

    def assert_log_clean(self) -> None:
        with self.reader() as reader:
            report = verify(reader, PROJECTIONS)
        assert report.clean, report.faults

    def views(self) -> tuple[list[str], list[str], list[str]]:
        """Who holds the service, as kernel, tracker and log have it."""
        status = self._status()
        told = [] if status is None else sorted(str(IPv4Address(view.holder)) for view in status.bindings)
        logged = sorted(str(IPv4Address(row.holder)) for row in self.holdings() if row.until_ns is None)
        return self.holders(), told, logged

    def await_holders(self, *addresses: str, timeout_s: float = 15.0) -> None:
        """Wait until kernel, tracker and log agree that exactly these hold it."""
        wanted = sorted(addresses)
        try:
            wait_until(lambda: self.views() == (wanted, wanted, wanted), f"holders {wanted}", timeout_s)
        except LabError as error:
            views = self.views()
            counted = {name: packets for name, packets in self.counters().items() if packets}
            said = f"{counted}, {self.queues()}; {self.said('rewriter')}; {self.said('tracker')}"
            raise LabError(f"{error}: kernel, tracker, log say {views}; {said}") from error

    # --- packets -------------------------------------------------------------------------------------

    def udp_socket(self, place: str, port: int = SERVICE_PORT, address: str | None = None) -> socket.socket:
        """A UDP socket at a place; reading waits for `PATIENCE_S`."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.open_until_end.enter_context(made)
            made.settimeout(PATIENCE_S)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind((address or self.lab.addresses[place], port))
            return made

        return self.lab.within(place, make)

    def raw_socket(self, place: str) -> socket.socket:
        """A socket that sends whole IP packets, as they are, lies included."""

        def make() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

        return self.open_until_end.enter_context(self.lab.within(place, make))

    def log_in(self, client: Actor, peer: str = REFLECTOR, timeout_s: float = 15.0) -> None:
        """Call a reflector and wait for its acknowledgement."""
        client.wait_for("login", since=client.command(f"call {peer}"), timeout_s=timeout_s)


def _without_timeout(element: Any) -> Any:
    if isinstance(element, dict) and "elem" in element:
        return element["elem"]["val"]
    if isinstance(element, list):
        return [_without_timeout(part) for part in element]
    return element


def conference(
    site: Site, *options: str, reflector_options: tuple[str, ...] = ()
) -> tuple[Actor, Actor, Actor]:
    """A strict reflector, Ann inside and Zoe outside; both have logged in and know that the other watches."""
    reflector = site.lab.reflector("reflector", *reflector_options)
    ann = site.lab.client("workstation-1", "Ann", *options)
    zoe = site.lab.client("caller", "Zoe", *options)
    for client in (ann, zoe):
        client.wait_for("login", since=client.command(f"call {REFLECTOR}"), timeout_s=10)
    ann.wait_for("watched", name="Zoe", timeout_s=10)
    zoe.wait_for("watched", name="Ann", timeout_s=10)
    return reflector, ann, zoe


def await_video_both_ways(ann: Actor, zoe: Actor, frames: int = 20, per_s: float = 200) -> None:
    """Each sends some frames, each tenth in two packets; all of them arrive."""
    before = [(client, client.counters().get("received_video", 0)) for client in (ann, zoe)]
    for client in (ann, zoe):
        client.command(f"video {frames} {per_s}")
    for client, seen in before:
        await_received(client, "video", seen + frames + (frames + 4) // 10)


def await_received(client: Actor, kind: str, count: int, timeout_s: float = 20.0) -> None:
    """Wait until a simulated client has received that many packets of a kind; more fail."""
    wait_until(lambda: client.counters().get(f"received_{kind}", 0) >= count, f"{count} of {kind}", timeout_s)
    assert client.counters()[f"received_{kind}"] == count


def assert_nothing_wrong(*actors: Actor) -> None:
    """Neither client nor reflector has met anything that a wrong translation leads to."""
    kinds = ("wrong_checksum", "wrong_entry", "wrong_speaker", "dropped", "ignored", "refused", "strangers")
    for actor in actors:
        facts = actor.counters()
        wrong = {kind: facts[kind] for kind in kinds if facts.get(kind)}
        assert not wrong, f"{actor.place}: {wrong}"
