"""`porthold lab`: what the datapath of this machine does to packets, tried in network namespaces.

`porthold lab vectors FILE` holds `translate` and the kernel's rewriting against a file of payloads before and
after. A file that cannot be read as vectors is wrong use (exit code 2), and says in which line.
"""

import json
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from rewriter.command import KernelRefused
from rewriter.cuseeme import Direction
from rewriter.packet import MAXIMUM_UDP_PAYLOAD_LENGTH, Endpoint
from rewriter.queues import QueueBusy
from tools.lab import LabError
from tools.vector_trial import Result, Vector, try_vectors

COLUMNS: Final = {
    "translate_equal": "translate",
    "kernel_equal": "kernel",
    "checksum_right": "checksum",
    "without_checksum_right": "no checksum",
}
"""A result's verdicts, and what they are called at the head of the table."""
_THIS_NETWORK: Final = 0


class VectorError(click.ClickException):
    """A file that holds something else than vectors: which file, which line, what is wrong with it."""

    exit_code = 2


class LabUnavailable(click.ClickException):
    """This machine cannot do it; says what is missing."""

    exit_code = 2


@click.group(name="lab")
def command() -> None:
    """Try the datapath in network namespaces of this machine (root)."""


@command.command(name="vectors")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--datapath",
    type=click.Choice(["kernel", "queue"]),
    default="kernel",
    show_default=True,
    help="Where packets are rewritten: in the kernel, or as for kernels that can't (gateway.datapath).",
)
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def vectors_command(file: Path, *, datapath: str, as_json: bool) -> None:
    """Hold `translate` and a datapath against vectors: payloads before and after.

    FILE has one JSON object a line: id, category, direction (out or in), public and private (ADDRESS:PORT),
    in and expected (hexadecimal); other keys are ignored. Each payload goes through translate, and as real
    packets through a gateway with the rewriter's own rules: in connections opened from either side, with and
    without a UDP checksum. Exit code 0 only if all of it is as expected.
    """
    vectors = read_vectors(file)
    started_s = time.monotonic()
    console = Console(stderr=True)
    results: list[Result] = []
    try:
        trial = track(
            try_vectors(vectors, rewrites_in_kernel=datapath == "kernel"),
            "Sending",
            total=len(vectors),
            console=console,
            transient=True,
            disable=as_json or not console.is_terminal,
        )
        results += trial
    except (LabError, KernelRefused, QueueBusy) as error:
        raise LabUnavailable(str(error)) from error
    elapsed_s = time.monotonic() - started_s
    if as_json:
        click.echo(json.dumps({"datapath": datapath, **to_json(results, elapsed_s)}, indent=2))
    else:
        show(results, elapsed_s, datapath)
    if not all(result.is_right() for result in results):
        raise SystemExit(1)


# --- reading ----------------------------------------------------------------------------------------------


def read_vectors(file: Path) -> list[Vector]:
    """All lines of a file but empty ones; VectorError for one that is no vector, and if there is none."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise VectorError(f"{file}: {error.strerror}") from error
    vectors: list[Vector] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                vectors.append(read_vector(number, line))
            except (TypeError, ValueError) as error:
                raise VectorError(f"{file}, line {number}: {error}") from error
    if not vectors:
        raise VectorError(f"{file}: there is no vector in it")
    return vectors


def read_vector(number: int, line: bytes) -> Vector:
    """One line; ValueError or TypeError naming the key and what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise TypeError(f"not an object with keys but {type(found).__name__}")
    direction = text(found, "direction")
    if direction not in ("out", "in"):
        raise ValueError(f"direction: {direction!r} is neither 'out' nor 'in'")
    return Vector(
        line=number,
        name=str(found.get("id", f"line {number}")),
        category=str(found.get("category", "-")),
        direction=Direction(direction),
        public=endpoint(found, "public"),
        private=endpoint(found, "private"),
        payload=octets(found, "in"),
        expected=octets(found, "expected"),
    )


