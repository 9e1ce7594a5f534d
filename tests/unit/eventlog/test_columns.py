"""Packed records come out again byte by byte, and nothing that anybody made up does harm."""

import lzma
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.columns import RAW_LIMIT, RUN_LIMIT, ColumnsDamaged, Place, pack, unpack
from eventlog.merkle import leaf_hash
from eventlog.record import NONCE_SIZE, Record, RecordError, Source, encode
from tests.unit.eventlog.samples import many_held

SMALL = st.integers(0, 2**63 - 1)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
RECORDS = st.builds(
    Record,
    schema=st.integers(0, 3),
    type=st.integers(0, 5) | SMALL,
    wall_ns=SMALL,
    reported_ns=st.none() | SMALL,
    source=st.builds(Source, st.text(min_size=1, max_size=5), SMALL, SMALL, st.integers(0, 3)),
    nonce=st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE),
    fields=st.lists(VALUES, max_size=4).map(tuple),
)


def place(record: Record) -> Place:
    data = encode(record)
    return Place(data, leaf_hash(data))


@given(st.lists(RECORDS.map(place) | st.binary(min_size=32, max_size=32).map(lambda leaf: Place(None, leaf))))
def test_whatever_was_packed_comes_out_again(run: list[Place]) -> None:
    assert unpack(pack(run)) == run


@given(
    st.lists(st.integers(0, 2**63 - 1), max_size=20),
    st.lists(st.one_of(st.integers(-5, 5), st.booleans(), st.just(2**64 - 1)), max_size=20),
)
def test_columns_of_all_kinds_of_integers_come_out_again(times: list[int], values: list[int]) -> None:
    run = [
        place(Record(1, 16, time, time ^ 1, Source("gw", 5, number, 0), bytes(16), (value, time)))
        for number, (time, value) in enumerate(zip(times, values, strict=False))
    ]
    assert unpack(pack(run)) == run


def test_records_of_a_kind_take_little_more_than_their_nonces() -> None:
    run = [place(record) for record in many_held(RUN_LIMIT)]
    assert len(pack(run)) / len(run) < NONCE_SIZE + 3


def test_bytes_that_are_no_record_are_not_packed() -> None:
    with pytest.raises(RecordError):
        pack([Place(b"\xc0", leaf_hash(b"\xc0"))])


@given(st.binary(max_size=200))
def test_noise_is_no_run(data: bytes) -> None:
    with pytest.raises(ColumnsDamaged):
        unpack(data)


@given(st.data())
def test_a_changed_run_gives_other_records_or_none(data: st.DataObject) -> None:
    run = [place(record) for record in many_held(20)]
    packed = bytearray(pack(run))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ColumnsDamaged):
        assert unpack(bytes(packed)) != run


FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
HEAD: list[Any] = [[], [], [], [], [], []]
LAYOUTS: list[Any] = [
    None,
    [],
    [0, [], [], [], HEAD],
    [1, [], [], [], HEAD, []],
    [RUN_LIMIT + 1, [[at, bytes(32)] for at in range(RUN_LIMIT + 1)], [], [], HEAD, []],
    [1, [[0, bytes(31)]], [], [], HEAD, []],
    [1, [[0, "leaf"]], [], [], HEAD, []],
    [1, [[7, bytes(32)]], [], [], HEAD, []],
    [3, [[0, bytes(32)], [0, bytes(32)]], [["gw", 1]], [[1, 16, 0]], [[0], [5], [None], [0], [1], [0]], [[]]],
    [2, [[7, bytes(32)]], [["gw", 1]], [[1, 16, 0]], [[0], [5], [None], [0], [1], [0]], [[]]],
    [1, [], [["gw", 1]], [[1, 16, 0]], [[0], [5], [None], [9], [1], [0]], [[]]],
    [1, [], [["gw", 1]], [[1, 16, 0]], [[9], [5], [None], [0], [1], [0]], [[]]],
    [1, [], [["gw"]], [[1, 16, 0]], [[0], [5], [None], [0], [1], [0]], [[]]],
    [1, [], [["gw", 1]], [[1, 16, 1]], [[0], [5], [None], [0], [1], [0]], [[]]],
    [1, [], [["gw", 1]], [[1, 16, 1]], [[0], [5], [None], [0], [1], [0]], [[[7, [1]]]]],
    [1, [], [["gw", 1]], [[1, 16, 1]], [[0], [5], [None], [0], [1], [0]], [[[1, [1, 2]]]]],
    [1, [], [["gw", 1]], [[1, 16, 1]], [[0], ["x"], [None], [0], [1], [0]], [[[0, [1]]]]],
    [1, [], [["gw", 1]], [[1, 16, 1]], [[0], [-5], [None], [0], [1], [0]], [[[0, [1]]]]],
]


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_a_layout_that_contradicts_itself_is_refused(number: int) -> None:
    raw = msgpack.packb(LAYOUTS[number])
    with pytest.raises(ColumnsDamaged):
        unpack(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=FILTERS) + bytes(NONCE_SIZE))


MANY = 2000
LONG = "x" * 3000
GROWING: dict[str, list[Any]] = {
    "more times than records": [
        1,
        [],
        [["gw", 1]],
        [[1, 16, 0]],
        [[0], [1] * 10**5, [0], [0], [1], [0]],
        [[]],
    ],
    "texts for times": [
        MANY,
        [],
        [["gw", 1]],
        [[1, 16, 0]],
        [[0] * MANY, [LONG] * MANY, [None] * MANY, [0] * MANY, [1] * MANY, [0] * MANY],
        [[]],
    ],
    "texts for differences": [
        MANY,
        [],
        [["gw", 1]],
        [[1, 16, 1]],
        [[0] * MANY, [1] * MANY, [None] * MANY, [0] * MANY, [1] * MANY, [0] * MANY],
        [[[1, [LONG] * MANY]]],
    ],
    "kinds of no record": [
        1,
        [],
        [["gw", 1]],
        [[1, 16, 0]] * 10**5,
        [[0], [1], [0], [0], [1], [0]],
        [[]] * 10**5,
    ],
}


@pytest.mark.parametrize("case", GROWING)
def test_what_would_grow_in_memory_is_refused_before_it_does(case: str) -> None:
    packed = lzma.compress(msgpack.packb(GROWING[case]), format=lzma.FORMAT_RAW, filters=FILTERS)
    layout_octets = 60 * 10**6
    tracemalloc.start()
    try:
        with pytest.raises(ColumnsDamaged):
            unpack(packed + bytes(NONCE_SIZE))
        assert tracemalloc.get_traced_memory()[1] < layout_octets
    finally:
        tracemalloc.stop()


def test_a_bomb_does_not_go_off() -> None:
    packed = lzma.compress(b"\x00" * (RAW_LIMIT + 2), format=lzma.FORMAT_RAW, filters=FILTERS)
    assert len(packed) < 10_000
    with pytest.raises(ColumnsDamaged, match="too many"):
        unpack(packed)
