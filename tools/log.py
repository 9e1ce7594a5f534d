"""`porthold log`: the records themselves."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from eventlog.reading import Entry, LogReader
from eventlog.record import Record, RecordError
from eventlog.segments import Span
from eventlog.shelf import Gap
from tools.log_stats import measure, print_stats
from tools.options import calling, json_option, log_options, opened_log, read_configuration
from tools.output import (
    exact_time_text,
    plain,
    print_json,
    print_json_lines,
    print_line,
    time_text,
    words,
)
from tracker.client import Credentials, ask_status
from tracker.events import TYPES, Event, from_record
from tracker.feed import FeedOver, Missing, Present
from tracker.follower import Follower
from tracker.roles import Role
from tracker.shapes import ProtocolError

SILENCE_S: Final = 1.0
BEHIND: Final = 10_000

_NAMES: Final = {shape.__name__.lower(): number for number, shape in TYPES.items()}


class EventType(click.ParamType[int]):
    """A type of record, by its event's name in whatever case, hyphens allowed, or by its number."""

    name = "event"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isdecimal():
            return int(text)
        number = _NAMES.get(text.lower().replace("-", ""))
        if number is None:
            names = ", ".join(shape.__name__ for shape in TYPES.values())
            self.fail(f"{text!r} is no type of event; there are: {names}", param, ctx)
        return number


@dataclass(frozen=True, slots=True)
class Shown:
    """A record as far as it can be read; without an event `why` says why."""

    entry: Entry
    record: Record | None
    event: Event | None
    why: str | None
    damaged: bool = False

    @property
    def type_name(self) -> str:
        if self.event is not None:
            return type(self.event).__name__
        return "-" if self.record is None else f"type {self.record.type}"


@click.group("log")
def command() -> None:
    """Look at the records of the log."""


@command.command("show")
@log_options
@click.option("--from", "first", type=int, default=0, help="First position; -20: the last twenty.")
@click.option("--to", "last", type=int, help="Last position, itself included.")
@click.option("--type", "types", type=EventType(), multiple=True, help="Only this type, like PortBound.")
@json_option
def show(
    *,
    config: Path | None,
    log_path: Path | None,
    first: int,
    last: int | None,
    types: tuple[int, ...],
    as_json: bool,
) -> None:
    """The records by position, with the fields of their events.

    --type may be given several times. Ends with 0; with 1 if a record can't be read (`porthold verify` says
    more).
    """
    damaged = 0
    with opened_log(config, log_path) as reader:
        begin, end = positions(reader.size, first, last)
        shown = select(reader, begin, end, types)
        if as_json:
            damaged = print_documents(shown)
        else:
            for item in shown:
                damaged += item.damaged
                print_shown(item)
    if damaged:
        print(f"{damaged} damaged: porthold verify says what is wrong.", file=sys.stderr)
        sys.exit(1)