def text(found: dict[str, Any], key: str) -> str:
    if key not in found:
        raise ValueError(f"{key}: is missing")
    value = found[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: {value!r} is no text")
    return value


def endpoint(found: dict[str, Any], key: str) -> Endpoint:
    try:
        end = Endpoint.parse(text(found, key))
    except ValueError as error:
        raise ValueError(f"{key}: {str(error).removeprefix(f'{key}: ')}") from error
    address = IPv4Address(end.address)
    is_broadcast = address == IPv4Address("255.255.255.255")
    if address.is_multicast or address.is_loopback or is_broadcast or end.address[0] == _THIS_NETWORK:
        raise ValueError(f"{key}: no kernel forwards packets from or to {address}")
    if end.port == 0:
        raise ValueError(f"{key}: there is no port 0")
    return end


def octets(found: dict[str, Any], key: str) -> bytes:
    value = text(found, key)
    try:
        payload = bytes.fromhex(value)
    except ValueError as error:
        raise ValueError(f"{key}: not hexadecimal ({error})") from error
    if len(payload) > MAXIMUM_UDP_PAYLOAD_LENGTH:
        most = MAXIMUM_UDP_PAYLOAD_LENGTH
        raise ValueError(f"{key}: {len(payload)} bytes are more than UDP carries ({most})")
    return payload


# --- reporting --------------------------------------------------------------------------------------------


def counts(results: Iterable[Result]) -> dict[str, int]:
    """How many lines there are, and how many are right in each of the verdicts."""
    all_results = list(results)
    right = {column: sum(getattr(result, column) for result in all_results) for column in COLUMNS}
    return {"lines": len(all_results), **right}


def by_category(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    categories = dict.fromkeys(result.vector.category for result in results)
    return {name: counts(r for r in results if r.vector.category == name) for name in categories}


def to_json(results: Sequence[Result], elapsed_s: float) -> dict[str, Any]:
    """The whole result; `failures` lists each difference, with the payloads in hexadecimal."""
    return {
        **counts(results),
        "all_right": all(result.is_right() for result in results),
        "elapsed_s": round(elapsed_s, 3),
        "categories": by_category(results),
        "failures": [
            {
                "id": result.vector.name,
                "line": result.vector.line,
                "what": failure.what,
                "in": result.vector.payload.hex(),
                "expected": result.vector.expected.hex(),
                "got": None if failure.got is None else failure.got.hex(),
            }
            for result in results
            for failure in result.failures
        ],
    }


def show(results: Sequence[Result], elapsed_s: float, datapath: str) -> None:
    """A table of counts, then every line that is wrong, with what came instead."""
    console = Console(highlight=False)
    table = Table(caption="lines that are as expected", show_footer=True)
    total = counts(results)
    table.add_column("category", "all")
    table.add_column("lines", str(total["lines"]), justify="right")
    for column, title in COLUMNS.items():
        table.add_column(datapath if title == "kernel" else title, share(total, column), justify="right")
    for name, row in by_category(results).items():
        table.add_row(escape(name), str(row["lines"]), *(share(row, column) for column in COLUMNS))
    console.print(table)
    wrong = [result for result in results if not result.is_right()]
    for result in wrong:
        show_wrong(result)
    if wrong:
        said = f"{len(wrong)} of {len(results)} lines are not as expected"
    else:
        said = f"all {len(results)} lines are as expected, in translate and in the {datapath}"
    click.echo(f"{said} ({elapsed_s:.1f} s)")


def share(row: dict[str, int], column: str) -> str:
    return f"[green]{row[column]}[/]" if row[column] == row["lines"] else f"[bold red]{row[column]}[/]"


def show_wrong(result: Result) -> None:
    vector = result.vector
    flow = f"{vector.direction.value}, public {vector.public}, private {vector.private}"
    click.echo(f"{vector.name} (line {vector.line}, {flow})")
    click.echo(f"  in        {vector.payload.hex()}")
    click.echo(f"  expected  {vector.expected.hex()}")
    for failure in result.failures:
        click.echo(f"  {failure.what}")
        if failure.got is not None:
            click.echo(f"  got       {failure.got.hex()}")
