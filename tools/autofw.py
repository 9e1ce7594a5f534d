"""What command lines of `ipautofw` and `ipmasqadm autofw` meant, flag by flag.

Rule 1: they are read as the programs read them: the command first, options in any order, a protocol by its
  first letter. What they would have misread without a word (a host's name, a missing argument) is refused.
Rule 2: meanings are what the kernel did, not what the manuals said: ip_masq_autofw.c of Linux 2.0.34 and
  2.2.13, and ipautofw's own source. A sequence means what the table held at its end.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address
from pathlib import PurePath
from typing import Final

from rewriter.vocabulary import Ports, Protocol

FORGOTTEN_S: Final = 15.0
"""Without -u: so long after the last packet to the control port, the workstation was forgotten."""
TUNNEL_S: Final = 300.0
"""A masqueraded UDP flow's own time-out, in both kernels."""
PROGRAMS: Final = ("ipautofw", "ipmasqadm", "modprobe", "insmod")

FLAGS: Final[Mapping[str, str]] = {
    "-A": "adds an entry; the newest one was asked first",
    "-D": "takes away the one entry that is equal in all its ports and hosts",
    "-F": "takes all entries away",
    "-r": "a packet from outside to these ports went to the same port of one workstation: -c or -h names it",
    "-h": "that workstation, from the start and for good",
    "-d": "flows to these ports kept their source port instead of one from 60000 up; the kernel did not look"
    " at the protocol, so udp and tcp both had it",
    "-c": "each masqueraded packet to this port made its sender that workstation at once: the last sender"
    " won, and two who called stole the port from each other; flows that were there stayed until 5 minutes"
    " of silence. The how-to's words, and users' wish, are porthold's default: the first keeps it",
    "-u": "no forgetting after 15 s: the last sender stayed the workstation until somebody else sent",
    "-i": "the check that it was to switch off never ran; all it did was to keep the workstation after 15 s",
    "-v": "the program told what it did",
}
NO_U: Final = (
    "15 s after the last packet to the control port nobody was the workstation, and callers went nowhere"
)
OVERRULED: Final = "held only until the first packet to -c's control port, whose sender then took its place"
REWRITING: Final = "the rewriting of addresses within the packets: part of the profile cuseeme"


class NotUnderstood(Exception):
    """A command line that can't be carried over; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Flag:
    """As it was written, and what it did."""

    text: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the kernel's table: `inbound` False for -d."""

    ports: Ports
    inbound: bool
    control: Ports | None = None
    host: IPv4Address | None = None
    idle_s: float = TUNNEL_S

    def is_same(self, other: "Entry") -> bool:
        """What -D compared: not the flags."""
        return replace(self, idle_s=0) == replace(other, idle_s=0)


@dataclass(frozen=True, slots=True)
class Line:
    """A command line: `action` is its command's letter, M for a kernel module; -F and M have no entry."""

    text: str
    action: str
    flags: tuple[Flag, ...]
    entry: Entry | None = None


def read_line(text: str) -> Line:
    """One command line; raises NotUnderstood."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise NotUnderstood(f"{text!r}: {error}") from error
    program = PurePath(words[0]).name if words else ""
    if program in ("modprobe", "insmod"):
        if PurePath(words[-1]).stem != "ip_masq_cuseeme" or len(words) != 2:
            raise NotUnderstood(
                f"{text!r}: of kernel modules only ip_masq_cuseeme has something to do with this"
            )
        return Line(text, "M", (Flag(words[1], REWRITING),))
    arguments = words[1:]
    if program == "ipmasqadm":
        if arguments[:1] != ["autofw"]:
            raise NotUnderstood(f"{text!r}: of ipmasqadm's modules only autofw is known: ipmasqadm autofw …")
        arguments = arguments[1:]
    elif program != "ipautofw":
        raise NotUnderstood(f"{text!r}: begins with neither ipautofw nor ipmasqadm")
    return _Reader(text, arguments).line()


def table_after(lines: Sequence[Line]) -> list[Entry]:
    """What the kernel's table held after these lines, oldest first; NotUnderstood for a -D in vain."""
    table: list[Entry] = []
    for line in lines:
        match line.action, line.entry:
            case "A", Entry() as entry:
                if entry not in table:
                    table.append(entry)
            case "D", Entry() as entry:
                found = [other for other in table if other.is_same(entry)]
                if not found:
                    raise NotUnderstood(
                        f"{line.text!r}: no line before added this entry; the kernel refused too"
                    )
                table.remove(found[-1])
            case "F", _:
                table.clear()
            case _:
                pass  # a kernel module is no entry
    return table


