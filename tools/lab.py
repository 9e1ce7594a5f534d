"""A laboratory of network namespaces: a masquerading gateway, workstations behind it, hosts outside.

Rule 1: nothing survives. A lab is taken down on a normal end, an exception, SIGINT, SIGTERM and SIGHUP; its
processes die with its owner even if that is killed with SIGKILL (PR_SET_PDEATHSIG), and the next lab removes
the namespaces of dead owners.
Rule 2: the machine's own network is not touched; every link is made inside the lab's namespaces.
Rule 3: checksum offload is off on every link: checksums are on the wire, and the receiver checks them.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from tools import namespaces
from tools.actor import Actor
from tools.namespaces import NAMESPACES, LabError, carry_out

__all__ = ["Actor", "Lab", "LabError", "packets_seen", "wait_until"]

P = ParamSpec("P")
R = TypeVar("R")

PUBLIC_ADDRESS: Final = "192.0.2.2"
WORKSTATIONS_FROM: Final = 10
OUTSIDE: Final = {"reflector": "203.0.113.10", "caller": "198.51.100.20"}
MASQUERADE: Final = """
table ip nat {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "wan0" masquerade
  }
}
"""
# An owner that was killed before PDEATHSIG was set sends no signal any more: so look for it once that is set.
_UNLESS_ORPHANED: Final = ("sh", "-c", 'test "$PPID" = "$1" || exit 1; shift; exec "$@"', "sh")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lab:
    """The laboratory, as a context manager.

    Its places: `gateway`, `workstation-1` and so on, the outside hosts by name, and `internet`, their router.
    """

    def __init__(
        self,
        workstations: int = 2,
        outside: Mapping[str, str] = OUTSIDE,
        *,
        masquerade: bool = True,
    ) -> None:
        self._workstations = [f"workstation-{number + 1}" for number in range(workstations)]
        self._outside = list(outside)
        self._masquerade = masquerade
        inside = {place: f"192.168.1.{WORKSTATIONS_FROM + n}" for n, place in enumerate(self._workstations)}
        self.addresses = {**inside, "gateway": PUBLIC_ADDRESS, **outside}
        self._prefix = namespaces.new_prefix()
        self._processes: list[subprocess.Popen[Any]] = []
        self._old_handlers: dict[int, Any] = {}
        self._is_open = False

    def __enter__(self) -> Self:
        """Build it, in less than a second; LabError if this machine cannot."""
        namespaces.check_machine()
        self._catch_signals()
        self._is_open = True
        atexit.register(self.close)
        try:
            namespaces.remove_stale()
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the lab's processes, remove its namespaces; signals are ignored meanwhile. May come twice."""
        if not self._is_open:
            return
        for number in self._old_handlers:
            signal.signal(number, signal.SIG_IGN)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        namespaces.remove([path.name for path in NAMESPACES.glob(f"{self._prefix}*")])
        self._is_open = False
        atexit.unregister(self.close)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def namespace(self, place: str) -> str:
        """The kernel's name of a place's network namespace."""
        return self._prefix + place

    def run(
        self, place: str, argv: list[str], *, stdin_text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a place to its end; CalledProcessError if it fails, unless `check` is False."""
        words = ["ip", "netns", "exec", self.namespace(place), *argv]
        return subprocess.run(
            words, input=stdin_text, text=True, capture_output=True, check=check, start_new_session=True
        )

    def start(
        self,
        place: str | None,
        argv: list[str],
        **options: Any,  # noqa: ANN401 - Popen's own
    ) -> subprocess.Popen[Any]:
        """Start a process in a place (None: the machine's own namespace); it dies with the lab or its owner.

        Call it from a thread that lives as long as the lab: PDEATHSIG counts from the thread. The process
        has a session of its own, so that a Ctrl-C reaches the lab alone, which ends things in its own order.
        """
        words = ["setpriv", "--pdeathsig", "KILL", "--", *_UNLESS_ORPHANED, str(os.getpid())]
        if place is not None:
            words += ["ip", "netns", "exec", self.namespace(place)]
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True, **options}
        process = subprocess.Popen([*words, *argv], **options)
        self._processes.append(process)
        return process

    def within(self, place: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in a thread that is in a place's namespace: sockets that it makes belong there."""
        return namespaces.within(self.namespace(place), function, *args, **kwargs)

    def take_flood_sources(self, network: str, place: str) -> None:
        """Let an outside host send from all addresses of a network; what is sent to them ends there.

        Through one neighbour: the kernel's table of neighbours is one for all namespaces, and full at 1,024
        (net.ipv4.neigh.default.gc_thresh3); a link's own addresses would cut other laboratories off.
        """
        self._ip(place, [f"route replace blackhole {network}"])
        link = f"host{self._outside.index(place)}"
        self._ip("internet", [f"route replace {network} via {self.addresses[place]} dev {link}"])

    def client(self, place: str, name: str, *options: str) -> Actor:
        """Start a simulated CU-SeeMe client; `python -m tools.simulated client --help` lists the options."""
        return self._actor(place, "client", "--name", name, *options)

    def reflector(self, place: str = "reflector", *options: str, strict: bool = True) -> Actor:
        """Start a simulated reflector; `strict`: it refuses a header address that is not the UDP address."""
        return self._actor(place, "reflector", *(["--strict"] if strict else []), *options)

    def _actor(self, place: str, role: str, *options: str) -> Actor:
        process = self.start(
            place,
            [sys.executable, "-m", "tools.simulated", role, "--address", self.addresses[place], *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        return Actor(process, place, self.addresses[place])

    def _build(self) -> None:
        places = ["gateway", "internet", *self._workstations, *self._outside]
        carry_out(None, [f"netns add {self.namespace(place)}" for place in places])
        for place in places:
            namespaces.within(self.namespace(place), namespaces.set_namespace_up)
        self._ip("gateway", ["link add lan0 type bridge stp_state 0 forward_delay 0"])
        self._link("internet", "uplink0", "gateway", "wan0")
        for number, place in enumerate(self._workstations, start=1):
            self._link("gateway", f"lan0-{number}", place, "eth0")
        for number, place in enumerate(self._outside):
            self._link("internet", f"host{number}", place, "eth0")
        self._address()
        for place in places:
            namespaces.within(self.namespace(place), namespaces.switch_offload_off)
        namespaces.await_links(map(self.namespace, places))
        if self._masquerade:
            self.run("gateway", ["nft", "-f", "-"], stdin_text=MASQUERADE)

    def _link(self, one: str, interface: str, other: str, other_interface: str) -> None:
        first, second = self.namespace(one), self.namespace(other)
        peer = f"type veth peer name {other_interface} netns {second}"
        carry_out(None, [f"link add {interface} netns {first} {peer}"])

    def _ip(self, place: str, commands: list[str]) -> None:
        carry_out(self.namespace(place), commands)

    def _address(self) -> None:
        ports = [f"lan0-{number}" for number in range(1, len(self._workstations) + 1)]
        gateway = [f"link set {port} master lan0 up" for port in ports]
        gateway += ["address add 192.168.1.1/24 dev lan0", f"address add {PUBLIC_ADDRESS}/24 dev wan0"]
        gateway += ["link set lan0 up", "link set wan0 up", "route add default via 192.0.2.1"]
        self._ip("gateway", gateway)
        internet = ["address add 192.0.2.1/24 dev uplink0", "link set uplink0 up"]
        for number, place in enumerate(self._outside):
            router = self.addresses[place].rpartition(".")[0] + ".1"
            internet += [f"address add {router}/24 dev host{number}", f"link set host{number} up"]
            self._address_host(place, router)
        self._ip("internet", internet)
        for place in self._workstations:
            self._address_host(place, "192.168.1.1")

    def _address_host(self, place: str, router: str) -> None:
        commands = [f"address add {self.addresses[place]}/24 dev eth0", "link set eth0 up"]
        self._ip(place, [*commands, f"route add default via {router}"])

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old_handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        # Raised in the main thread, wherever that is, so that `with` unwinds; no second signal may stop that.
        for other in self._old_handlers:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    """Wait until a condition holds, asking 50 times a second; LabError naming `what` if it never does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise LabError(f"not in {timeout_s} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def packets_seen(lab: Lab, place: str, interface: str) -> Iterator[list[bytes]]:
    """The IPv4 packets, IP header first, that an interface sees in the block; complete after its end."""
    ethernet_header, ipv4 = 14, 0x0800

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.bind((interface, 3))
        listener.setblocking(False)
        return listener

    seen: list[bytes] = []
    with lab.within(place, listen) as listener:
        yield seen
        while True:
            try:
                frame = listener.recv(65535)
            except BlockingIOError:
                return
            if int.from_bytes(frame[12:14], "big") == ipv4:
                seen.append(frame[ethernet_header:])
