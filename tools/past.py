"""The state that the records give at a position or a moment: folded, shown, compared.

Rule 1: the records alone decide. A snapshot only saves folding what is before it; it is believed as the
tracker believes it at its start, and `verify` folds it again. Rule 2: leases and counts of refusals are in no
record, so they are in no state of the past.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import click

from eventlog.reading import RECORDS_PER_PROGRESS, LogReader, Progress, RecordsGone
from eventlog.snapshot import SnapshotDamaged
from tools.moment import moment_from_text
from tools.output import octets_text, plain, print_line, print_table, time_text, words
from tracker import image
from tracker.image import Fold
from tracker.restrictions import Restriction
from tracker.shapes import ProtocolError
from tracker.transitions import Binding, Gateway


class PointType(click.ParamType[str]):
    """A position (-1: the last one), or a time; `size_at` says what it means in a log."""

    name = "position|time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if not _is_position(text):
            try:
                moment_from_text(text, time.time_ns())
            except ValueError as error:
                self.fail(f"{error}; nor is it a position", param, ctx)
        return text


POINT: Final = PointType()


def size_at(reader: LogReader, text: str, *, before: bool = False) -> int:
    """How many records there are up to a position, itself included or (`before`) not, or up to a time."""
    if not _is_position(text):
        return reader.position_at(moment_from_text(text, time.time_ns()))
    size = reader.size
    position = size + int(text) if text.startswith("-") else int(text)
    if not 0 <= position < size:
        raise click.UsageError(f"There is no position {text}: the log has {size} records, from 0.")
    return position if before else position + 1


def _is_position(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


@dataclass(frozen=True, slots=True)
class HeldThen:
    """A binding of that time; `refused`: who was turned away because of it; `ordered`: by an operator."""

    binding: int
    gateway: str
    public_address: bytes
    service: str
    peer: bytes | None
    holder: bytes
    mac: bytes | None
    user_name: str | None
    epoch: int
    since_ns: int
    ordered: str | None
    refused: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SessionThen:
    """A gateway of that time, and who spoke for it; `state`: open, lost or closed."""

    gateway: str
    state: str
    epoch: int
    worker: str | None
    host: str | None
    public_addresses: tuple[bytes, ...]
    opened_ns: int | None
    lost_since_ns: int | None
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestrictionThen:
    """Who might not claim at that time; `host`: barred, or reserved for."""

    restriction: str
    restraint: str
    gateway: str | None
    service: str | None
    host: bytes | None
    since_ns: int
    until_ns: int | None
    by: str
    why: str


Rows = tuple[SessionThen, ...] | tuple[HeldThen, ...] | tuple[RestrictionThen, ...]


@dataclass(frozen=True, slots=True)
class Past:
    """The state after `size` records, the last of which is of `wall_ns`.

    `folded_from`: the size of the snapshot that it was folded from, 0 for none. `unknown`: how many records
    are of a type that this version does not know, and were left out.
    """

    size: int
    wall_ns: int | None
    run: int
    folded_from: int
    unknown: int
    bindings: tuple[HeldThen, ...]
    sessions: tuple[SessionThen, ...]
    restrictions: tuple[RestrictionThen, ...]


def state_at(reader: LogReader, size: int, progress: Progress, *, snapshots: bool) -> Past:
    """What the first `size` records give. ProtocolError, LookupError: they cannot be folded."""
    fold, first = _begin(reader, size) if snapshots else (Fold(), 0)
    for entry in reader.read(first, size):
        record = entry.record
        if record is None:
            raise LookupError(
                f"the record at position {entry.position} is redacted, so what it led to is unknown"
            )
        fold.apply(entry.position, record)
        if entry.position % RECORDS_PER_PROGRESS == 0:
            progress(entry.position - first, size - first)
    progress(size - first, size - first)
    state = fold.memory.state
    return Past(
        size,
        _wall_ns(reader, size),
        state.run,
        first,
        fold.unknown,
        tuple(_held(binding) for _, binding in sorted(state.bindings.items())),
        tuple(_session(name, gateway) for name, gateway in sorted(state.gateways.items())),
        tuple(_restriction(restriction) for restriction in state.restrictions.values()),
    )


def _begin(reader: LogReader, size: int) -> tuple[Fold, int]:
    """The newest snapshot, if it is of that time and believed; else nothing, before the first record."""
    try:
        snapshot = reader.latest_snapshot(image.NAME, image.VERSION)
        if snapshot is not None and snapshot.size <= size:
            return Fold(snapshot.state), snapshot.size
    except (SnapshotDamaged, ProtocolError):
        print("A snapshot is not believed; porthold verify says why.", file=sys.stderr)
    return Fold(), 0


def _wall_ns(reader: LogReader, size: int) -> int | None:
    try:
        return reader.wall_ns_at(size - 1) if size else None
    except RecordsGone:
        return None


def _held(binding: Binding) -> HeldThen:
    bound, resource = binding.bound, binding.bound.resource
    return HeldThen(
        bound.binding,
        resource.gateway,
        resource.public_address,
        resource.service,
        resource.peer,
        bound.holder,
        bound.mac,
        binding.user_name,
        bound.epoch,
        binding.since_ns,
        None if binding.ordered is None else binding.ordered.value,
        tuple(sorted(binding.refusals)),
    )


def _session(name: str, gateway: Gateway) -> SessionThen:
    session, services = gateway.session, tuple(gateway.services)
    if session is None:
        return SessionThen(name, "closed", gateway.epoch, gateway.worker, None, (), None, None, services)
    state = "open" if session.lost_since_ns is None else "lost"
    return SessionThen(
        name,
        state,
        session.epoch,
        session.worker,
        session.host,
        session.public_addresses,
        session.opened_ns,
        session.lost_since_ns,
        services,
    )


def _restriction(restriction: Restriction) -> RestrictionThen:
    scope = restriction.scope
    host = scope.host or restriction.reserved_for
    named = (scope.restraint.value, scope.gateway, scope.service, scope.host and octets_text(scope.host))
    return RestrictionThen(
        " ".join(part for part in named if part),
        scope.restraint.value,
        scope.gateway,
        scope.service,
        host,
        restriction.since_ns,
        restriction.until_ns,
        restriction.by,
        restriction.why,
    )


def print_past(past: Past) -> None:
    """For people."""
    when = "before any" if past.wall_ns is None else f"the last of them of {time_text(past.wall_ns)}"
    print_line((f"state after {past.size} records", "bold"), f", {when}, in run {past.run}")
    if past.folded_from:
        print_line(f"  folded from the snapshot over {past.folded_from} records on")
    if past.unknown:
        print_line(f"  {past.unknown} records of types that this version does not know are left out")
    for title, nobody, rows in (
        ("Sessions", "No gateway has been heard of.", past.sessions),
        ("Bindings", "No bindings: nobody holds a port.", past.bindings),
    ):
        print_rows(title, nobody, rows)
    if past.restrictions:
        print_rows("Restrictions", "", past.restrictions)


def print_rows(title: str, nobody: str, rows: Rows) -> None:
    """A table of all their fields."""
    if not rows:
        print_line(nobody)
        return
    columns = [field.name.removesuffix("_ns").replace("_", " ") for field in fields(rows[0])]
    print_table(title, columns, [[_cell(value) for value in plain(row, time_text).values()] for row in rows])


def _cell(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs of one binding or session; None: it is not there. Else only the fields that differ."""

    kind: str
    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def differences(before: Past, after: Past) -> Iterator[Difference]:
    """From one state to the other, sessions first, restrictions last."""
    yield from _differences("session", _by_name(before.sessions), _by_name(after.sessions))
    yield from _differences("binding", _by_name(before.bindings), _by_name(after.bindings))
    yield from _differences("restriction", _by_name(before.restrictions), _by_name(after.restrictions))


def _by_name(rows: Rows) -> dict[str, dict[str, Any]]:
    """Each row's fields, by its first one; in the order of the rows."""
    documents = [plain(row) for row in rows]
    return {str(next(iter(document.values()))): document for document in documents}


def _differences(
    kind: str, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> Iterator[Difference]:
    for name in dict.fromkeys((*before, *after)):
        mine, theirs = before.get(name), after.get(name)
        if mine is not None and theirs is not None:
            changed = [field for field in mine if mine[field] != theirs[field]]
            mine = {field: mine[field] for field in changed}
            theirs = {field: theirs[field] for field in changed}
        if mine != theirs:
            yield Difference(kind, name, mine, theirs)


def print_difference(difference: Difference) -> None:
    """One line: what came, what went, or which fields became what."""
    name = f"{difference.kind} {difference.name}"
    match difference.before, difference.after:
        case None, dict() as came:
            print_line((f"+ {name}", "green"), f"  {_facts(came)}")
        case dict() as went, None:
            print_line((f"- {name}", "red"), f"  {_facts(went)}")
        case dict() as old, dict() as new:
            changes = ", ".join(f"{field} {_text(old[field])} → {_text(new[field])}" for field in new)
            print_line((f"~ {name}", "yellow"), f"  {changes}")
        case _:
            raise TypeError(f"nothing differs of {name}")


def _facts(fields_of_it: dict[str, Any]) -> str:
    """What is known of it; its first field is its name already."""
    known = {field: value for field, value in list(fields_of_it.items())[1:] if value not in (None, [])}
    return " ".join(words(known))


def _text(value: object) -> str:
    return "-" if value in (None, [], "") else str(_cell(value))
