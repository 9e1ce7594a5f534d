"""One tracker, many gateways, each with its own public address and the same private ones behind it."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import pytest

from rewriter.cuseeme import Message
from tests.lab.gateway_site import ANN
from tests.lab.traffic import SERVICE_PORT, open_continue, received, video
from tools import namespaces
from tools.lab import MASQUERADE, wait_until
from tools.namespaces import carry_out

REFLECTOR: Final = "203.0.113.10"
CONFIGURATION: Final = """\
[tracker]
endpoint = "ipc://{directory}/tracker.ipc"
reader_endpoint = "ipc://{directory}/reader.ipc"
operator_endpoint = "ipc://{directory}/operator.ipc"
log = "{directory}/log.sqlite"
lease_s = 30.0
[gateway]
name = "gateway-{number}"
lan = ["lan0"]
wan = "wan0"
state_directory = "{directory}"
claim_timeout_s = 10.0
[services.cuseeme]
profile = "cuseeme"
"""


class ManyGateways:
    """Gateways numbered from 1, at 100.64.NUMBER.2, each with one workstation; a peer on the Internet."""

    def __init__(self, count: int, directory: Path) -> None:
        self.numbers = range(1, count + 1)
        self.directory = directory
        self._prefix = namespaces.new_prefix()
        self._open = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Build the network."""
        namespaces.check_machine()
        self._open.callback(self._remove)
        places = ["internet", "peer"]
        places += [f"{kind}-{number}" for number in self.numbers for kind in ("gw", "ws")]
        self._places = [self._prefix + place for place in places]
        carry_out(None, [f"netns add {name}" for name in self._places])
        for name in self._places:
            namespaces.within(name, namespaces.set_namespace_up)
        self._link(("internet", "host0", "203.0.113.1"), ("peer", "eth0", REFLECTOR))
        for number in self.numbers:
            self._link(
                ("internet", f"up{number}", f"100.64.{number}.1"), (f"gw-{number}", "wan0", public_of(number))
            )
            self._link((f"gw-{number}", "lan0", "192.168.1.1"), (f"ws-{number}", "eth0", ANN))
            nft = ["ip", "netns", "exec", f"{self._prefix}gw-{number}", "nft", "-f", "-"]
            subprocess.run(nft, input=MASQUERADE, text=True, check=True)
        for name in self._places:
            namespaces.within(name, namespaces.switch_offload_off)
        namespaces.await_links(self._places)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _link(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
        """Two ends: (place, interface, address); the first is the way to everywhere for the second."""
        (place, interface, router), (place_there, there, address) = one, other
        first, second = self._prefix + place, self._prefix + place_there
        carry_out(None, [f"link add {interface} netns {first} type veth peer name {there} netns {second}"])
        carry_out(first, [f"address add {router}/24 dev {interface}", f"link set {interface} up"])
        commands = [f"address add {address}/24 dev {there}", f"link set {there} up"]
        carry_out(second, [*commands, f"route add default via {router}"])

    def _remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        namespaces.remove(self._places)

    def configuration(self, number: int) -> Path:
        path = self.directory / f"{number}.toml"
        path.write_text(CONFIGURATION.format(directory=self.directory, number=number))
        return path

    def start(self, what: str, number: int) -> subprocess.Popen[bytes]:
        """The tracker in this namespace, a rewriter in its gateway's."""
        place = [] if what == "tracker" else ["ip", "netns", "exec", f"{self._prefix}gw-{number}"]
        program = [str(Path(sys.executable).with_name("porthold")), what]
        with self.output(what, number).open("wb") as output:
            process = subprocess.Popen(
                [*place, *program, "--config", str(self.configuration(number))],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def output(self, what: str, number: int) -> Path:
        return self.directory / f"{what}-{number}.log"

    def has_session(self, number: int) -> bool:
        said = self.output("rewriter", number).read_text()
        assert all(process.poll() is None for process in self._processes), said
        return "bindings adopted" in said

    def udp_socket(self, place: str, address: str) -> socket.socket:
        def make() -> socket.socket:
            made = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.settimeout(5)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind((address, SERVICE_PORT))
            return made

        return namespaces.within(self._prefix + place, make)

    def ask(self, command: str, *words: str) -> Any:
        program = [str(Path(sys.executable).with_name("porthold")), command]
        words = ("--config", str(self.configuration(1)), "--json", *words)
        done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)


def public_of(number: int) -> str:
    return f"100.64.{number}.2"


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="porthold-") as name:
        yield Path(name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_every_gateway_has_its_holder_and_one_log_knows_them_all(directory: Path, count: int) -> None:
    with ManyGateways(count, directory) as network:
        tracker = network.start("tracker", 0)
        wait_until((directory / "tracker.ipc").is_socket, "a tracker", 20)
        rewriters = {number: network.start("rewriter", number) for number in network.numbers}
        for number in network.numbers:
            wait_until(partial(network.has_session, number), f"session {number}", 300)
        peer = network.udp_socket("peer", REFLECTOR)
        anns = {number: network.udp_socket(f"ws-{number}", ANN) for number in network.numbers}
        wanted = {public_of(number): video(public_of(number)) for number in network.numbers}

        def all_are_heard() -> bool:
            """Each sends, until each has come with its gateway's address, in both headers."""
            for ann in anns.values():
                ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
                ann.sendto(video(ANN), (REFLECTOR, SERVICE_PORT))
            got = {source[0]: data for data, source in received(peer, 1.0) if data[22:24] != b"\0\x65"}
            return got == wanted

        wait_until(all_are_heard, "all calls at once", 60)
        began = datetime.now(UTC).isoformat()
        for number in network.numbers:
            peer.sendto(video(REFLECTOR, to=public_of(number)), (public_of(number), SERVICE_PORT))
        for ann in anns.values():
            assert [data for data, _ in received(ann, 0.2)] == [video(REFLECTOR, to=ANN)]
        during = datetime.now(UTC).isoformat()
        for ann in anns.values():
            ann.sendto(open_continue(ANN, message=Message.CLOSE), (REFLECTOR, SERVICE_PORT))
        wait_until(lambda: not network.ask("holds", "--open"), "all have hung up", 60)
        for rewriter in rewriters.values():
            rewriter.terminate()
        assert {rewriter.wait(60) for rewriter in rewriters.values()} == {0}
        tracker.send_signal(signal.SIGTERM)
        assert tracker.wait(30) == 0
        bindings = network.ask("holds")
        assert sorted((it["gateway"], it["public_address"], it["holder"]) for it in bindings) == sorted(
            (f"gateway-{number}", public_of(number), ANN) for number in network.numbers
        )
        for number in network.numbers:
            told = network.ask("who", "--at", during, "--public-address", public_of(number))
            assert [it["holding"]["holder"] for it in told["findings"]] == [ANN]
        report = network.ask("verify", "--exclusive", "--from", began, "--to", during)
        assert (report["clean"], report["exclusive"]["shown"]) == (True, True)
