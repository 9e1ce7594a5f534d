"""Who might not claim at a time, by the log: the rows of `restrictions`.

Rule: a row is in force from its record to the record of its end, by the tracker's clock, however often that
was set; there are as few of them as operators give orders.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventlog.reading import LogReader
from tracker.events import Restraint
from tracker.outages import Stretch


@dataclass(frozen=True, slots=True)
class Restricted:
    """`host` is the barred one, or whom it is reserved for; `limit_ns`: when it was to end by itself.

    `gateway`, `service` None: all of them. `until_ns` None: it has not ended.
    """

    restraint: Restraint
    gateway: str | None
    service: str | None
    host: bytes | None
    since_ns: int
    limit_ns: int | None
    by: str
    why: str
    until_ns: int | None
    ended_by: str | None
    ended_why: str | None
    position: int
    until_position: int | None

    def in_force(self, stretch: Stretch, at_ns: int) -> bool:
        """Whether it had begun by the time, and not ended."""
        if not stretch.has_happened(self.position, self.since_ns, at_ns):
            return False
        if self.until_position is None or self.until_ns is None:
            return True
        return not stretch.has_happened(self.until_position, self.until_ns, at_ns)


_COLUMNS: Final = ", ".join(Restricted.__dataclass_fields__)


def restricted(
    reader: LogReader, clock: Iterable[Stretch], at_ns: int, gateway: str | None, service: str | None
) -> tuple[Restricted, ...]:
    """Those that concerned the service then, in the order in which they began."""
    rows = reader.query_rows(
        f"SELECT {_COLUMNS} FROM restrictions WHERE (gateway IS NULL OR gateway = :gateway)"
        " AND (service IS NULL OR service = :service) ORDER BY position",
        {"gateway": gateway, "service": service},
    )
    found = [_restricted(row) for row in rows]
    stretches = list(clock)
    return tuple(it for it in found if any(it.in_force(stretch, at_ns) for stretch in stretches))


def _restricted(row: Mapping[str, Any]) -> Restricted:
    return Restricted(**{**row, "restraint": Restraint(row["restraint"])})
