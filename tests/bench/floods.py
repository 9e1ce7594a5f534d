"""What floods cost a call, side by side: plain forwarding, and porthold (`python -m tests.bench.floods`).

Two laboratories, one gateway each: in one the kernel masquerades and forwards 7648-7649 to Ann, nothing else;
in the other porthold runs, and she holds the port. In turn, several times each, both carry the same 500 video
packets a second both ways between Ann and the reflector under the same flood. Needs root. The senders share
the machine with the gateway: how many packets a second arrived at its interface is part of the table. Where
others share it, too, begin with `chrt -f 1`.
"""

import argparse
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from tests.lab.flood import Flood, flooding
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, SO_RCVBUFFORCE, open_continue
from tools.lab import Lab, wait_until

STREAM_PER_S: Final = 500
FORWARD: Final = f"""
table ip forward {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "wan0" ip daddr {PUBLIC} udp dport 7648-7649 dnat to {ANN}
  }}
}}
"""
ELSEWHERE: Final = f"{CALLER}:{SERVICE_PORT}"
US: Final = f"{PUBLIC}:{SERVICE_PORT}"
BOBS: Final = ("--from", f"{BOB}:{SERVICE_PORT}", "--to", ELSEWHERE)
STRANGERS: Final = ("--from", f"10.0.0.1:{SERVICE_PORT}", "--sources", "16384", "--to", ELSEWHERE)
CALLERS: Final = ("--from", f"198.18.0.1:{SERVICE_PORT}", "--sources", "16384", "--to", US)


@dataclass
class Trial:
    """A flood; `stopped`: the worker does not run meanwhile."""

    name: str
    place: str
    words: tuple[str, ...]
    stopped: bool = False

    @property
    def interface(self) -> str:
        """Where it arrives at the gateway."""
        return "wan0" if self.place == "caller" else "lan0"


TRIALS: Final = (
    Trial("claims of one refused workstation", "workstation-2", BOBS),
    Trial("claims from 16,384 addresses", "workstation-2", STRANGERS),
    Trial("random payloads from outside, 16,384 addresses", "caller", (*CALLERS, "--kind", "random")),
    Trial("OpenContinues from outside, 16,384 addresses", "caller", CALLERS),
    Trial("the same, worker stopped", "caller", CALLERS, stopped=True),
    Trial("claims from 16,384 addresses, worker stopped", "workstation-2", STRANGERS, stopped=True),
)


@dataclass
class Result:
    """Of several runs: packets a second of the flood, and how much of the call's packets was lost."""

    rates: list[int] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{round(median(self.rates)):>9,}/s {100 * median(self.lost):>7.3f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run's flood")
    parser.add_argument("--per-s", type=float, default=110_000, help="1e9: as fast as it goes")
    parser.add_argument("--datapath", choices=["kernel", "queue"], default="kernel")
    parser.add_argument("--sharing", choices=["exclusive", "per-peer"], default="exclusive")
    asked = parser.parse_args()
    with ExitStack() as stack:
        plain = stack.enter_context(plain_gateway())
        site = stack.enter_context(porthold(asked.datapath, asked.sharing))
        print(f"{'':48} {'plain forwarding':>22} {'porthold':>22}   upcalls, memory, log")
        for trial in TRIALS:
            ours, theirs = Result(), Result()
            before = standing(site)
            for _ in range(asked.runs):
                measure(plain, trial, asked.seconds, asked.per_s, theirs)
                with site.stopped("rewriter") if trial.stopped else ExitStack():
                    measure(site.lab, trial, asked.seconds, asked.per_s, ours)
            assert ANN in str(site.elements("set", "cuseeme_holders"))
            site.assert_running()
            more = ", ".join(f"{now - then:+,}" for now, then in zip(standing(site), before, strict=True))
            print(f"{trial.name:48} {theirs!s:>22} {ours!s:>22}   {more}", flush=True)


@contextmanager
def plain_gateway() -> Iterator[Lab]:
    with Lab() as lab:
        lab.run("gateway", ["nft", "-f", "-"], stdin_text=FORWARD)
        prepare(lab)
        yield lab


@contextmanager
def porthold(datapath: str, sharing: str) -> Iterator[Site]:
    with TemporaryDirectory(prefix="porthold-") as directory, Lab() as lab:
        gateway: dict[str, object] = {"public_address": PUBLIC, "datapath": datapath}
        site = Site(lab, Path(directory), {"gateway": gateway, "service": {"sharing": sharing}})
        with site.open_until_end:
            prepare(lab)
            site.start()
            with site.udp_socket("workstation-1") as ann:
                ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
                wait_until(lambda: ANN in str(site.elements("set", "cuseeme_holders")), "the call", 15)
            yield site


def prepare(lab: Lab) -> None:
    lab.run("internet", ["ip", "route", "add", "198.18.0.0/15", "dev", "host1"])


def arrived_at(lab: Lab, interface: str) -> int:
    """Packets that an interface of the gateway has received."""
    path = f"/sys/class/net/{interface}/statistics/rx_packets"
    return int(lab.run("gateway", ["cat", path]).stdout)


def measure(lab: Lab, trial: Trial, seconds: float, per_s: float, result: Result) -> None:
    """One run: the streams begin before the flood and end after it."""
    ends = ((ANN, "workstation-1", REFLECTOR, REFLECTOR), (REFLECTOR, "reflector", PUBLIC, ANN))
    longer = ("--kind", "video", "--per-s", str(STREAM_PER_S), "--seconds", str(seconds + 1))
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(listener(lab, "reflector", REFLECTOR, PUBLIC)),
            stack.enter_context(listener(lab, "workstation-1", ANN, REFLECTOR)),
        ]
        streams: list[Flood] = []
        with ExitStack() as sending:
            for source, place, to, _ in ends:
                words = ("--from", f"{source}:{SERVICE_PORT}", "--to", f"{to}:{SERVICE_PORT}", *longer)
                streams.append(sending.enter_context(flooding(lab, place, *words)))
            before = arrived_at(lab, trial.interface)
            more = ("--seconds", str(seconds), "--per-s", str(per_s))
            with flooding(lab, trial.place, *trial.words, *more):
                pass
            came = arrived_at(lab, trial.interface) - before
        arrived = sum(map(count, listeners))
    result.rates.append(round(came / seconds - STREAM_PER_S))
    result.lost.append(1 - arrived / sum(stream.sent for stream in streams))


def listener(lab: Lab, place: str, address: str, peer: str) -> socket.socket:
    """Takes what comes from one peer, all of it, without anybody reading it meanwhile."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, SERVICE_PORT))
        made.connect((peer, SERVICE_PORT))
        made.setblocking(False)
        return made

    return lab.within(place, make)


def count(listening: socket.socket) -> int:
    """Datagrams that wait there; an ICMP error in between is none."""
    found = 0
    while True:
        try:
            listening.recv(2048)
            found += 1
        except BlockingIOError:
            return found
        except ConnectionRefusedError:
            continue


def standing(site: Site) -> tuple[int, int, int]:
    """Upcalls so far; KiB of memory of worker and tracker; octets of the log."""
    counted = site.counters()
    pids = [site.daemon(name).pid for name in ("rewriter", "tracker")]
    said = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    memory = sum(int(text.partition("VmRSS:")[2].split()[0]) for text in said)
    octets = sum(path.stat().st_size for path in site.directory.glob("log.sqlite*"))
    return counted["claims_queued"] + counted["talks_queued"], memory, octets


if __name__ == "__main__":
    main()
