"""`porthold who`: who held a port at a time. X, nobody, or unknown, because …"""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from eventlog.reading import LogReader
from tools.moment import MOMENT
from tools.options import WrongUse, json_option, log_options, opened_log, place_options
from tools.output import (
    exact_time_text,
    octets_text,
    plain,
    print_json,
    print_line,
    protocol_text,
    time_text,
)
from tracker.audit import Finding, Holder, Holding, Nobody, Outage, Restricted, Unknown, who
from tracker.configuration import PROTOCOLS
from tracker.events import Restraint

BOTH: Final = (PROTOCOLS["udp"], PROTOCOLS["tcp"])


class PortType(click.ParamType[tuple[tuple[int, ...], int]]):
    """`7648`, `7648/udp` or `udp/7648`; its value is (protocols asked for, port)."""

    name = "port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, ...], int]:
        found = re.fullmatch(r"(?:(udp|tcp)/)?(\d{1,5})(?:/(udp|tcp))?", str(value).lower())
        if found is None or (found[1] and found[3]) or not 1 <= int(found[2]) <= 0xFFFF:
            self.fail(f"{value!r} is no port like 7648, 7648/udp or 7648/tcp", param, ctx)
        name = found[1] or found[3]
        return ((PROTOCOLS[name],) if name else BOTH), int(found[2])


@click.command("who")
@log_options
@click.option("--at", "at_ns", type=MOMENT, help="The time; now, if not said.")
@click.option("--port", "asked", type=PortType(), help="7648, 7648/udp or 7648/tcp; any, if not said.")
@click.option("--protocol", type=click.Choice(sorted(PROTOCOLS)), help="Either, if not said.")
@place_options
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    at_ns: int | None,
    asked: tuple[tuple[int, ...], int] | None,
    protocol: str | None,
    gateway: str | None,
    public_address: bytes | None,
    service: str | None,
    as_json: bool,
) -> None:
    """Who held a port at a time: a holder, nobody, or unknown, and then why.

    Without --port it answers for every service, or for that of --service.

    A TIME is like 2026-05-04T16:05:00Z, "2026-05-04 18:05+02:00", "5 minutes ago" or now.

    Ends with 0 if somebody held it, with 1 if nobody did or if the log can't tell (which of the two, the
    output says).
    """
    protocols, port = (BOTH, None) if asked is None else asked
    if protocol is not None:
        if PROTOCOLS[protocol] not in protocols:
            raise click.UsageError(f"--port says {protocol_text(protocols[0])}, --protocol {protocol}.")
        protocols = (PROTOCOLS[protocol],)
    at_ns = time.time_ns() if at_ns is None else at_ns
    with opened_log(config, log_path) as reader:
        found = find(
            reader,
            at_ns=at_ns,
            protocols=protocols,
            port=port,
            gateway=gateway,
            public_address=public_address,
        )
    found = of_service(found, service)
    if as_json:
        print_json(as_document(found, at_ns, protocols, port))
    else:
        for finding in found:
            print_finding(finding, at_ns, _name(protocols, port))
    sys.exit(0 if any(isinstance(finding.answer, Holder) for finding in found) else 1)


def find(
    reader: LogReader,
    *,
    at_ns: int,
    protocols: Sequence[int],
    port: int | None,
    gateway: str | None,
    public_address: bytes | None,
) -> list[Finding]:
    """One finding for each resource, by whichever protocol the port belonged to it; at least one."""
    with reader.snapshot():
        found = [
            finding
            for protocol in protocols
            for finding in who(
                reader,
                at_ns=at_ns,
                protocol=protocol,
                port=port,
                gateway=gateway,
                public_address=public_address,
            )
        ]
    known = [finding for finding in found if finding.service is not None]
    return list(dict.fromkeys(known)) or found[:1]


def of_service(found: list[Finding], service: str | None) -> list[Finding]:
    """Those of the service; what belongs to no service stays, because it says why."""
    if service is None:
        return found
    wanted = [finding for finding in found if finding.service in (None, service)]
    if not wanted:
        others = ", ".join(sorted({str(finding.service) for finding in found}))
        raise WrongUse(f"The port did not belong to the service {service!r} at that time, but to: {others}.")
    return wanted


def _name(protocols: Sequence[int], port: int | None) -> str:
    """What was asked for, as people say it."""
    if port is None:
        return "any port" if len(protocols) > 1 else f"any {protocol_text(protocols[0])} port"
    return f"port {port}" if len(protocols) > 1 else f"{protocol_text(protocols[0])}/{port}"


