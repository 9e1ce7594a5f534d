"""What a NAT rewrites in CU-SeeMe: the vectors, each rule alone, and what holds for every payload."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter.cuseeme import (
    HEADER_LENGTH,
    OPEN_CONTINUE_LENGTH,
    ClientEntry,
    DataType,
    Direction,
    Endpoint,
    Family,
    Header,
    Message,
    OpenContinue,
    encode_audio,
    encode_open_continue,
    encode_payload,
    encode_video,
    parse,
    translate,
)

VECTORS = Path(__file__).parents[2] / "data" / "cuseeme.jsonl"
PUBLIC = Endpoint.parse("203.0.113.5:61000")
PRIVATE = Endpoint.parse("192.168.1.10:7648")
OTHER = Endpoint.parse("198.51.100.9:7648").address
VIRTUAL = Endpoint.parse("127.0.0.3:7648").address


def out(payload: bytes) -> bytes:
    return translate(payload, Direction.OUT, PUBLIC, PRIVATE)


def come_in(payload: bytes) -> bytes:
    return translate(payload, Direction.IN, PUBLIC, PRIVATE)


def header_of(payload: bytes) -> Header:
    packet = parse(payload)
    assert packet is not None
    return packet.header


def open_continue_of(payload: bytes) -> OpenContinue:
    packet = parse(payload)
    assert packet is not None
    assert packet.open_continue is not None
    return packet.open_continue


def vectors() -> list[dict[str, Any]]:
    return [json.loads(line) for line in VECTORS.read_text().splitlines()]


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: f"{vector['id']}-{vector['category']}")
def test_vector_gives_what_is_expected(vector: dict[str, Any]) -> None:
    public, private = Endpoint.parse(vector["public"]), Endpoint.parse(vector["private"])
    translated = translate(bytes.fromhex(vector["in"]), Direction(vector["direction"]), public, private)
    assert translated.hex() == vector["expected"]


# Going out.


@pytest.mark.parametrize("address", [PRIVATE.address, PUBLIC.address, OTHER])
def test_any_source_address_of_a_client_becomes_the_public_one(address: bytes) -> None:
    assert header_of(out(Header(address=address).encode())).address == PUBLIC.address


def test_source_address_zero_stays_and_its_port_too() -> None:
    payload = Header(port=PRIVATE.port).encode()
    assert out(payload) == payload


@pytest.mark.parametrize("address", [PUBLIC.address, OTHER, VIRTUAL])
def test_what_a_reflector_on_the_lan_relays_for_others_is_left_alone(address: bytes) -> None:
    payload = Header(family=Family.REFLECTOR, address=address, port=PRIVATE.port).encode()
    assert out(payload) == payload


def test_a_reflectors_own_packets_are_translated() -> None:
    payload = Header(family=Family.REFLECTOR, address=PRIVATE.address, port=PRIVATE.port).encode()
    assert (header_of(out(payload)).address, header_of(out(payload)).port) == PUBLIC


@pytest.mark.parametrize(("port", "translated"), [(7648, 61000), (7649, 7649), (0xE01D, 0xE01D), (0, 0)])
def test_source_port_follows_only_if_it_was_the_private_one(port: int, translated: int) -> None:
    assert header_of(out(Header(address=PRIVATE.address, port=port).encode())).port == translated


def test_nothing_else_in_an_open_continue_going_out_changes() -> None:
    entries = (ClientEntry(PRIVATE.address), ClientEntry(PUBLIC.address))
    header = Header(destination_address=PUBLIC.address, destination_port=PUBLIC.port, message=Message.OPEN)
    payload = encode_open_continue(header, OpenContinue(entries=entries))
    assert out(payload) == payload


# Coming in.


@pytest.mark.parametrize("address", [PRIVATE.address, PUBLIC.address, OTHER])
def test_any_destination_address_becomes_the_private_one(address: bytes) -> None:
    assert (
        header_of(come_in(Header(destination_address=address).encode())).destination_address
        == PRIVATE.address
    )


def test_destination_address_zero_stays_and_its_port_too() -> None:
    payload = Header(destination_port=PUBLIC.port).encode()
    assert come_in(payload) == payload


@pytest.mark.parametrize(("port", "translated"), [(61000, 7648), (7648, 7648), (7649, 7649)])
def test_destination_port_follows_only_if_it_was_the_public_one(port: int, translated: int) -> None:
    payload = Header(destination_address=PUBLIC.address, destination_port=port).encode()
    assert header_of(come_in(payload)).destination_port == translated


@pytest.mark.parametrize("length", [HEADER_LENGTH, 55, 56, 68])
def test_conference_identifier_of_an_open_continue_is_no_port(length: int) -> None:
    header = Header(destination_address=PUBLIC.address, destination_port=PUBLIC.port, data_type=101)
    payload = encode_payload(header, bytes(length - HEADER_LENGTH))
    assert header_of(come_in(payload)).destination_port == PUBLIC.port
    assert header_of(come_in(payload)).destination_address == PRIVATE.address


def test_source_fields_coming_in_stay() -> None:
    payload = Header(address=PUBLIC.address, port=PUBLIC.port).encode()
    assert come_in(payload) == payload


def test_first_of_two_equal_client_entries_is_translated() -> None:
    entries = tuple(ClientEntry(address) for address in (OTHER, PUBLIC.address, PUBLIC.address))
    translated = open_continue_of(come_in(encode_open_continue(Header(), OpenContinue(entries=entries))))
    assert [entry.address for entry in translated.entries] == [OTHER, PRIVATE.address, PUBLIC.address]


@pytest.mark.parametrize(
    ("client_count", "is_translated"), [(0, False), (1, True), (256, True), (65535, True)]
)
def test_client_count_is_big_endian_and_bounded_by_the_packet(
    client_count: int, *, is_translated: bool
) -> None:
    # The one entry is written as extras, so that the count can lie in both directions.
    entry = PUBLIC.address + bytes(8)
    payload = encode_open_continue(Header(), OpenContinue(client_count=client_count, extras=entry))
    assert (come_in(payload) != payload) is is_translated


def test_extras_that_look_like_an_entry_are_left_alone() -> None:
    body = OpenContinue(entries=(ClientEntry(OTHER),), extras=PUBLIC.address + bytes(8))
    payload = encode_open_continue(Header(), body)
    assert come_in(payload) == payload


def test_an_entry_that_is_not_whole_is_left_alone() -> None:
    payload = encode_open_continue(Header(), OpenContinue(entries=(ClientEntry(PUBLIC.address),)))[:-1]
    assert come_in(payload) == payload


def test_only_an_open_continue_has_client_entries() -> None:
    body = encode_open_continue(Header(), OpenContinue(entries=(ClientEntry(PUBLIC.address),)))[
        HEADER_LENGTH:
    ]
    payload = encode_payload(Header(data_type=DataType.MESSAGE_OF_THE_DAY), body)
    assert come_in(payload) == payload


# Audio, both ways.


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("family", Family)
def test_every_own_speaker_is_translated_whoever_sends(direction: Direction, family: Family) -> None:
    own, other = (PRIVATE, PUBLIC) if direction is Direction.OUT else (PUBLIC, PRIVATE)
    header = Header(family=family)
    speakers = (own.address, OTHER, own.address, other.address)
    expected = (other.address, OTHER, other.address, other.address)
    translated = translate(encode_audio(header, own.address, speakers), direction, PUBLIC, PRIVATE)
    assert translated == encode_audio(header, own.address, expected)


@pytest.mark.parametrize("length", range(26, 42))
def test_speakers_beyond_the_packet_are_no_speakers(length: int) -> None:
    payload = encode_audio(Header(), b"", (PRIVATE.address, PRIVATE.address))[:length]
    whole = max(0, (length - 34) // 4)
    assert out(payload) == payload[:34] + PUBLIC.address * whole + payload[34 + whole * 4 :]


def test_the_upper_bits_of_the_speaker_count_do_not_count() -> None:
    payload = bytearray(encode_audio(Header(), b"", (OTHER, PRIVATE.address)))
    payload[26] = 0b11000001
    assert out(bytes(payload)) == payload


def test_video_has_no_speakers() -> None:
    # The length of 700 bytes (0x02BC) stands where audio would declare two speakers.
    payload = encode_video(Header(), bytes(6) + PRIVATE.address * 2 + bytes(686))
    assert out(payload) == payload


# What holds for every payload.

addresses = st.sampled_from([PRIVATE.address, PUBLIC.address, OTHER, VIRTUAL, bytes(4)])
ports = st.sampled_from([PRIVATE.port, PUBLIC.port, 0xE01D]) | st.integers(0, 0xFFFF)
words = st.integers(0, 0xFFFF)
bodies = st.lists(addresses | st.binary(max_size=13), max_size=20).map(b"".join)
headers = st.builds(
    Header,
    destination_family=words,
    destination_port=ports,
    destination_address=addresses,
    family=st.sampled_from(Family) | words,
    port=ports,
    address=addresses,
    sequence=st.integers(0, 0xFFFFFFFF),
    message=st.sampled_from(Message) | words,
    data_type=st.sampled_from(DataType) | words,
)
open_continue_bodies = st.builds(
    lambda count, rest, tail: struct.pack("!H", count) + rest + tail,
    st.integers(0, 9) | words,
    st.binary(min_size=28, max_size=28),
    bodies,
)
payloads = (
    st.binary(max_size=200)
    | st.builds(encode_payload, headers, bodies | open_continue_bodies)
    | st.builds(lambda header, body: encode_payload(header, body)[:57], headers, bodies)
)
directions = st.sampled_from(Direction)


@given(payloads, directions)
def test_length_never_changes(payload: bytes, direction: Direction) -> None:
    assert len(translate(payload, direction, PUBLIC, PRIVATE)) == len(payload)


@given(st.binary(max_size=25), directions)
def test_what_is_shorter_than_the_header_passes(payload: bytes, direction: Direction) -> None:
    assert translate(payload, direction, PUBLIC, PRIVATE) == payload


@given(payloads, directions)
def test_nothing_changes_if_there_is_nothing_to_translate(payload: bytes, direction: Direction) -> None:
    # With one address on both sides, only a foreign addr or dest_addr would have to become another.
    offset = 12 if direction is Direction.OUT else 4
    own = (
        payload[:offset] + PUBLIC.address + payload[offset + 4 :]
        if len(payload) >= HEADER_LENGTH
        else payload
    )
    assert translate(own, direction, PUBLIC, PUBLIC) == own


def named_offsets(payload: bytes, direction: Direction) -> set[int]:
    """Where the rules allow a change: the address fields, and what the type adds."""
    data_type = int.from_bytes(payload[22:24], "big")
    offsets = set(range(10, 16)) if direction is Direction.OUT else set(range(2, 8))
    if data_type == DataType.AUDIO:
        offsets |= set(range(34, 34 + 63 * 4))
    elif data_type == DataType.OPEN_CONTINUE and direction is Direction.IN:
        offsets -= {2, 3}
        offsets |= {offset for start in range(56, len(payload), 12) for offset in range(start, start + 4)}
    return offsets


@given(payloads, directions)
def test_only_bytes_that_the_rules_name_change(payload: bytes, direction: Direction) -> None:
    translated = translate(payload, direction, PUBLIC, PRIVATE)
    changed = {
        offset for offset, (old, new) in enumerate(zip(payload, translated, strict=True)) if old != new
    }
    assert changed <= named_offsets(payload, direction)


@given(payloads)
def test_translating_out_twice_is_translating_once(payload: bytes) -> None:
    assert out(out(payload)) == out(payload)


@given(payloads)
def test_translating_in_twice_is_translating_once_but_for_doubled_entries(payload: bytes) -> None:
    once, twice = come_in(payload), come_in(come_in(payload))
    if header_type(payload) == DataType.OPEN_CONTINUE:
        assert twice[:OPEN_CONTINUE_LENGTH] == once[:OPEN_CONTINUE_LENGTH]
    else:
        assert twice == once


def header_type(payload: bytes) -> int:
    packet = parse(payload)
    return -1 if packet is None else packet.header.data_type


@given(payloads)
def test_the_private_address_never_leaves_in_a_clients_header(payload: bytes) -> None:
    if len(payload) >= HEADER_LENGTH:
        assert header_of(out(payload)).address != PRIVATE.address


def test_an_endpoint_that_would_change_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not 4 bytes"):
        translate(Header(address=OTHER).encode(), Direction.OUT, Endpoint(b"203.0.113.5", 1), PRIVATE)


# The view, and the builders.


@given(payloads)
def test_the_view_reads_any_payload_from_26_bytes_on(payload: bytes) -> None:
    packet = parse(payload)
    assert (packet is None) == (len(payload) < HEADER_LENGTH)
    if packet is not None:
        assert packet.header.encode() + packet.body == payload
        user_name = packet.user_name
        assert user_name is None or (user_name.isprintable() and len(user_name) <= 19)


@given(payloads)
def test_entries_and_extras_of_the_view_are_the_packets_bytes(payload: bytes) -> None:
    packet = parse(payload)
    if packet is not None and packet.open_continue is not None:
        body = packet.open_continue
        again = encode_open_continue(packet.header, body)
        assert again[OPEN_CONTINUE_LENGTH:] == payload[OPEN_CONTINUE_LENGTH:]
        assert len(body.entries) <= body.client_count


@given(
    headers,
    st.text(max_size=30),
    st.lists(st.builds(ClientEntry, addresses), max_size=9),
    st.binary(max_size=20),
)
def test_what_is_built_is_read_back(
    header: Header, name: str, entries: list[ClientEntry], extras: bytes
) -> None:
    payload = encode_open_continue(
        header, OpenContinue(user_name=name, entries=tuple(entries), extras=extras)
    )
    body = open_continue_of(payload)
    assert (body.entries, body.extras, body.client_count) == (tuple(entries), extras, len(entries))
    assert (
        header_of(payload).packet_length
        == len(payload)
        == OPEN_CONTINUE_LENGTH + 12 * len(entries) + len(extras)
    )


def with_name_field(field: bytes, flags: int = 8) -> bytes:
    payload = bytearray(encode_open_continue(Header(message=Message.OPEN), OpenContinue(flags=flags)))
    payload[32:52] = field.ljust(20, b"\0")
    return bytes(payload)


@pytest.mark.parametrize(
    ("field", "flags", "name"),
    [
        (b"\x03Bob", 8, "Bob"),
        (b"\x03Bobby", 8, "Bob"),
        (b"\x00Bob", 8, None),
        (b"\xffBob", 8, "Bob"),
        (b"\xff" + b"x" * 19, 8, "x" * 19),
        (b"\x05J\xc3\xb6rg", 8, "Jörg"),
        (b"\x04J\xf6rg", 8, "Jörg"),
        (b"\x04J\x9arg", 0, "Jörg"),
        (b"\x08\x1b[2J\r\nHi", 8, "\ufffd[2J\ufffd\ufffdHi"),
        (b"\x04\xe2\x80\xaex", 8, "\ufffdx"),
        (b"\x05 Bob ", 8, "Bob"),
    ],
)
def test_user_name_is_bounded_decoded_and_printable(field: bytes, flags: int, name: str | None) -> None:
    packet = parse(with_name_field(field, flags))
    assert packet is not None
    assert packet.user_name == name


def test_a_long_user_name_is_cut_between_characters() -> None:
    assert (
        open_continue_of(encode_open_continue(Header(), OpenContinue(user_name="ö" * 12))).user_name
        == "ö" * 9
    )


@pytest.mark.parametrize(
    ("data_type", "message", "is_new_call", "is_hang_up"),
    [
        (101, 1, True, False),
        (101, 6, False, True),
        (101, 2, False, False),
        (1, 6, False, False),
        (3, 1, False, False),
    ],
)
def test_only_an_open_continue_opens_or_hangs_up(
    data_type: int, message: int, *, is_new_call: bool, is_hang_up: bool
) -> None:
    packet = parse(Header(data_type=data_type, message=message).encode())
    assert packet is not None
    assert (packet.is_new_call, packet.is_hang_up) == (is_new_call, is_hang_up)


def test_an_open_continue_cut_short_says_nothing_of_the_person_but_still_hangs_up() -> None:
    payload = encode_open_continue(Header(message=Message.CLOSE), OpenContinue(user_name="Bob"))
    packet = parse(payload[:55])
    assert packet is not None
    assert (packet.user_name, packet.is_hang_up) == (None, True)


def test_sixty_four_speakers_do_not_fit() -> None:
    with pytest.raises(ValueError, match="64 speakers"):
        encode_audio(Header(), b"", (OTHER,) * 64)
