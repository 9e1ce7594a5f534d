"""Events and records: nothing is lost on the way, and numbers keep their meaning."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import CLOCK_STEPPED, OWN_TYPES, Source, decode, encode
from tests.unit.tracker.wire import values
from tracker.events import (
    NUMBERS,
    TYPES,
    ClockStepped,
    Event,
    KernelStateRestored,
    PortRange,
    from_record,
    reported_ns,
    to_record,
)
from tracker.shapes import ProtocolError, unpack

SOURCE = Source("gw1", 7, 1, 0)


@given(st.one_of([values(kind) for kind in TYPES.values()]))
def test_an_event_comes_back_from_its_record(event: Event) -> None:
    record = to_record(event, wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    assert from_record(decode(encode(record))) == event


def test_the_numbers_of_the_events_are_for_ever() -> None:
    assert {number: kind.__name__ for number, kind in TYPES.items()} == {
        1: "ClockStepped",
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
    }


def test_only_the_clock_step_has_a_number_of_the_eventlog() -> None:
    assert [number for number in TYPES if number in OWN_TYPES] == [CLOCK_STEPPED]
    assert NUMBERS[ClockStepped] == CLOCK_STEPPED


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"schema": 2}, "schema"), ({"type": 99}, "type"), ({"fields": (1,)}, "ClockStepped")],
)
def test_an_unknown_record_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    record = to_record(ClockStepped(1, 2), wall_ns=5, source=SOURCE, nonce=b"n" * 16)
    with pytest.raises(ProtocolError) as caught:
        from_record(dataclasses.replace(record, **changes))  # type: ignore[arg-type]
    assert caught.value.field == field


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
