"""Records have one encoding, and everything else is refused by name."""

from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import RECORD_LIMIT, Record, RecordError, Source, Value, clock_went_back, decode, encode

NONCE = bytes(range(16))
LAYOUT: list[Any] = [
    1,
    16,
    1700,
    None,
    "gw",
    5,
    6,
    0,
    NONCE,
    [7648, b"\x0a\0\0\x01", "Ann", True, None, [-1]],
]

integers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=300)
values: st.SearchStrategy[Value] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8
)
names = texts.filter(lambda text: 0 < len(text.encode()) <= 255)
records = st.builds(
    Record,
    schema=integers,
    type=integers,
    wall_ns=integers,
    reported_ns=st.none() | integers,
    source=st.builds(Source, names, integers, integers, integers),
    nonce=st.binary(min_size=16, max_size=16),
    fields=st.lists(values, max_size=6).map(tuple),
)


def changed(index: int, value: object) -> bytes:
    layout = [*LAYOUT]
    layout[index] = value
    data: bytes = msgpack.packb(layout)
    return data


@given(records)
def test_a_record_comes_back_from_its_bytes(record: Record) -> None:
    data = encode(record)
    assert decode(data) == record
    assert encode(decode(data)) == data


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_record_or_refused(data: bytes) -> None:
    try:
        record = decode(data)
    except RecordError:
        return
    assert encode(record) == data


@given(records, st.data())
def test_a_flipped_bit_is_another_record_or_refused(record: Record, data: st.DataObject) -> None:
    good = encode(record)
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        found = decode(bytes(bad))
    except RecordError:
        return
    assert encode(found) == bytes(bad)
    assert found != record


def test_the_bytes_are_those_of_the_layout() -> None:
    record = Record(
        1, 16, 1700, None, Source("gw", 5, 6, 0), NONCE, (7648, b"\x0a\0\0\x01", "Ann", True, None, (-1,))
    )
    expected = (
        "9a 01 10 cd06a4 c0 a2 6777 05 06 00 c410 000102030405060708090a0b0c0d0e0f"
        "96 cd1de0 c404 0a000001 a3416e6e c3 c0 91ff"
    )
    assert encode(record) == bytes.fromhex(expected)
    assert encode(record) == msgpack.packb(LAYOUT)


@pytest.mark.parametrize(
    ("index", "value", "field"),
    [
        (0, -1, "schema"),
        (0, True, "schema"),
        (1, "16", "type"),
        (2, 1.5, "wall_ns"),
        (2, None, "wall_ns"),
        (2, 2**63, "wall_ns"),
        (3, "later", "reported_ns"),
        (4, "", "source name"),
        (4, b"gw", "source name"),
        (4, "g" * 256, "source name"),
        (5, None, "incarnation"),
        (6, -1, "sequence"),
        (7, 0.0, "part"),
        (8, NONCE[:15], "nonce"),
        (8, "0123456789abcdef", "nonce"),
        (9, None, "fields"),
        (9, [{}], "fields[0]"),
        (9, [1, {"a": 1}], "fields[1]"),
        (9, [1, [2, [0.5]]], "fields[1][1][0]"),
        (9, [msgpack.ExtType(4, b"x")], "fields[0]"),
        (9, [msgpack.Timestamp(4)], "fields[0]"),
        (9, [[[[[[[[[[]]]]]]]]]], "fields[0][0][0][0][0][0][0][0][0]"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(index: int, value: object, field: str) -> None:
    with pytest.raises(RecordError) as refused:
        decode(changed(index, value))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgpack.packb(LAYOUT)[:-1],
        msgpack.packb(LAYOUT) + b"\xc0",
        msgpack.packb(LAYOUT[:-1]),
        msgpack.packb([*LAYOUT, 1]),
        msgpack.packb({"schema": 1}),
        msgpack.packb(7),
        changed(9, ["x" * RECORD_LIMIT]),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        changed(4, b"").replace(b"\xc4\x00", b"\xa2\xff\xfe", 1),
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(data)


@pytest.mark.parametrize(
    ("canonical", "longer"),
    [
        (b"\x9a\x01", b"\xdc\x00\x0a\x01"),
        (b"\x9a\x01", b"\x9a\xcc\x01"),
        (b"\xa2gw", b"\xd9\x02gw"),
        (b"\xc4\x10", b"\xc5\x00\x10"),
        (b"\x91\xff", b"\x91\xd0\xff"),
    ],
)
def test_a_longer_form_of_the_same_value_is_refused(canonical: bytes, longer: bytes) -> None:
    data: bytes = msgpack.packb(LAYOUT)
    assert canonical in data
    forged = data.replace(canonical, longer, 1)
    assert msgpack.unpackb(forged) == LAYOUT
    with pytest.raises(RecordError, match="canonical"):
        decode(forged)


@pytest.mark.parametrize("value", [0.5, {}, [1], 2**64, "\ud800", object()])
def test_a_value_without_a_form_cannot_be_encoded(value: object) -> None:
    record = Record(1, 16, 1700, None, Source("gw", 5, 6, 0), NONCE, (cast(Value, value),))
    with pytest.raises(RecordError) as refused:
        encode(record)
    assert refused.value.field == "fields[0]"


def test_a_record_longer_than_the_limit_cannot_be_encoded() -> None:
    with pytest.raises(RecordError, match=str(RECORD_LIMIT)):
        encode(Record(1, 16, 1700, None, Source("gw", 5, 6, 0), NONCE, (b"x" * RECORD_LIMIT,)))


@pytest.mark.parametrize(
    ("last_wall_ns", "wall_ns", "back"),
    [
        (None, 0, False),
        (5_000_000_000, 4_000_000_000, False),
        (5_000_000_000, 3_999_999_999, True),
        (5, 9, False),
    ],
)
def test_a_clock_goes_back_when_it_falls_by_more_than_a_second(
    last_wall_ns: int | None, wall_ns: int, back: bool
) -> None:
    assert clock_went_back(last_wall_ns, wall_ns) is back
