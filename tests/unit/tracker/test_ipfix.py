"""IPFIX messages, read back by a decoder that knows RFC 7011 and nothing of ours."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.wire import ANN, BOB, PUBLIC, REFLECTOR
from tracker.ipfix import BLOCK_PORTS, MESSAGE_LIMIT, TEMPLATES_EVERY, NatEvent, PortEvent, messages

MS = 1_000_000
NOW_NS = 1_700_000_000 * 1_000_000_000
MAC = b"\x02\0\0\0\0\x01"
EVENT = PortEvent(5 * MS, True, "gw", 17, ANN, PUBLIC, 7648, 7649, MAC, None)


@dataclass
class Collector:
    """What a collector knows after some messages; it may have lost some."""

    templates: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)
    records: list[dict[int, bytes]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)

    def receive(self, message: bytes) -> None:
        version, length, export_s, sequence, domain = struct.unpack_from(">HHIII", message)
        assert (version, length) == (10, len(message))
        assert export_s == NOW_NS // 10**9
        assert sequence == self.sequences.get(domain, 0)
        taken, at = 0, 16
        while at < len(message):
            number, size = struct.unpack_from(">HH", message, at)
            body = message[at + 4 : at + size]
            assert len(body) == size - 4 > 0
            if number in (2, 3):
                self._templates(domain, body, options=number == 3)
            else:
                taken += self._data(domain, number, body)
            at += size
        self.sequences[domain] = sequence + taken

    def _templates(self, domain: int, body: bytes, *, options: bool) -> None:
        at = 0
        while at < len(body):
            number, count = struct.unpack_from(">HH", body, at)
            at += 6 if options else 4
            fields = [struct.unpack_from(">HH", body, at + 4 * index) for index in range(count)]
            self.templates[domain, number] = [(element, size) for element, size in fields]
            at += 4 * count

    def _data(self, domain: int, number: int, body: bytes) -> int:
        at, count = 0, 0
        while at < len(body):
            record: dict[int, bytes] = {}
            for element, size in self.templates[domain, number]:
                octets = size
                if size == 0xFFFF:
                    octets, at = body[at], at + 1
                record[element] = body[at : at + octets]
                assert len(record[element]) == octets
                at += octets
            count += 1
            if 300 in record:
                self.names[int.from_bytes(record[149], "big")] = record[300].decode()
            else:
                self.records.append(record)
        return count


def collected(events: Iterable[PortEvent]) -> Collector:
    collector = Collector()
    for message in messages(events, exported_ns=NOW_NS):
        collector.receive(message)
    return collector


def number(record: dict[int, bytes], element: int) -> int:
    return int.from_bytes(record[element], "big")


def test_each_port_is_an_entry_of_the_binding_information_base() -> None:
    found = collected([EVENT, replace(EVENT, begins=False, at_ns=9 * MS)])
    assert found.names == {1: "gw"}
    assert [
        (number(it, 323), number(it, 230), number(it, 4), number(it, 7), number(it, 227))
        for it in found.records
    ] == [(5, 8, 17, 7648, 7648), (5, 8, 17, 7649, 7649), (9, 9, 17, 7648, 7648), (9, 9, 17, 7649, 7649)]
    first = found.records[0]
    assert (first[8], first[225], first[56], number(first, 463)) == (ANN, PUBLIC, MAC, 1)


def test_the_fields_are_those_of_rfc_8158_in_its_order() -> None:
    assert list(collected([EVENT]).records[0]) == [323, 463, 8, 225, 4, 7, 227, 56, 230]
    block = replace(EVENT, last=EVENT.first + BLOCK_PORTS)
    assert list(collected([block]).records[0]) == [323, 463, 8, 225, 4, 361, 362, 56, 230]


def test_many_ports_are_one_block() -> None:
    block = replace(EVENT, first=1000, last=1000 + BLOCK_PORTS)
    found = collected([block, replace(block, begins=False)]).records
    assert [(number(it, 361), number(it, 362), number(it, 230)) for it in found] == [
        (1000, 1000 + BLOCK_PORTS, NatEvent.BLOCK_ALLOCATION),
        (1000, 1000 + BLOCK_PORTS, NatEvent.BLOCK_DEALLOCATION),
    ]
    assert len(collected([replace(block, last=block.last - 1)]).records) == BLOCK_PORTS


@pytest.mark.parametrize("mac", [None, MAC])
@pytest.mark.parametrize("peer", [None, REFLECTOR])
def test_what_is_not_known_is_not_there(mac: bytes | None, peer: bytes | None) -> None:
    (record,) = collected([replace(EVENT, last=EVENT.first, mac=mac, peer=peer)]).records
    assert (record.get(56), record.get(12)) == (mac, peer)


def test_the_times_in_milliseconds_contain_those_in_nanoseconds() -> None:
    begin, end = replace(EVENT, at_ns=5 * MS + 1), replace(EVENT, at_ns=9 * MS + 1, begins=False)
    assert [number(it, 323) for it in collected([begin, end]).records] == [5, 5, 10, 10]


EVENTS = st.lists(
    st.builds(
        PortEvent,
        at_ns=st.integers(0, 2**60),
        begins=st.booleans(),
        gateway=st.sampled_from(["a", "bb", "ç" * 64]),
        protocol=st.sampled_from([6, 17]),
        internal=st.sampled_from([ANN, BOB]),
        external=st.just(PUBLIC),
        first=st.integers(1, 100),
        last=st.integers(100, 200),
        mac=st.sampled_from([None, MAC]),
        peer=st.sampled_from([None, REFLECTOR]),
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_is_put_in_comes_out_in_messages_that_fit_a_path(events: list[PortEvent]) -> None:
    collector = Collector()
    for message in messages(events, exported_ns=NOW_NS):
        assert len(message) <= MESSAGE_LIMIT
        collector.receive(message)
    told = [
        (number(it, 463), it[8], number(it, 4), it.get(56), it.get(12), number(it, 230) % 2 == 0)
        for it in collector.records
    ]
    names = {name: instance for instance, name in collector.names.items()}
    expected = [
        (names[it.gateway], it.internal, it.protocol, it.mac, it.peer, it.begins)
        for it in events
        for _ in range(1 if it.last - it.first >= BLOCK_PORTS else it.last - it.first + 1)
    ]
    assert told == expected


def test_a_collector_that_lost_the_beginning_understands_what_comes_later() -> None:
    sent = list(messages([EVENT] * 20 * TEMPLATES_EVERY * 3, exported_ns=NOW_NS))
    assert len(sent) > TEMPLATES_EVERY + 1
    late = Collector()
    late.sequences[1] = struct.unpack_from(">I", sent[TEMPLATES_EVERY], 8)[0]
    for message in sent[TEMPLATES_EVERY:]:
        late.receive(message)
    assert late.names == {1: "gw"}
    assert late.records


def test_nothing_gives_no_message() -> None:
    assert list(messages([], exported_ns=NOW_NS)) == []
