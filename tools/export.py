"""`porthold export`: the translations, for those who collect the logs of many gateways.

Rule: CSV and JSON Lines have the same rows under the same names; IPFIX has what its NAT events can hold.
"""

import csv
import dataclasses
import json
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TextIO

import click

from tools.options import WrongUse, check_period, held_options, log_options, opened_log, period_options
from tools.output import plain, printable
from tracker.export import Translation, port_events, translations
from tracker.ipfix import messages
from tracker.outages import Outage, outages_within

FORMATS: Final = ("jsonl", "csv", "ipfix")
_COLUMNS: Final = tuple(field.name.removesuffix("_ns") for field in dataclasses.fields(Translation))
_DESTINATION: Final = ("destination", "destination_port")
_BETWEEN_DATAGRAMS_S: Final = 0.0005
"""A collector on a slow machine has to keep up: UDP does not tell it to us."""


class CollectorType(click.ParamType[tuple[str, int]]):
    """HOST:PORT; its value is (host, port)."""

    name = "host:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 0xFFFF:
            self.fail(f"{value!r} is no collector like 192.0.2.1:4739", param, ctx)
        return host, int(port)


@click.command("export")
@log_options
@click.option("--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True)
@period_options
@held_options
@click.option("--destinations", is_flag=True, help="Also where the claiming packet went (not in IPFIX).")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="To this file; else stdout.")
@click.option("--collector", type=CollectorType(), help="Send IPFIX there, by UDP.")
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    form: str,
    since_ns: int | None,
    until_ns: int | None,
    holder: bytes | None,
    gateway: str | None,
    public_address: bytes | None,
    service: str | None,
    destinations: bool,
    output: Path | None,
    collector: tuple[str, int] | None,
) -> None:
    """Who held which ports, as JSON Lines, CSV or IPFIX (RFC 8158's NAT events), in the order of beginnings.

    The fields are those that RFC 6888 wants logged, and more. Destinations are left out unless asked for, as
    it demands. Each row of JSON and CSV tells the outages that fall into its time; JSON Lines begin with
    these, a line each. An export that is empty is one too: it ends with 0.
    """
    if collector is not None and (form != "ipfix" or output is not None):
        raise click.UsageError("--collector sends --format ipfix, and to no file.")
    if form == "ipfix" and destinations:
        raise click.UsageError("--destinations does not go with --format ipfix.")
    check_period(since_ns, until_ns)
    with opened_log(config, log_path) as reader, reader.snapshot():
        rows = translations(
            reader,
            since_ns=since_ns,
            until_ns=until_ns,
            holder=holder,
            gateway=gateway,
            public_address=public_address,
            service=service,
            destinations=destinations,
        )
        if form == "ipfix":
            _send(messages(port_events(rows), exported_ns=time.time_ns()), output, collector)
            return
        with _text_output(output) as target:
            if form == "csv":
                write_csv(rows, target, destinations=destinations)
            else:
                write_lines(
                    outages_within(reader, since_ns, until_ns), rows, target, destinations=destinations
                )


def write_lines(
    outages: Iterable[Outage], rows: Iterable[Translation], target: TextIO, *, destinations: bool
) -> None:
    """An object a line: `record` says whether it is an outage or a translation."""
    for outage in outages:
        print(json.dumps({"record": "outage", **plain(outage)}), file=target)
    for row in rows:
        document = plain(row)
        columns = {name: document[name] for name in _columns(destinations=destinations)}
        print(json.dumps({"record": "translation", **columns}), file=target)


def write_csv(rows: Iterable[Translation], target: TextIO, *, destinations: bool) -> None:
    """RFC 4180, the names of the columns first; several doubts are words with spaces between."""
    columns = _columns(destinations=destinations)
    writer = csv.writer(target)
    writer.writerow(columns)
    for row in rows:
        document = plain(row)
        document["user_name"] = _harmless(row.user_name)
        document["doubts"] = " ".join(row.doubts)
        writer.writerow(document[name] for name in columns)


def _columns(*, destinations: bool) -> tuple[str, ...]:
    return tuple(name for name in _COLUMNS if destinations or name not in _DESTINATION)


def _harmless(name: str | None) -> str | None:
    """A name from the network, which a spreadsheet must not take for a formula."""
    if name is None:
        return None
    return f"'{printable(name)}" if name[:1] in tuple("=+-@") else printable(name)


def _send(found: Iterable[bytes], output: Path | None, collector: tuple[str, int] | None) -> None:
    if collector is None:
        with _binary_output(output) as target:
            for message in found:
                target.write(message)
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(collector)
            for message in found:
                datagrams.send(message)
                time.sleep(_BETWEEN_DATAGRAMS_S)
    except OSError as error:
        raise WrongUse(f"{collector[0]}:{collector[1]} can't be sent to: {error}") from error


@contextmanager
def _text_output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as target:
            yield target
    except OSError as error:
        raise WrongUse(f"{path} can't be written: {error.strerror}") from error


@contextmanager
def _binary_output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        if sys.stdout.isatty():
            raise WrongUse("IPFIX is no text: give --output FILE or --collector HOST:PORT.")
        yield sys.stdout.buffer
        return
    try:
        with path.open("wb") as target:
            yield target
    except OSError as error:
        raise WrongUse(f"{path} can't be written: {error.strerror}") from error
