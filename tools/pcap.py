"""`porthold pcap`: a capture as the gateway's other side would have shown it, or its packets explained.

Rule 1: OUT appears whole or not at all: it is written beside its place and moved there at the end.
Rule 2: every packet is counted once, by what became of it.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import BinaryIO, Final

import click
from rich.text import Text
from rich.tree import Tree

from rewriter import packet
from rewriter.cuseeme import Direction, parse
from rewriter.packet import UdpPacket
from tools.capture_file import CaptureError, Frame, blocks
from tools.dissection import Field, dissect, summary
from tools.options import DEFAULT_CONFIG, WrongUse, config_option, json_option, read_configuration
from tools.other_side import PRIVATE, Gateway, Host, Outcome, ipv4_of, other_side
from tools.output import (
    console,
    exact_time_text,
    print_json,
    print_json_lines,
    print_line,
    print_table,
    printable,
    progress_bar,
    time_text,
)
from tracker.configuration import PROFILES, PROTOCOLS

PORTS: Final = frozenset(
    port
    for ports in PROFILES["cuseeme"][1]
    if ports.protocol == PROTOCOLS["udp"]
    for port in range(ports.first, ports.last + 1)
)
ADVANCE_EVERY: Final = 1000


class HostType(click.ParamType[Host]):
    """ADDRESS, ADDRESS:PORT or a network."""

    name = "host"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Host:
        if isinstance(value, Host):
            return value
        address, colon, port = str(value).partition(":")
        try:
            if colon and not 0 < int(port) <= 0xFFFF:
                raise ValueError(f"{port} is no port")
            return Host(IPv4Network(address), int(port) if colon else None)
        except ValueError as error:
            said = f"{value!r} is no host like 192.168.1.10, 192.168.1.10:7648 or 192.168.1.0/24: {error}"
            self.fail(said, param, ctx)


class PublicType(click.ParamType[IPv4Address]):
    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Address:
        try:
            return IPv4Address(str(value))
        except ValueError as error:
            self.fail(f"{value!r} is no IPv4 address: {error}", param, ctx)


@click.command("pcap")
@click.argument("source", metavar="IN", type=click.File("rb"))
@click.argument("target", metavar="[OUT]", type=click.Path(dir_okay=False, path_type=Path), required=False)
@config_option
@click.option("--public", type=PublicType(), help="The gateway's public address; else the configuration's.")
@click.option(
    "--private",
    "hosts",
    type=HostType(),
    multiple=True,
    help="A host on the LAN: ADDRESS, ADDRESS:PORT or a network; else the private networks of RFC 1918.",
)
@click.option(
    "--direction",
    type=click.Choice(["out", "in", "both"]),
    default="both",
    show_default=True,
    help="Translate only what the LAN sends, or only what it gets.",
)
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 0xFFFF),
    multiple=True,
    help="A UDP port of the service; else 7648, 7649 and 24032.",
)
@click.option("--show", is_flag=True, help="Explain each CU-SeeMe packet of IN, and write nothing.")
@json_option
def command(
    *,
    source: BinaryIO,
    target: Path | None,
    config: Path | None,
    public: IPv4Address | None,
    hosts: tuple[Host, ...],
    direction: str,
    ports: tuple[int, ...],
    show: bool,
    as_json: bool,
) -> None:
    """Translate the capture IN into OUT: the same packets as the gateway's other side shows them.

    A capture from the LAN becomes one from the Internet, and the other way round; for the latter say with
    --private who is behind the public address. pcap and pcapng; IN may be "-". Only what can be translated
    whole is touched: fragments, cut packets, other protocols and all else in the file stay as they are.

    With --show, each CU-SeeMe packet of IN is explained field by field instead.

    Ends with 0 if any packet was translated or shown, with 1 if none was.
    """
    wanted = frozenset(ports) or PORTS
    if show and target is not None:
        raise click.UsageError("--show writes no file; leave OUT away.")
    if show and (public is not None or hosts or direction != "both"):
        raise click.UsageError("--show translates nothing; leave --public, --private and --direction away.")
    if not show and target is None:
        raise click.UsageError("Say where the translated capture goes (OUT), or --show.")
    try:
        if show:
            count = show_packets(source, wanted, as_json=as_json)
        else:
            gateway = Gateway(
                public=public or configured_address(config),
                ports=wanted,
                hosts=hosts or tuple(Host(network) for network in PRIVATE),
                direction=None if direction == "both" else Direction(direction),
            )
            count = translate_file(source, Path(str(target)), gateway, as_json=as_json)
    except CaptureError as error:
        raise WrongUse(f"{source.name}: {error}.") from error
    sys.exit(0 if count else 1)


def configured_address(config: Path | None) -> IPv4Address:
    """What the configuration says the public address is; ends with 2 where it says none."""
    there = config is not None or os.access(DEFAULT_CONFIG, os.F_OK)
    gateway = read_configuration(config).gateway if there else None
    if gateway is None or gateway.public_address is None:
        raise WrongUse("Say the gateway's public address: --public ADDRESS, or --config FILE that has it.")
    return IPv4Address(gateway.public_address)


# --- translating ------------------------------------------------------------------------------------------


def translate_file(source: BinaryIO, target: Path, gateway: Gateway, *, as_json: bool) -> int:
    """How many packets were translated; raises CaptureError, then with no file written."""
    outcomes: Counter[Outcome] = Counter()
    with written_whole(target) as written, progress_bar("Translating") as advance:
        size = size_of(source)
        done = 0
        for number, block in enumerate(blocks(source)):
            octets = block.octets
            if block.frame is not None:
                outcome, crossed = other_side(block.frame, gateway)
                outcomes[outcome] += 1
                octets = block.with_packet(crossed)
            written.write(octets)
            done += len(octets)
            if number % ADVANCE_EVERY == 0:
                advance(done, max(size, done))
    say_outcomes(target, outcomes, as_json=as_json)
    return outcomes[Outcome.TRANSLATED]


def say_outcomes(target: Path, outcomes: Counter[Outcome], *, as_json: bool) -> None:
    translated = outcomes[Outcome.TRANSLATED]
    unchanged = {outcome: outcomes[outcome] for outcome in Outcome if outcome is not Outcome.TRANSLATED}
    if as_json:
        names = {outcome.name.lower(): count for outcome, count in unchanged.items()}
        print_json({"packets": outcomes.total(), "translated": translated, "unchanged": names})
        return
    rows = [(count, outcome.value) for outcome, count in unchanged.items() if count]
    print_line(f"{target}: {outcomes.total()} packets, {translated} of them translated")
    if rows:
        print_table("unchanged", ("packets", "because they are"), rows)


def size_of(source: BinaryIO) -> int:
    """A file's octets; of a pipe 0."""
    return os.fstat(source.fileno()).st_size


