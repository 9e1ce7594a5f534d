"""Events and records: nothing is lost on the way, and numbers keep their meaning."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.checkpoint import key_change_fields
from eventlog.note import SigningKey
from eventlog.record import OWN_TYPES, Source, decode, encode
from eventlog.segments import Span, archived_fields, closed_fields, pruned_fields, redacted_fields
from eventlog.snapshot import Snapshot, snapshot_fields
from tests.unit.tracker.wire import CUSEEME, values
from tracker.events import (
    SCHEMA,
    TYPES,
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Ending,
    Event,
    KernelStateRestored,
    KeyChanged,
    PortRange,
    RecordRedacted,
    SegmentArchived,
    SegmentClosed,
    SegmentPruned,
    ServiceDefined,
    SessionOpened,
    SnapshotTaken,
    from_record,
    reported_ns,
    to_record,
    upcast,
)
from tracker.shapes import ProtocolError, pack, unpack

SOURCE = Source("gw1", 7, 1, 0)


@given(st.one_of([values(kind) for kind in TYPES.values()]))
def test_an_event_comes_back_from_its_record(event: Event) -> None:
    record = to_record(event, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    assert from_record(decode(encode(record))) == event


def test_the_numbers_of_the_events_are_for_ever() -> None:
    assert {number: kind.__name__ for number, kind in TYPES.items()} == {
        1: "ClockStepped",
        2: "RecordRedacted",
        3: "KeyChanged",
        4: "SnapshotTaken",
        5: "SegmentClosed",
        6: "SegmentArchived",
        7: "SegmentPruned",
        16: "TrackerStarted",
        17: "TrackerStopped",
        18: "RecordsMissed",
        20: "ServiceDefined",
        21: "ServiceRemoved",
        24: "SessionOpened",
        25: "SessionRefused",
        26: "SessionEnded",
        27: "WorkerLost",
        28: "WorkerReturned",
        32: "PortBound",
        33: "PortRefused",
        34: "RefusalsEnded",
        35: "PortUnbound",
        40: "BindingInstalled",
        41: "BindingWithdrawn",
        42: "HolderNamed",
        43: "KernelStateRestored",
        44: "PublicAddressChanged",
        45: "QueueOverflowed",
        46: "OutboxFilled",
        64: "WithdrawalOrdered",
        65: "HostBarred",
        66: "BarLifted",
        67: "PortReserved",
        68: "ReservationEnded",
        69: "ClaimsFrozen",
        70: "FreezeEnded",
        71: "ClaimDenied",
    }


def test_the_eventlog_s_own_records_are_read_as_it_writes_them() -> None:
    assert {number for number in TYPES if number in OWN_TYPES} == set(range(1, 8))
    key, old = SigningKey("log.example/1", bytes(range(32))), SigningKey("log.example/1", bytes(32))
    fields = key_change_fields(key.verifying_key, old)
    assert pack(unpack(KeyChanged, fields)) == fields
    snapshot = Snapshot("tracker", 1, 7, b"state")
    said = unpack(SnapshotTaken, snapshot_fields(snapshot, bytes(32)))
    assert (said.name, said.version, said.size, said.root) == ("tracker", 1, 7, bytes(32))
    assert pack(said) == snapshot_fields(snapshot, bytes(32))
    span = Span(16, 32)
    assert unpack(RecordRedacted, redacted_fields(5, "why")) == RecordRedacted(5, "why")
    assert unpack(SegmentClosed, closed_fields(span, bytes(32), 1, 2)).last_wall_ns == 2
    assert unpack(SegmentArchived, archived_fields(span, bytes(32))).end == 32
    assert unpack(SegmentPruned, pruned_fields(span, "why")).reason == "why"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": SCHEMA + 1}, "schema"),
        ({"schema": 0}, "schema"),
        ({"type": 99}, "type"),
        ({"fields": (1,)}, "ClockStepped"),
    ],
)
def test_an_unknown_record_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    record = to_record(ClockStepped(1, 2), wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    with pytest.raises(ProtocolError) as caught:
        from_record(dataclasses.replace(record, **changes))
    assert caught.value.field == field


def test_a_session_from_before_schema_3_was_not_fenced() -> None:
    opened = SessionOpened("gw", 1, "w1", "host/boot", (), 10_000, fence=False)
    record = to_record(opened, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    old = dataclasses.replace(record, schema=2, fields=record.fields[:-1])
    assert from_record(old) == opened
    assert from_record(dataclasses.replace(old, schema=1)) == opened


def test_a_service_from_before_schema_4_had_no_fixed_holder() -> None:
    defined = ServiceDefined("gw", CUSEEME)
    record = to_record(defined, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    gateway, service = record.fields
    assert isinstance(service, tuple)
    old = dataclasses.replace(record, schema=3, fields=(gateway, service[:-1]))
    assert from_record(old) == defined


def test_before_schema_4_nobody_counted_the_callers() -> None:
    withdrawn = BindingWithdrawn("gw", 1, 7, Ending.IDLE, 5, None, 3, 400, None)
    record = to_record(withdrawn, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    old = dataclasses.replace(record, schema=3, fields=record.fields[:-1])
    assert from_record(old) == withdrawn


INSTALLED = BindingInstalled("gw", 1, 7, 1_700_000_000_000_000_000)


def test_a_record_of_schema_1_is_read_as_if_it_were_written_today() -> None:
    record = to_record(INSTALLED, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    assert record.fields[3] is None
    old = dataclasses.replace(record, schema=1, fields=("gw", 1, 7, INSTALLED.installed_ns))
    assert len(encode(record)) == len(encode(old)) - 8
    assert upcast(old) == upcast(record) == record
    assert from_record(old) == from_record(record) == INSTALLED


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 1},
        {"schema": 1, "fields": ("gw", 1, 7, 4)},
        {"schema": 1, "fields": ()},
        {"fields": ("gw", 1, 7, INSTALLED.installed_ns)},
        {"fields": ()},
        {"reported_ns": None},
    ],
)
def test_a_report_whose_own_time_is_not_where_its_schema_has_it_is_refused(
    changes: dict[str, Any],
) -> None:
    record = to_record(INSTALLED, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    with pytest.raises(ProtocolError):
        from_record(dataclasses.replace(record, **changes))


def test_the_worker_s_own_time_stands_beside_the_tracker_s() -> None:
    assert reported_ns(KernelStateRestored("gw", 1, "table", 3, 4)) == 4
    assert reported_ns(ClockStepped(1, 2)) is None


def test_a_port_range_knows_its_ports_and_cannot_run_backwards() -> None:
    ports = PortRange(17, 7648, 7649)
    assert (17, 7649) in ports
    assert (6, 7649) not in ports
    assert (17, 7650) not in ports
    with pytest.raises(ProtocolError, match="backwards"):
        unpack(PortRange, (17, 2, 1))
