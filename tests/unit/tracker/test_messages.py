"""The codec: one encoding for each message, and one kind of error for everything else."""

import dataclasses
import typing

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.wire import ANN, PUBLIC, claim, opening, values
from tracker import messages
from tracker.events import Resource
from tracker.messages import (
    REPLY_KINDS,
    REQUEST_KINDS,
    REQUEST_LIMIT,
    BindingView,
    ClaimGranted,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from tracker.shapes import ProtocolError


def requests() -> st.SearchStrategy[Request]:
    volatile = typing.get_args(messages.Volatile)
    durable = st.one_of([values(kind) for kind in REQUEST_KINDS.values() if kind not in volatile])
    names = st.text("abcdefgh0123-", min_size=1, max_size=64)
    count = st.integers(0, 2**32 - 1)
    sequence = st.integers(1, 2**63 - 1)
    lasting = st.builds(Request, names, count, sequence, st.just(0), count, count, durable)
    passing = st.builds(
        Request, names, count, st.just(0), count, count, count, st.one_of([values(kind) for kind in volatile])
    )
    return st.one_of(lasting, passing)


@given(requests())
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(
    st.builds(
        Reply,
        st.integers(0, 2**63 - 1),
        st.integers(0, 99),
        st.one_of([values(it) for it in REPLY_KINDS.values()]),
    )
)
def test_a_reply_comes_back_as_it_was(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@given(st.binary(max_size=200))
def test_random_bytes_are_one_protocol_error(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(ProtocolError):
            decode(data)


@given(requests(), st.data())
def test_a_damaged_request_is_refused_or_another_canonical_request(
    request: Request, data: st.DataObject
) -> None:
    frame = bytearray(encode_request(request))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_request(bytes(frame))
    except ProtocolError:
        return
    assert encode_request(decoded) == bytes(frame)


@given(requests(), st.data())
def test_a_truncated_or_lengthened_request_is_refused(request: Request, data: st.DataObject) -> None:
    frame = encode_request(request)
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    for wrong in (cut, frame + b"\x00"):
        with pytest.raises(ProtocolError):
            decode_request(wrong)


def frame_with(place: int, value: object) -> bytes:
    values = list(msgpack.unpackb(encode_request(Request("w", 7, 1, 0, 0, 5, claim(ANN)))))
    values[place] = value
    packed: bytes = msgpack.packb(values)
    return packed


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        (0, 2, "version"),
        (0, True, "version"),
        (1, 99, "kind"),
        (1, None, "kind"),
        (2, "", "request.worker"),
        (2, "tracker", "request.worker"),
        (2, b"w", "request.worker"),
        (3, -1, "request.incarnation"),
        (3, True, "request.incarnation"),
        (4, 0, "request.sequence"),
        (4, 2**63, "request.sequence"),
        (5, 1, "request.acknowledged"),
        (6, 2**32, "request.age_ms"),
        (7, 1.5, "request.sent_ns"),
        (8, {}, "ClaimPort"),
        (8, [], "ClaimPort"),
        (
            8,
            ["gw", 1, b"\x01\x02\x03", "s", None, ANN, None, 17, 1, ANN, 1, 1, 1],
            "ClaimPort.public_address",
        ),
        (8, ["gw", 1, PUBLIC, "s", "peer", ANN, None, 17, 1, ANN, 1, 1, 1], "ClaimPort.peer"),
        (8, ["gw", 1, PUBLIC, "s", None, ANN, None, 17, 65536, ANN, 1, 1, 1], "ClaimPort.source_port"),
    ],
)
def test_the_error_names_the_field(place: int, value: object, field: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(frame_with(place, value))
    assert caught.value.field == field


def test_a_longer_encoding_of_the_same_values_is_refused() -> None:
    frame = encode_request(Request("w", 7, 1, 0, 0, 5, claim(ANN)))
    assert frame[1:3] == b"\x01\x03"  # version 1, kind 3
    with pytest.raises(ProtocolError, match="canonical"):
        decode_request(frame[:1] + b"\xcc\x01" + frame[2:])


def test_a_frame_beyond_the_limit_is_refused_on_both_sides() -> None:
    many = dataclasses.replace(opening(), public_addresses=(PUBLIC,) * 20_000)
    with pytest.raises(ProtocolError, match="limit"):
        encode_request(Request("w", 7, 1, 0, 0, 5, many))
    with pytest.raises(ProtocolError, match="limit"):
        decode_request(b"\x00" * (REQUEST_LIMIT + 1))


@pytest.mark.parametrize(
    "frame", [b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x81\x01\x02", b"\xd9\x02\xff\xfe"]
)
def test_hostile_msgpack_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(frame)


def test_a_worker_cannot_send_what_no_tracker_takes() -> None:
    with pytest.raises(ProtocolError, match=r"ClaimPort\.holder"):
        encode_request(Request("w", 7, 1, 0, 0, 5, claim(b"\x01")))
    with pytest.raises(ProtocolError, match=r"request\.worker"):
        encode_request(Request("tracker", 7, 1, 0, 0, 5, claim(ANN)))


def test_the_numbers_of_the_kinds_are_for_ever() -> None:
    assert {number: kind.__name__ for number, kind in REQUEST_KINDS.items()} == {
        2: "CloseSession",
        3: "ClaimPort",
        5: "OpenSession",
        10: "BindingInstalled",
        12: "HolderNamed",
        13: "KernelStateRestored",
        14: "PublicAddressChanged",
        15: "QueueOverflowed",
        16: "BindingWithdrawn",
        17: "OutboxFilled",
        20: "Heartbeat",
        21: "GetStatus",
        22: "GetCheckpoint",
        23: "MakeCheckpoint",
        30: "FindPort",
        31: "ReadFeed",
        32: "GetState",
        40: "ReleaseBinding",
        41: "RevokeBinding",
        42: "LiftBar",
        43: "ReservePort",
        44: "EndReservation",
        45: "FreezeClaims",
        46: "EndFreeze",
    }
    assert {number: kind.__name__ for number, kind in REPLY_KINDS.items()} == {
        2: "SessionDenied",
        3: "ClaimGranted",
        4: "ClaimRefused",
        5: "Acknowledged",
        6: "SessionGranted",
        20: "HeartbeatAcknowledged",
        21: "SessionOver",
        22: "WithdrawBinding",
        23: "ResendFrom",
        24: "OutboxSuperseded",
        25: "Status",
        26: "CheckpointMade",
        27: "NoCheckpoint",
        28: "NotAllowed",
        30: "PortFound",
        31: "FeedRecords",
        32: "FeedGap",
        33: "FeedRefused",
        34: "StatePart",
        40: "OrderTaken",
        41: "OrderRefused",
        42: "Withdrawing",
        43: "Withdrawn",
    }


def test_the_bytes_of_a_request_are_these() -> None:
    frame = encode_request(Request("gw1", 7, 1, 0, 3, 5, claim(ANN, observed_ns=9)))
    assert (
        frame.hex()
        == (
            "9901"
            "03"
            "a3677731"
            "07"
            "01"
            "00"
            "03"
            "05"  # version kind worker incarnation sequence acknowledged age sent
            "9d"
            "a26777"
            "01"
            "c404cb007101"
            "a76375736565 6d65".replace(" ", "")
            + "c0"
            "c404c0a80002"
            "c0"
            "11"
            "cd1de0"
            "c404c6336407"
            "cd1de0"
            "cd03e8"
            "09"
        )
    )


def test_a_session_with_the_most_bindings_of_the_longest_names_fits_a_frame() -> None:
    resource = Resource("ü" * 64, PUBLIC, "ü" * 64, PUBLIC)
    view = BindingView(2**63 - 1, resource, ANN, b"\x00" * 6, 2**63 - 1, 2**63 - 1, "\U0001f600" * 256)
    views = (view,) * messages.BINDINGS_LIMIT
    granted = messages.SessionGranted("ü" * 64, 2**63 - 1, 10_000, 2**63 - 1, 2**63 - 1, 2**63 - 1, views)
    assert len(encode_reply(Reply(1, 1, granted))) <= messages.REPLY_LIMIT
    assert decode_reply(encode_reply(Reply(1, 1, ClaimGranted(view)))).body == ClaimGranted(view)