@contextmanager
def written_whole(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `target` when the block ends well."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            yield file
        beside.replace(target)
    except OSError as error:
        raise WrongUse(f"{target} can't be written: {error.strerror}.") from error
    finally:
        beside.unlink(missing_ok=True)


# --- showing ----------------------------------------------------------------------------------------------


def show_packets(source: BinaryIO, ports: frozenset[int], *, as_json: bool) -> int:
    """How many CU-SeeMe packets there were."""
    others: Counter[str] = Counter()
    shown = 0

    def packets() -> Iterator[tuple[Frame, UdpPacket, list[Field]]]:
        nonlocal shown
        for block in blocks(source):
            if block.frame is None:
                continue
            found = cuseeme_in(block.frame, ports)
            if isinstance(found, str):
                others[found] += 1
                continue
            shown += 1
            yield block.frame, *found

    if as_json:
        print_json_lines(described(*found) for found in packets())
        return shown
    for found in packets():
        print_packet(*found)
    rest = "; ".join(f"{count} {reason}" for reason, count in others.items())
    print_line(f"{shown} CU-SeeMe packets" + (f"; not shown: {rest}" if rest else ""))
    return shown


def cuseeme_in(frame: Frame, ports: frozenset[int]) -> tuple[UdpPacket, list[Field]] | str:
    """A frame's packet and its fields, or why there are none."""
    _, whole = ipv4_of(frame)
    if isinstance(whole, Outcome):
        return whole.value
    udp = packet.parse(whole)
    if udp is None:
        return Outcome.LENGTHS_LIE.value
    if ports.isdisjoint((udp.source.port, udp.destination.port)):
        return "of other ports"
    fields = dissect(udp)
    return "shorter than CU-SeeMe's header" if fields is None else (udp, fields)


def described(frame: Frame, udp: UdpPacket, fields: list[Field]) -> dict[str, object]:
    """For programs."""
    return {
        "number": frame.number,
        "time": None if frame.time_ns is None else exact_time_text(frame.time_ns),
        "source": str(udp.source),
        "destination": str(udp.destination),
        "octets": len(udp.payload),
        "checksum": "none"
        if udp.checksum == 0
        else "right"
        if packet.is_checksum_valid(udp.packet)
        else "wrong",
        "summary": say(udp),
        "fields": fields,
    }


def say(udp: UdpPacket) -> str:
    seen = parse(udp.payload)
    return "" if seen is None else summary(seen)


def print_packet(frame: Frame, udp: UdpPacket, fields: list[Field]) -> None:
    """For people: a line on the packet, below it one for each field."""
    when = "" if frame.time_ns is None else f"  {time_text(frame.time_ns)}"
    head = Text(f"{frame.number}{when}  {udp.source} → {udp.destination}  ")
    head.append(printable(say(udp)), "bold")
    tree = Tree(head, guide_style="dim")
    widths = [max(len(text(field)) for field in fields) for text in (name_of, value_of)]
    for field in fields:
        line = Text(f"{field.offset:>4} ", "dim")
        line.append(f"{name_of(field):<{widths[0]}}  ", "cyan")
        line.append(f"{value_of(field):<{min(widths[1], 34)}}")
        line.append(f"  {printable(field.meaning)}".rstrip(), "green")
        line.rstrip()
        tree.add(line)
    if udp.checksum != 0 and not packet.is_checksum_valid(udp.packet):
        tree.add(Text("the UDP checksum is wrong, or the sender's card was to fill it in", "yellow"))
    console().print(tree)


def name_of(field: Field) -> str:
    return field.name


def value_of(field: Field) -> str:
    return printable(str(field.value))