@command.command("tail")
@log_options
@click.option("--from", "first", type=int, default=-10, show_default=True, help="First position.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what the tracker appends, until stopped.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, one record a line.")
def tail(*, config: Path | None, log_path: Path | None, first: int, follow: bool, as_json: bool) -> None:
    """The last records; with --follow, also those to come.

    --follow asks the tracker, so that it needs no access to the log itself: it waits where none answers, and
    goes on where it was when the tracker or the connection comes back. No record is left out or said twice.

    Ends with 0; with 1 if the tracker has nothing for us, as another log than the one that was followed.
    """
    if not follow:
        with opened_log(config, log_path) as reader:
            begin, end = positions(reader.size, first, None)
            for shown in select(reader, begin, end, ()):
                show_one(shown, as_json=as_json)
        return
    if log_path is not None:
        raise click.UsageError("--follow asks the tracker; --log is a file that nobody need write to.")
    endpoint, credentials = calling(read_configuration(config), Role.READER)
    try:
        for shown in followed(endpoint, first, credentials):
            show_one(shown, as_json=as_json)
    except (FeedOver, ProtocolError) as error:
        print(f"The tracker at {endpoint} has nothing for us: {error}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        pass


def followed(endpoint: str, first: int, credentials: Credentials | None) -> Iterator[Shown]:
    """The tracker's records from a position on, for ever. FeedOver, ProtocolError."""
    status = ask_status(endpoint, SILENCE_S, credentials)
    if status is None:
        print(f"No tracker answers at {endpoint}; waiting.", file=sys.stderr)
    while status is None:
        status = ask_status(endpoint, SILENCE_S, credentials)
    begin = max(0, status.records + first) if first < 0 else first
    with Follower.open(endpoint, "log-tail", begin, credentials=credentials) as follower:
        while True:
            pieces = follower.receive(SILENCE_S)
            say_behind(follower)
            for piece in pieces:
                match piece:
                    case Present(position, data, leaf):
                        yield to_shown(Entry(position, data, leaf))
                    case Missing(since, end, why):
                        yield _gone(Gap(Span(since, end), why))


def say_behind(follower: Follower) -> None:
    """Whoever comes back, or is slow, is told that there is more than he sees."""
    behind = (follower.size or 0) - follower.position
    if behind >= BEHIND and sys.stderr.isatty():
        print(f"{behind} records behind; catching up.", file=sys.stderr)


def show_one(shown: Shown, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(to_document(shown)), flush=True)
    else:
        print_shown(shown)
        sys.stdout.flush()


@command.command("stats")
@log_options
@json_option
def stats(config: Path | None, log_path: Path | None, *, as_json: bool) -> None:
    """Records, sizes and rate, the last checkpoint, and how many records lie unprotected behind it."""
    with opened_log(config, log_path) as reader:
        measured = measure(reader, time.time_ns())
        if as_json:
            print_json({"log": str(reader.path), **plain(measured)})
        else:
            print_stats(reader.path, measured)


def positions(size: int, first: int, last: int | None) -> tuple[int, int]:
    """[begin, end) of what is asked for; negative numbers count from the end."""
    begin = max(0, size + first) if first < 0 else first
    end = size if last is None else (size + last if last < 0 else last) + 1
    if last is not None and end <= begin:
        raise click.UsageError(f"--to {last} is before --from {first} (the log has {size} records).")
    if first > 0 and begin >= size:
        raise click.UsageError(f"--from {first} is beyond the end: the log has {size} records, from 0.")
    return begin, min(end, size)


def select(reader: LogReader, begin: int, end: int, types: tuple[int, ...]) -> Iterator[Shown]:
    for piece in reader.read_with_gaps(begin, end):
        shown = _gone(piece) if isinstance(piece, Gap) else to_shown(piece)
        if not types or (shown.record is not None and shown.record.type in types):
            yield shown


def _gone(gap: Gap) -> Shown:
    return Shown(Entry(gap.span.first, None, gap.leaf or b""), None, None, f"{gap.span}: {gap.why}")


def to_shown(entry: Entry) -> Shown:
    """What can be said of an entry: redacted, damaged and unknown ones too."""
    try:
        record = entry.record
    except RecordError as error:
        return Shown(entry, None, None, f"no record: {error}", damaged=True)
    if record is None:
        return Shown(entry, None, None, "redacted: its bytes are gone, its leaf stays")
    try:
        return Shown(entry, record, from_record(record), None)
    except ProtocolError as error:
        return Shown(entry, record, None, f"not known to this version: {error}")


def print_documents(shown: Iterator[Shown]) -> int:
    """All as JSON; returns how many were damaged."""
    damaged = 0

    def documents() -> Iterator[dict[str, Any]]:
        nonlocal damaged
        for item in shown:
            damaged += item.damaged
            yield to_document(item)

    print_json_lines(documents())
    return damaged


def to_document(shown: Shown) -> dict[str, Any]:
    document: dict[str, Any] = {"position": shown.entry.position, "leaf": shown.entry.leaf.hex()}
    record = shown.record
    if record is not None:
        reported_ns = record.reported_ns
        document |= {
            "type": record.type,
            "name": None if shown.event is None else shown.type_name,
            "schema": record.schema,
            "time": exact_time_text(record.wall_ns),
            "reported": None if reported_ns is None else exact_time_text(reported_ns),
            "source": plain(record.source),
            "nonce": record.nonce.hex(),
            "fields": plain(record.fields if shown.event is None else shown.event),
        }
    return document if shown.why is None else document | {"problem": shown.why}


def print_shown(shown: Shown) -> None:
    record = shown.record
    position = f"{shown.entry.position:>6}  "
    if record is None:
        print_line(position, (shown.why or "", "bold red" if shown.damaged else "dim"))
        return
    source = f"{record.source.name}#{record.source.sequence}"
    head = (position, (time_text(record.wall_ns), "dim"), "  ", (f"{shown.type_name:<20}", "bold"))
    fields = " ".join(words({"fields": record.fields} if shown.event is None else shown.event))
    why = "" if shown.why is None else f"  ({shown.why})"
    print_line(*head, f" {source:<16} {fields}{why}")
