"""Runs a simulated CU-SeeMe reflector or client as a process: `python -m tools.simulated client --address A`.

Rule 1: commands come as lines on stdin (`help` names them); each event is at once a JSON line on stdout.
Rule 2: the process ends with its stdin: nothing it starts can outlive whoever steers it.
Rule 3: UDP checksums are checked by the receiving kernel (the laboratory switches checksum offload off); the
datagrams that it refused are counted as `wrong_checksum`.
"""

import argparse
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from rewriter.cuseeme import Endpoint
from tools.simulated_client import Client, Habits
from tools.simulated_reflector import Reflector
from tools.simulated_wire import CUSEEME_PORT, Close, Note, Open, Output, Send, named, read_endpoint

Command = Callable[[list[str], float], Iterable[Output]]

IP_RECVERR: Final = 11
SO_NO_CHECK: Final = 11
ICMP_ORIGIN: Final = 2
LARGEST_DATAGRAM: Final = 65535
EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # struct sock_extended_err, before the offender's address
ICMP_WORDS: Final = {
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 3): "port unreachable",
    (3, 9): "network administratively prohibited",
    (3, 10): "host administratively prohibited",
    (3, 13): "communication administratively prohibited",
}


class Port:
    """The UDP socket of an actor, with its ICMP errors; `open` and `close` as the actor's outputs say."""

    def __init__(self, own: Endpoint) -> None:
        self.own = own
        self.socket: socket.socket | None = None

    def open(self) -> None:
        """Bind, with port 0 to a port of the kernel's choice, which is kept from then on."""
        if self.socket is not None:
            return
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.setblocking(False)
        self.socket.bind((socket.inet_ntoa(self.own.address), self.own.port))
        self.own = self.own._replace(port=self.socket.getsockname()[1])

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def send(self, send: Send) -> bool:
        """Send a datagram; False if the kernel would not take it."""
        if self.socket is None:
            return False
        self.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, not send.checksum)
        where = (socket.inet_ntoa(send.destination.address), send.destination.port)
        for _ in range(
            2
        ):  # An ICMP error that came meanwhile is told to the next call, which then sends nothing.
            try:
                self.socket.sendto(send.payload, where)
            except OSError:
                continue
            return True
        return False

    def datagrams(self) -> Iterable[tuple[bytes, Endpoint]]:
        """What has come, until there is no more or the socket is closed."""
        while self.socket is not None:
            try:
                payload, source = self.socket.recvfrom(LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error; `icmp_errors` has its details
                continue
            yield payload, Endpoint(socket.inet_aton(source[0]), source[1])

    def icmp_errors(self) -> Iterable[dict[str, object]]:
        """The ICMP errors that came for what was sent."""
        while self.socket is not None:
            try:
                _, ancillary, _, target = self.socket.recvmsg(LARGEST_DATAGRAM, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    yield from _icmp_error(data, target)


def _icmp_error(data: bytes, target: tuple[str, int]) -> Iterable[dict[str, object]]:
    _, origin, icmp_type, icmp_code, _, _, _ = EXTENDED_ERROR.unpack_from(data)
    if origin == ICMP_ORIGIN:
        offender = socket.inet_ntoa(data[EXTENDED_ERROR.size + 4 : EXTENDED_ERROR.size + 8])
        yield {
            "text": ICMP_WORDS.get((icmp_type, icmp_code), "other"),
            "type": icmp_type,
            "code": icmp_code,
            "from": offender,
            "destination": f"{target[0]}:{target[1]}",
        }


class Actor:
    """The loop around a core: the socket, stdin, the clock, and the JSON lines."""

    def __init__(self, core: Reflector | Client, port: Port, commands: dict[str, Command]) -> None:
        self._core = core
        self._port = port
        self._commands = commands
        self._counters = {"icmp": 0, "not_sent": 0}
        self._last_sent_at: float | None = None
        self._first_wrong_checksum = wrong_checksums()
        self._unread = b""

    def run(self) -> None:
        """Serve until stdin ends."""
        self._carry_out([Open(), Note("ready", {"udp": named(self._port.own)})])
        while True:
            deadline_s = self._core.deadline_s()
            timeout_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            is_input_ready = self._wait(timeout_s)
            for error in self._port.icmp_errors():
                self._counters["icmp"] += 1
                self._carry_out([Note("icmp", error)])
            for payload, source in self._port.datagrams():
                self._carry_out(self._core.receive(payload, source, time.monotonic()))
            self._carry_out(self._core.handle_time(time.monotonic()))
            if is_input_ready and not self._read_commands():
                return

    def _wait(self, timeout_s: float | None) -> bool:
        """Wait for the socket, stdin or the time; whether stdin has something."""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            if self._port.socket is not None:
                selector.register(self._port.socket, selectors.EVENT_READ)
            return any(key.fd == 0 for key, _ in selector.select(timeout_s))

    def _read_commands(self) -> bool:
        """Carry out the lines that have come; False at the end of stdin."""
        data = os.read(0, LARGEST_DATAGRAM)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._carry_out_command(line.decode().split())
        return bool(data)

    def _carry_out_command(self, words: list[str]) -> None:
        match words:
            case []:
                return
            case ["counters", *_]:
                wrong = wrong_checksums() - self._first_wrong_checksum
                own = {**self._counters, "wrong_checksum": wrong, "last_sent_at": self._last_sent_at}
                facts = {**self._core.counters(), **own}
                self._carry_out([Note("counters", facts)])
            case ["send" | "send-without-checksum" as name, where, payload]:
                checksum = name == "send"
                self._carry_out([Send(bytes.fromhex(payload), read_endpoint(where), checksum)])
            case ["listen"]:
                self._carry_out([Open()])
            case [name, *arguments] if name in self._commands:
                self._carry_out(self._commands[name](arguments, time.monotonic()))
            case _:
                known = ["counters", "listen", "send", "send-without-checksum", *self._commands]
                self._carry_out([Note("unknown_command", {"words": words, "known": known})])

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Send():
                    if self._port.send(output):
                        self._last_sent_at = time.time()
                    else:
                        self._counters["not_sent"] += 1
                case Note(event, facts):
                    print(json.dumps({"event": event, "at": time.time(), **facts}), flush=True)
                case Open():
                    self._port.open()
                case Close():
                    self._port.close()


def wrong_checksums() -> int:
    """How many UDP datagrams this network namespace refused because of their checksum."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    names, values = [line for line in lines if line[0] == "Udp:"]
    return int(dict(zip(names, values, strict=True))["InCsumErrors"])


def client_commands(client: Client) -> dict[str, Command]:
    """What a client does on command: the words after the command's name are its arguments."""
    return {
        "call": lambda words, now_s: client.call(read_endpoint(words[0]), now_s),
        "video": lambda words, now_s: client.stream("video", int(words[0]), _rate(words, 2.5), now_s),
        "audio": lambda words, now_s: client.stream("audio", int(words[0]), _rate(words, 2.0), now_s),
        "hangup": lambda words, _: client.hang_up(int(words[0]) if words else 2),
        "abandon": lambda _words, _now_s: client.abandon(),
        "silence": lambda _words, _now_s: client.fall_silent(),
        "resume": lambda _words, now_s: client.resume(now_s),
    }


def _rate(words: list[str], usual: float) -> float:
    return float(words[1]) if len(words) > 1 else usual


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m tools.simulated`."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulated", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    reflector = roles.add_parser("reflector")
    reflector.add_argument("--strict", action="store_true", help="refuse header address != UDP address")
    client = roles.add_parser("client")
    client.add_argument("--name", default="Somebody")
    client.add_argument("--ephemeral", action="store_true", help="send from a port of the kernel's choice")
    client.add_argument(
        "--little-endian", action="store_true", help="write the header port as one of 2008 did"
    )
    client.add_argument("--answer", action="store_true", help="answer callers")
    client.add_argument("--address-peer", action="store_true", help="address media to the peer (dest_addr)")
    for role in (reflector, client):
        role.add_argument("--address", required=True)
        role.add_argument("--port", type=int, default=CUSEEME_PORT)
        role.add_argument("--silence-timeout-s", type=float, default=60.0)
    return parser.parse_args(arguments)


def main() -> None:
    """Run the actor that the command line describes."""
    arguments = read_arguments()
    address = socket.inet_aton(arguments.address)
    if arguments.role == "reflector":
        port = Port(Endpoint(address, arguments.port))
        reflector = Reflector(
            address,
            arguments.port,
            strict=arguments.strict,
            silence_timeout_s=arguments.silence_timeout_s,
        )
        Actor(reflector, port, {}).run()
        return
    port = Port(Endpoint(address, 0 if arguments.ephemeral else arguments.port))
    port.open()
    habits = Habits(
        name=arguments.name,
        address=address,
        header_port=_swapped(port.own.port) if arguments.little_endian else port.own.port,
        answers=arguments.answer,
        addresses_peer=arguments.address_peer,
        silence_timeout_s=arguments.silence_timeout_s,
    )
    client = Client(habits)
    Actor(client, port, client_commands(client)).run()


def _swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "little"), "big")


if __name__ == "__main__":
    main()
