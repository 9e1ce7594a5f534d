"""`porthold import-ipautofw`: a 1999 gateway's command lines as porthold's configuration.

Rule: what is printed is TOML: services that can be appended to a configuration as they are, keys that go into
  its [gateway]; all else is comments.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import PurePath
from textwrap import wrap
from typing import Final

import click

from rewriter.vocabulary import Ports
from tools.autofw import PROGRAMS, TUNNEL_S, Entry, Line, NotUnderstood, read_line, table_after
from tools.options import WrongUse, json_option
from tools.output import print_json

CUSEEME: Final = Ports("udp", 7648, 7648)
WIDTH: Final = 100


@dataclass(slots=True)
class ServiceTable:
    """A [services.…] of the configuration, from all entries that name their workstation in the same way."""

    control: Ports | None
    holder: IPv4Address | None
    idle_s: float
    forward: list[Ports] = field(default_factory=list)

    @property
    def is_cuseeme(self) -> bool:
        return any(
            overlap(ports, CUSEEME) for ports in (*self.forward, *([self.control] if self.control else ()))
        )

    @property
    def name(self) -> str:
        if self.is_cuseeme:
            return "cuseeme"
        first = self.forward[0]
        return f"{first.protocol}-{first.first}" + (f"-{first.last}" if first.last != first.first else "")

    def keys(self) -> dict[str, object]:
        """What stands in the table, in its order."""
        forward = [text_of(ports) for ports in self.forward]
        if self.control is not None:
            control = [text_of(self.control)]
        else:
            control = [text_of(CUSEEME)] if self.is_cuseeme else forward
        keys: dict[str, object] = {
            "profile": "cuseeme" if self.is_cuseeme else "plain",
            "control": control,
            "forward": forward,
            "policy": "first" if self.holder is None else "fixed",
        }
        # A fixed holder has no idle time: he may be silent for ever.
        last = {"idle_s": self.idle_s} if self.holder is None else {"holder": str(self.holder)}
        return {**keys, **last}


@click.command(
    "import-ipautofw", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]}
)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@json_option
def command(*, words: tuple[str, ...], as_json: bool) -> None:
    """Print what `ipautofw` or `ipmasqadm autofw` commands are in porthold's configuration.

    Each COMMAND is one command line in quotes; a single one may stand without. "-" reads a script from stdin,
    of which only such commands count. The answer is TOML for porthold.toml; its comments say what each flag
    really did. For example:

    porthold import-ipautofw 'ipautofw -A -r udp 7648 7649 -c udp 7648 -u'

    porthold import-ipautofw - < /etc/rc.d/rc.firewall
    """
    try:
        lines = [read_line(text) for text in command_lines(words)]
        table = table_after(lines)
        services = services_of(table)
    except NotUnderstood as error:
        raise WrongUse(f"{error}.") from error
    kept = [text_of(entry.ports) for entry in table if not entry.inbound]
    if as_json:
        print_json(
            {
                "commands": [{"command": line.text, "flags": list(line.flags)} for line in lines],
                "gateway": {"keep_source_ports": kept} if kept else {},
                "services": {service.name: service.keys() for service in services},
            }
        )
    else:
        print("\n".join(toml(lines, services, kept)))


def command_lines(words: Sequence[str]) -> list[str]:
    """The command lines that are meant; NotUnderstood where a script has none."""
    if list(words) == ["-"]:
        found = [line.strip() for line in sys.stdin if PurePath((line.split() or [""])[0]).name in PROGRAMS]
        found = [line for line in found if "mod" not in line.split()[0] or "ip_masq_cuseeme" in line]
        if not found:
            raise NotUnderstood("no line on stdin begins with ipautofw or ipmasqadm")
        return found
    if any(" " in word.strip() for word in words):
        return [word.strip() for word in words]
    return [" ".join(words)]


def services_of(table: Sequence[Entry]) -> list[ServiceTable]:
    """Entries of one workstation are one service; NotUnderstood where two services have a port in common."""
    services: list[ServiceTable] = []
    for entry in table:
        if not entry.inbound:
            continue
        for service in services:
            for ports in service.forward:
                mine = (service.control, service.holder) == (entry.control, entry.host)
                if overlap(ports, entry.ports) and not mine:
                    raise NotUnderstood(
                        f"{text_of(entry.ports)} is also in an entry for another workstation"
                        f" ({text_of(ports)}); the kernel asked the newest first: leave the older away"
                    )
        wanted = (entry.control, entry.host, entry.idle_s)
        same = [s for s in services if (s.control, s.holder, s.idle_s) == wanted]
        if not same:
            same = [ServiceTable(*wanted)]
            services += same
        same[0].forward = joined([*same[0].forward, entry.ports])
    return services


# --- ports ------------------------------------------------------------------------------------------------


def joined(ranges: Sequence[Ports]) -> list[Ports]:
    """The ranges, udp first, those that touch as one."""
    merged: list[Ports] = []
    for ports in sorted(ranges, key=lambda p: (p.protocol != "udp", p.first, p.last)):
        if merged and merged[-1].protocol == ports.protocol and ports.first <= merged[-1].last + 1:
            merged[-1] = Ports(ports.protocol, merged[-1].first, max(merged[-1].last, ports.last))
        else:
            merged.append(ports)
    return merged


def overlap(one: Ports, other: Ports) -> bool:
    return one.protocol == other.protocol and one.first <= other.last and other.first <= one.last


def text_of(ports: Ports) -> str:
    """As porthold.toml has it: udp/7648-7649."""
    return ports.text().replace(" . ", "/")


# --- what is printed --------------------------------------------------------------------------------------


def toml(lines: Sequence[Line], services: Sequence[ServiceTable], kept: Sequence[str]) -> Iterator[str]:
    """The configuration with comments, line by line."""
    for line in lines:
        yield f"# {line.text}"
        width = max(len(flag.text) for flag in line.flags) + 2
        for flag in line.flags:
            first, *rest = wrap(flag.meaning, WIDTH - width)
            yield f"#   {flag.text:<{width}}{first}"
            yield from (f"#   {'':<{width}}{more}" for more in rest)
        yield ""
    for service in services:
        yield f"[services.{service.name}]"
        yield from (
            f"{key} = {value_of(value)}{remark(service, key)}" for key, value in service.keys().items()
        )
        yield ""
    if kept:
        yield "[gateway]  # there is one already: this goes into it"
        yield f"keep_source_ports = {value_of(kept)}"
        yield ""
    if not services and not kept:
        yield "# Nothing is left to configure."


def remark(service: ServiceTable, key: str) -> str:
    match key:
        case "policy" if service.holder is None:
            return '  # "last": what the kernel in fact did'
        case "control" if service.control is None and not service.is_cuseeme:
            return "  # ipautofw had none: only the holder may send there"
        case "idle_s" if service.idle_s == TUNNEL_S:
            return "  # the kernel's time-out of a UDP flow"
    return ""


def value_of(value: object) -> str:
    """TOML's strings, numbers and lists of them look like JSON's."""
    return json.dumps(value)