class _Reader:
    """One command line's options, read from the left."""

    def __init__(self, text: str, words: Sequence[str]) -> None:
        self._text = text
        self._words = list(words)
        self._flags: list[Flag] = []
        self._ports: Ports | None = None
        self._inbound = True
        self._control: Ports | None = None
        self._host: IPv4Address | None = None
        self._seen: set[str] = set()

    def line(self) -> Line:
        action = self._take("a command: -A, -D or -F")
        if action not in ("-A", "-D", "-F"):
            raise self._no(f"{action!r} is no command: -A (add), -D (delete) or -F (flush) comes first")
        self._say(action, action)
        options: Mapping[str, Callable[[str], None]] = {
            "-r": self._range,
            "-d": self._range,
            "-h": self._one_host,
            "-c": self._control_port,
            "-u": self._switch,
            "-i": self._switch,
            "-v": self._switch,
        }
        if action == "-F" and self._words:
            raise self._no("-F takes no options")
        while self._words:
            option = self._take("an option")
            if option == "-p":
                raise self._no(
                    "-p sends a port to another port of one host; that needs no porthold but one rule:"
                    " nft add rule ip nat prerouting udp dport VISIBLE dnat to HOST:HIDDEN"
                )
            if option not in options:
                known = " ".join(options)
                raise self._no(f"{option!r} is no option of ipautofw; it has {known}")
            if option in self._seen:
                raise self._no(f"{option} stands there twice")
            self._seen.add(option)
            options[option](option)
        if action == "-F":
            return Line(self._text, "F", tuple(self._flags))
        return Line(self._text, action[1], tuple(self._flags_with_their_consequences()), self._entry())

    def _entry(self) -> Entry:
        if self._ports is None:
            raise self._no("there are no ports: -r PROTOCOL LOW HIGH, or -d")
        if not self._inbound:
            if self._control is not None or self._host is not None:
                raise self._no("-d has no workstation: leave -c and -h away")
            return Entry(self._ports, inbound=False)
        if self._control is None and self._host is None:
            raise self._no("-r without -c or -h sent callers to 0.0.0.0, to nobody; say who is to get them")
        host = None if self._control is not None else self._host
        forgets = self._control is not None and not {"-u", "-i", "-h"} & self._seen
        return Entry(self._ports, True, self._control, host, FORGOTTEN_S if forgets else TUNNEL_S)

    def _flags_with_their_consequences(self) -> Iterator[Flag]:
        for flag in self._flags:
            if flag.text.startswith("-h") and self._control is not None:
                yield Flag(flag.text, OVERRULED)
            else:
                yield flag
        if self._control is not None and not {"-u", "-i", "-h"} & self._seen:
            yield Flag("without -u", NO_U)

    def _switch(self, option: str) -> None:
        self._say(option, option)

    def _range(self, option: str) -> None:
        if self._ports is not None:
            raise self._no("-r and -d exclude each other")
        protocol, low, high = self._protocol(option), self._port(option), self._port(option)
        if low > high:
            raise self._no(f"{option}: {low} is above {high}; the lower port comes first")
        self._ports, self._inbound = Ports(protocol, low, high), option == "-r"
        self._say(f"{option} {protocol} {low} {high}", option)

    def _control_port(self, option: str) -> None:
        protocol, port = self._protocol(option), self._port(option)
        self._control = Ports(protocol, port, port)
        self._say(f"{option} {protocol} {port}", option)

    def _one_host(self, option: str) -> None:
        word = self._take("-h's address")
        try:
            self._host = IPv4Address(word)
        except AddressValueError as error:
            raise self._no(
                f"-h {word}: {error}; write the workstation's address (ipautofw took what is no number for 0)"
            ) from error
        self._say(f"{option} {word}", option)

    def _protocol(self, option: str) -> Protocol:
        word = self._take(f"{option}'s protocol")
        for protocol in ("tcp", "udp"):
            if word.lower() in (protocol, protocol[0]):
                return "tcp" if protocol == "tcp" else "udp"
        raise self._no(f"{option}: the protocol is tcp or udp, not {word!r}")

    def _port(self, option: str) -> int:
        word = self._take(f"{option}'s port")
        if not (word.isascii() and word.isdigit() and 0 < int(word) <= 0xFFFF):
            raise self._no(f"{option}: {word!r} is no port (1 to 65535)")
        return int(word)

    def _take(self, what: str) -> str:
        if not self._words:
            raise self._no(f"it ends before {what}")
        return self._words.pop(0)

    def _say(self, text: str, option: str) -> None:
        self._flags.append(Flag(text, FLAGS[option]))

    def _no(self, reason: str) -> NotUnderstood:
        return NotUnderstood(f"{self._text!r}: {reason}")
