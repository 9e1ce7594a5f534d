"""What commands print: tables and lines for people, JSON for programs.

Rule 1: with `--json` stdout is one JSON document and nothing else; errors and progress go to stderr.
Rule 2: times are UTC and say so. In JSON they have all nine digits, and `since_ns` becomes `since`: a number
of nanoseconds doesn't survive in programs that count in floats.
Rule 3: names come from the network, so none reaches a terminal with its control characters, nor as markup.
"""

import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tracker.events import PortRange

PROTOCOL_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp"}
_MS: Final = 1_000_000
_PIPE_WIDTH: Final = 1000
"""Columns where no terminal is: a line stays a line, for grep."""


def time_text(wall_ns: int) -> str:
    """UTC to the millisecond, for people.

    Rounded up, so that a time pasted back into `--at` is answered as the line said: what began then has
    begun, what ended then has ended.
    """
    seconds, milliseconds = divmod(-(-wall_ns // _MS), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03}Z"


def exact_time_text(wall_ns: int) -> str:
    """UTC to the nanosecond, for programs."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"


def octets_text(octets: bytes) -> str:
    """Four are an IPv4 address, six a hardware address; anything else is hexadecimal."""
    match len(octets):
        case 4:
            return str(IPv4Address(octets))
        case 6:
            return octets.hex(":")
        case _:
            return octets.hex()


def protocol_text(protocol: int) -> str:
    return PROTOCOL_NAMES.get(protocol, str(protocol))


def printable(text: str) -> str:
    """The text with everything that is no visible character escaped, as in a Python string."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def plain(value: object, time: Callable[[int], str] = exact_time_text) -> Any:  # noqa: ANN401 (what JSON has)
    """Dataclasses as dictionaries, with names for addresses, protocols and times."""
    if isinstance(value, enum.Enum | bytes | PortRange):
        return _plain_scalar(value)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dict(_plain_field(name, item, time) for name, item in fields.items())
    if isinstance(value, Mapping):
        return dict(_plain_field(str(name), item, time) for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item, time) for item in value]
    return value


def _plain_scalar(value: enum.Enum | bytes | PortRange) -> object:
    match value:
        case enum.Enum():
            return value.value
        case bytes():
            return octets_text(value)
        case PortRange(protocol, first, last):
            return f"{protocol_text(protocol)}/{first}" + (f"-{last}" if last != first else "")


def _plain_field(name: str, value: object, time: Callable[[int], str]) -> tuple[str, Any]:
    if name.endswith("_ns"):
        return name.removesuffix("_ns"), time(value) if isinstance(value, int) else None
    if name == "protocol" and isinstance(value, int):
        return name, protocol_text(value)
    return name, plain(value, time)


def words(value: object) -> Iterator[str]:
    """`name=value` for each field that has a value, for a line that people read; nested ones with dots."""
    yield from _words("", plain(value, time_text))


def _words(name: str, value: object) -> Iterator[str]:
    match value:
        case dict():
            for key, item in value.items():
                yield from _words(f"{name}.{key}" if name else key, item)
        case list() if any(isinstance(item, dict | list) for item in value):
            for number, item in enumerate(value):
                yield from _words(f"{name}[{number}]", item)
        case list():
            yield f"{name}={','.join(map(str, value))}"
        case None:
            pass
        case str() if value == "" or not value.isprintable() or set(' "=\\') & set(value):
            yield f"{name}={json.dumps(value, ensure_ascii=False)}"
        case _:
            yield f"{name}={value}"


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(plain(value), indent=2))


def print_json_lines(items: Iterable[object]) -> None:
    """A JSON array on stdout, one item a line, while they come."""
    print("[", end="")
    separator = "\n"
    for item in items:
        print(separator, json.dumps(plain(item)), sep="", end="")
        separator = ",\n"
    print("\n]")


def console() -> Console:
    """People's stdout: nothing is markup, and only a terminal's width folds lines."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def print_line(*texts: tuple[str, str] | str) -> None:
    """One line for people: texts, or (text, style)."""
    styled = [(text, "") if isinstance(text, str) else text for text in texts]
    if not sys.stdout.isatty():  # a log of a million records goes through here
        print("".join(printable(content) for content, _ in styled))
        return
    line = Text()
    for content, style in styled:
        line.append(printable(content), style)
    console().print(line, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people. None is shown as "-"; a column without any value is left out.

    On a terminal too narrow for it, each row is a paragraph instead.
    """
    cells = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    shown = [number for number in range(len(columns)) if any(row[number] not in ("-", "") for row in cells)]
    print_line((title, "bold"))
    screen = console()
    if sum(widths[number] + 2 for number in shown) > screen.width:
        for row in cells:
            print_line((f"{columns[shown[0]]} {row[shown[0]]}", "bold"))
            facts = [f"{columns[number]} {row[number]}" for number in shown[1:] if row[number] != "-"]
            screen.print(Padding(Text(", ".join(facts)), (0, 0, 0, 2)))
        return
    table = Table(box=None, pad_edge=False)
    for number in shown:
        figures = all(row[number].isdecimal() or row[number] == "-" for row in cells)
        table.add_column(columns[number], justify="right" if figures else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[number]) for number in shown))
    screen.print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs; only where stderr is a terminal. Call it with (done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance
