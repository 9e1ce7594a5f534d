"""Bindings as rows: what one says of itself, and how those of a time are found.

Rule 1: every look-up is by index, however long the log is. Rule 2: bindings are numbered in the order in
which they begin, so a moment is found as its newest binding, however often the clock was set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventlog.projection import Cell
from eventlog.reading import LogReader, LogUnreadable
from eventlog.record import CLOCK_TOLERANCE_NS
from tracker.events import Ending
from tracker.outages import Stretch, number, showing, stretches


@dataclass(frozen=True, slots=True)
class Holding:
    """A row of `bindings`; times in ns by the tracker's clock, those of the kernel by the worker's.

    These are the fields that RFC 6888 wants logged (section 4): transport protocol, subscriber (`holder` and
    `mac`), external address, external ports (those of `service`), and the times.
    """

    binding: int
    gateway: str
    public_address: bytes
    service: str
    peer: bytes | None
    holder: bytes
    mac: bytes | None
    epoch: int
    user_name: str | None
    protocol: int
    source_port: int
    destination: bytes
    destination_port: int
    since_ns: int
    installed_ns: int | None
    withdrawn_ns: int | None
    until_ns: int | None
    reason: Ending | None
    last_packet_ns: int | None
    packets: int | None
    octets: int | None
    callers: int | None
    refusals: int
    bound_position: int
    unbound_position: int | None

    @property
    def ended_ns(self) -> int | None:
        """When the kernel had nothing of it any more; None: it is open.

        A time by the worker's clock that lies outside the tracker's two is not believed.
        """
        if self.until_ns is None or self.withdrawn_ns is None:
            return self.until_ns
        return self.withdrawn_ns if self.since_ns <= self.withdrawn_ns <= self.until_ns else self.until_ns

    def covers(self, stretch: Stretch, at_ns: int) -> bool:
        """Whether it had not ended by the time; it had begun."""
        ended_ns = self.ended_ns
        if ended_ns is None or self.unbound_position is None:
            return True
        return not stretch.has_happened(self.unbound_position, ended_ns, at_ns)


_COLUMNS: Final = ", ".join(f"b.{name}" for name in Holding.__dataclass_fields__)
_GONE: Final = (
    "(CASE WHEN b.withdrawn_ns BETWEEN b.since_ns AND b.until_ns THEN b.withdrawn_ns ELSE b.until_ns END)"
)
"""Holding.ended_ns of one that is over."""
_BEGUN: Final = "b.since_ns >= :since AND b.since_ns < :until"
_ENDED: Final = f"b.until_ns >= :since AND b.until_ns < :until AND {_GONE} >= :since"
_AFTER_ALL_NS: Final = 2**63 - 1
_AT_ONCE: Final = 1000


def holds(
    reader: LogReader,
    *,
    at_ns: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    holder: bytes | None = None,
    gateway: str | None = None,
    public_address: bytes | None = None,
    service: str | None = None,
    open_only: bool = False,
    limit: int | None = None,
) -> list[Holding]:
    """The bindings that were held at a time, or at some time of [since_ns, until_ns), newest first.

    Either end may be open.
    """
    equal = asked_for(gateway=gateway, public_address=public_address, service=service, holder=holder)
    with reader.snapshot():
        if at_ns is not None:
            found = _held_at(reader, at_ns, equal)
        else:
            found = _within(reader, equal, since_ns, until_ns, open_only=open_only, limit=limit)
    if open_only:
        found = [holding for holding in found if holding.until_ns is None]
    found = sorted(set(found), key=lambda holding: holding.binding, reverse=True)
    return found if limit is None else found[:limit]


def asked_for(**columns: Cell) -> dict[str, Cell]:
    """Those columns of `bindings` that a question is about: it leaves the others open."""
    return {name: value for name, value in columns.items() if value is not None}


def in_order(
    reader: LogReader, equal: dict[str, Cell], since_ns: int | None, until_ns: int | None
) -> Iterator[Holding]:
    """The bindings held at some time of [since_ns, until_ns), the oldest first, however many they are."""
    held = [] if since_ns is None else [it.binding for it in _held_at(reader, since_ns, equal)]
    first, last = _numbers(reader, since_ns, until_ns)
    first = min([first, *held])
    among = f" OR b.binding IN ({', '.join(map(str, held))})" if held else ""
    conditions = "".join(f" AND b.{name} = :{name}" for name in equal)
    times = {"since": -1 if since_ns is None else since_ns, "until": until_ns or _AFTER_ALL_NS}
    while True:
        rows = reader.query_rows(
            f"SELECT {_COLUMNS} FROM bindings AS b WHERE b.binding >= :first AND b.binding <= :last"
            f" AND (({_BEGUN}) OR ({_ENDED}){among}){conditions} ORDER BY b.binding LIMIT {_AT_ONCE}",
            {**equal, **times, "first": first, "last": last},
        )
        for row in rows:
            yield _holding(row)
        if len(rows) < _AT_ONCE:
            return
        first = number(rows[-1]["binding"]) + 1


def _numbers(reader: LogReader, since_ns: int | None, until_ns: int | None) -> tuple[int, int]:
    """The lowest binding that can have begun since a time, and the highest that can have until another."""
    clock = stretches(reader)
    if len(clock) != 1:  # numbers follow times only as long as the clock runs on
        return 0, _AFTER_ALL_NS
    first, last = 0, _AFTER_ALL_NS
    if since_ns is not None:
        first = newest_binding(reader, clock, clock[0], since_ns - CLOCK_TOLERANCE_NS) + 1
    if until_ns is not None:
        last = newest_binding(reader, clock, clock[0], until_ns + CLOCK_TOLERANCE_NS)
    return first, last


def holding_of(reader: LogReader, binding: int) -> Holding | None:
    """The binding of this number."""
    rows = reader.query_rows(f"SELECT {_COLUMNS} FROM bindings AS b WHERE b.binding = ?", (binding,))
    return _holding(rows[0]) if rows else None


def newest_binding(reader: LogReader, clock: list[Stretch], stretch: Stretch, at_ns: int) -> int:
    """The highest binding that had begun by a time of this stretch; 0 if there was none.

    Bindings are numbered in the order in which they begin, so this is all that a look-up needs to know of
    the time, however often the clock was set.
    """
    upto_ns = at_ns
    for earlier in reversed(clock[: clock.index(stretch) + 1]):
        rows = reader.query(
            "SELECT binding FROM bindings WHERE since_ns <= :upto AND since_ns >= :begin"
            " AND bound_position >= :first AND (:end IS NULL OR bound_position < :end)"
            " ORDER BY since_ns DESC, binding DESC LIMIT 1",
            {
                "upto": upto_ns,
                "begin": earlier.begin_ns - CLOCK_TOLERANCE_NS,
                "first": earlier.first,
                "end": earlier.end,
            },
        )
        if rows:
            return number(rows[0][0])
        upto_ns = _AFTER_ALL_NS
    return 0


def last_of_each(reader: LogReader, newest: int, equal: dict[str, Cell]) -> list[Holding]:
    """For each resource its last binding up to `newest`: the only one that can have lasted."""
    on_resource = {name: value for name, value in equal.items() if name != "holder"}
    where = "".join(f" AND r.{name} = :{name}" for name in on_resource)
    found = reader.query_rows(
        f"SELECT {_COLUMNS} FROM resources AS r JOIN bindings AS b ON b.binding ="
        " (SELECT binding FROM bindings AS i WHERE i.gateway = r.gateway"
        " AND i.public_address = r.public_address AND i.service = r.service AND i.peer = r.peer"
        f" AND i.binding <= :newest ORDER BY i.binding DESC LIMIT 1) WHERE 1{where}"
        " ORDER BY r.gateway, r.public_address, r.service, r.peer",
        {**on_resource, "newest": newest},
    )
    holdings = [_holding(row) for row in found]
    holder = equal.get("holder")
    return [holding for holding in holdings if holder in (None, holding.holder)]


def _held_at(reader: LogReader, at_ns: int, equal: dict[str, Cell]) -> list[Holding]:
    clock = stretches(reader)
    return [
        holding
        for stretch in showing(clock, at_ns)
        for holding in last_of_each(reader, newest_binding(reader, clock, stretch, at_ns), equal)
        if holding.covers(stretch, at_ns)
    ]


def _within(
    reader: LogReader,
    equal: dict[str, Cell],
    since_ns: int | None,
    until_ns: int | None,
    *,
    open_only: bool,
    limit: int | None,
) -> list[Holding]:
    """What began within, what ended within, and what lasted from before to after."""
    if since_ns is None and until_ns is None:
        return _select(reader, equal, "1", {}, open_only=open_only, limit=limit)
    times = {"since": -1 if since_ns is None else since_ns, "until": until_ns or _AFTER_ALL_NS}
    found = _select(reader, equal, _BEGUN, times, open_only=open_only, limit=limit)
    if not open_only:
        found += _select(reader, equal, _ENDED, times, open_only=False, limit=limit)
    return found if since_ns is None else found + _held_at(reader, since_ns, equal)


def _select(
    reader: LogReader,
    equal: dict[str, Cell],
    where: str,
    times: dict[str, int],
    *,
    open_only: bool,
    limit: int | None,
) -> list[Holding]:
    conditions = "".join(f" AND b.{name} = :{name}" for name in equal)
    conditions += " AND b.until_ns IS NULL" if open_only else ""
    rows = reader.query_rows(
        f"SELECT {_COLUMNS} FROM bindings AS b WHERE {where}{conditions}"
        " ORDER BY b.binding DESC LIMIT :limit",
        {**equal, **times, "limit": -1 if limit is None else limit},
    )
    return [_holding(row) for row in rows]


def _holding(row: Mapping[str, Any]) -> Holding:
    try:
        reason = None if row["reason"] is None else Ending(row["reason"])
    except ValueError as error:
        raise LogUnreadable(
            f"the table of binding {row['binding']} is damaged: {error}; see `verify`"
        ) from error
    return Holding(**{**row, "peer": row["peer"] or None, "reason": reason})