def as_document(
    found: Sequence[Finding], at_ns: int, protocols: Sequence[int], port: int | None
) -> dict[str, Any]:
    return {
        "at": exact_time_text(at_ns),
        "protocols": [protocol_text(protocol) for protocol in protocols],
        "port": port,
        "findings": [_finding_document(finding) for finding in found],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    names = ("gateway", "public_address", "service", "peer", "restrictions")
    place = {name: plain(getattr(finding, name)) for name in names}
    match finding.answer:
        case Holder(holding, doubts):
            return {**place, "answer": "held", "holding": plain(holding), "doubts": plain(doubts)}
        case Nobody(last):
            return {**place, "answer": "nobody", "last": plain(last)}
        case Unknown(because, last):
            return {**place, "answer": "unknown", "because": plain(because), "last": plain(last)}


def print_finding(finding: Finding, at_ns: int, name: str) -> None:
    """The answer in its first line, what it rests on below."""
    place = ", ".join(_place(finding))
    head = f"{name} {f'({place}) ' if place else ''}at {time_text(at_ns)}: "
    match finding.answer:
        case Holder(holding, doubts):
            print_line(head, (octets_text(holding.holder), "bold green"))
            print_holding("held", holding)
            print_outages("although", doubts)
        case Nobody(last):
            print_line(head, ("nobody", "bold"))
            if finding.service is None:
                print_line("  no service that the log knows of had this port then")
            print_last("before that", last)
        case Unknown(because, last):
            print_line(head, ("unknown", "bold yellow"))
            print_outages("because", because)
            print_last("by what the log shows", last)
    for restriction in finding.restrictions:
        print_line(f"  {restriction_text(restriction)}")


def restriction_text(restriction: Restricted) -> str:
    """Who might not claim, since when, by whose word."""
    host = "" if restriction.host is None else octets_text(restriction.host)
    where = restriction.gateway or "every gateway"
    limit = "" if restriction.limit_ns is None else f" until {time_text(restriction.limit_ns)}"
    head = {
        Restraint.REVOKED: f"{host} barred{limit}",
        Restraint.RESERVED: f"reserved for {host}",
        Restraint.FROZEN: f"claims frozen at {where}",
    }[restriction.restraint]
    return f"{head} since {time_text(restriction.since_ns)} by {restriction.by}: {restriction.why}"


def _place(finding: Finding) -> Iterator[str]:
    if finding.service is not None:
        yield finding.service
    if finding.gateway is not None:
        yield f"gateway {finding.gateway}"
    if finding.public_address is not None:
        yield octets_text(finding.public_address)
    if finding.peer is not None:
        yield f"peer {octets_text(finding.peer)}"


def print_last(when: str, holding: Holding | None) -> None:
    if holding is not None:
        print_holding(f"{when}: {octets_text(holding.holder)}", holding)


def print_holding(verb: str, holding: Holding) -> None:
    until = "still open" if holding.ended_ns is None else f"to {time_text(holding.ended_ns)}"
    why = "" if holding.reason is None else f" ({holding.reason.value})"
    print_line(f"  {verb} from {time_text(holding.since_ns)} {until}{why}, binding {holding.binding}")
    if holding.user_name or holding.mac is not None:
        name = json.dumps(holding.user_name, ensure_ascii=False) if holding.user_name else "not known"
        hardware = "not known" if holding.mac is None else octets_text(holding.mac)
        print_line(f"  user {name}, mac {hardware}")
    if not any(holding.destination):
        print_line("  claimed by no packet: the configuration names this host")
        return
    target = f"{octets_text(holding.destination)}:{holding.destination_port}"
    source = f"{octets_text(holding.holder)}:{holding.source_port}"
    print_line(f"  claimed by {protocol_text(holding.protocol)} {source} → {target}")


def print_outages(word: str, outages: Sequence[Outage]) -> None:
    for outage in outages:
        since = "the beginning" if outage.since_ns is None else time_text(outage.since_ns)
        until = "now on" if outage.until_ns is None else time_text(outage.until_ns)
        whose = "".join(f", {what}" for what in (outage.gateway, outage.worker) if what)
        detail = f" ({outage.detail})" if outage.detail else ""
        record = "" if outage.position is None else f", record {outage.position}"
        print_line(f"  {word} {outage.kind}{whose} from {since} to {until}{detail}{record}")
