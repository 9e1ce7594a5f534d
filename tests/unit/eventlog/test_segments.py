"""Where segments end, and what records can say of them."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import REDACTED, SEGMENT_ARCHIVED, SEGMENT_CLOSED, SEGMENT_PRUNED, Value
from eventlog.segments import (
    Life,
    SegmentError,
    SegmentPolicy,
    Span,
    archived_fields,
    closed_fields,
    due_end,
    month_begin_ns,
    next_month_ns,
    pruned_fields,
    redacted_fields,
)
from tests.unit.eventlog.samples import SECOND_NS, make_record

HASH = bytes(32)


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        ("2026-01-01T00:00:00", "2026-02"),
        ("2026-01-31T23:59:59", "2026-02"),
        ("2026-11-30T12:00:00", "2026-12"),
        ("2026-12-31T23:59:59", "2027-01"),
        ("2024-02-29T00:00:00", "2024-03"),
    ],
)
def test_the_next_month_begins_in_utc(moment: str, month: str) -> None:
    seconds = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp())
    assert next_month_ns(seconds * SECOND_NS) == month_begin_ns(month)
    assert next_month_ns(seconds * SECOND_NS + 999_999_999) == month_begin_ns(month)


@pytest.mark.parametrize("text", ["May", "2026-13", "2026", "2026-05-01", ""])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"match|remains|format"):
        month_begin_ns(text)


class Moments:
    """A log's times, in order."""

    def __init__(self, walls: Sequence[int]) -> None:
        self._walls = sorted(walls)

    @property
    def size(self) -> int:
        return len(self._walls)

    def wall_ns_at(self, position: int) -> int:
        return self._walls[position]

    def position_at(self, wall_ns: int) -> int:
        return sum(wall <= wall_ns for wall in self._walls)


@given(
    st.lists(st.integers(0, 400), max_size=60),
    st.integers(0, 400),
    st.none() | st.integers(1, 20),
    st.booleans(),
)
def test_segments_end_with_the_month_or_when_they_are_full(
    days: list[int], today: int, records: int | None, monthly: bool
) -> None:
    day_ns = 86_400 * SECOND_NS
    log = Moments([day * day_ns for day in days if day <= today])
    first = 0
    policy = SegmentPolicy(records, monthly)
    while (end := due_end(policy, log, first, today * day_ns)) is not None:
        assert first < end <= log.size
        full = records is not None and end - first == records
        last_ns = log.wall_ns_at(end - 1)
        month_over = next_month_ns(log.wall_ns_at(first)) == next_month_ns(last_ns) <= today * day_ns
        next_is_later = end == log.size or log.wall_ns_at(end) >= next_month_ns(last_ns)
        assert full or (monthly and month_over and next_is_later)
        first = end
    assert records is None or log.size - first < records


SAID = [
    (5, SEGMENT_CLOSED, closed_fields(Span(0, 5), HASH, 1, 2)),
    (9, SEGMENT_CLOSED, closed_fields(Span(5, 9), HASH, 3, 4)),
    (10, REDACTED, redacted_fields(7, "why")),
    (11, SEGMENT_ARCHIVED, archived_fields(Span(0, 5), HASH)),
    (12, SEGMENT_PRUNED, pruned_fields(Span(0, 5), "why")),
]


def told(said: Sequence[tuple[int, int, tuple[Value, ...]]]) -> Life:
    life = Life()
    for position, kind, fields in said:
        life.apply(position, make_record(position, fields, kind=kind))
    return life


def test_records_say_what_became_of_segments() -> None:
    life = told(SAID)
    assert [(it.span, it.archive, it.pruned_at) for it in life.segments] == [
        (Span(0, 5), None, 12),
        (Span(5, 9), None, None),
    ]
    assert [(it.span, it.said_at) for it in life.removals] == [
        (Span(7, 8), 10),
        (Span(0, 5), 11),
        (Span(0, 5), 12),
    ]
    assert life.redacted == {7}
    assert life.closed_end == 9
    assert told(SAID[:4]).segments[0].archive == HASH
    assert [life.segment_at(at) for at in (4, 5, 9)] == [life.segments[0], life.segments[1], None]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SEGMENT_CLOSED, closed_fields(Span(8, 12), HASH, 1, 2)),
        (SEGMENT_CLOSED, closed_fields(Span(9, 9), HASH, 1, 2)),
        (SEGMENT_CLOSED, closed_fields(Span(9, 14), HASH, 1, 2)),
        (SEGMENT_CLOSED, closed_fields(Span(9, 12), b"", 1, 2)),
        (SEGMENT_CLOSED, (9, 12)),
        (SEGMENT_ARCHIVED, archived_fields(Span(5, 8), HASH)),
        (SEGMENT_ARCHIVED, archived_fields(Span(5, 9), b"")),
        (SEGMENT_ARCHIVED, archived_fields(Span(0, 5), HASH)),
        (SEGMENT_PRUNED, pruned_fields(Span(0, 5), "again")),
        (SEGMENT_PRUNED, (5, 9, None)),
        (REDACTED, redacted_fields(7, "again")),
        (REDACTED, redacted_fields(13, "itself")),
        (REDACTED, redacted_fields(-1, "nothing")),
        (REDACTED, ("7", "why")),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(kind: int, fields: tuple[Value, ...]) -> None:
    life = told(SAID)
    with pytest.raises(SegmentError):
        life.apply(13, make_record(13, fields, kind=kind))
    assert life == told(SAID)
