"""The laboratory's network behaves as the real one: masquerading, fragments, checksums, ICMP."""

import socket
import time
from collections.abc import Iterator

import pytest

from rewriter.cuseeme import Header, encode_video
from tools.lab import Actor, Lab, LabError, packets_seen, wait_until
from tools.namespaces import await_links


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def call(lab: Lab, client: Actor, peer: str = "203.0.113.10") -> int:
    return client.command(f"call {peer}")


def seconds_to_build() -> float:
    began_s = time.monotonic()
    with Lab(workstations=3):
        return time.monotonic() - began_s


def test_is_up_in_less_than_a_second() -> None:
    assert min(seconds_to_build() for _ in range(3)) < 1  # a machine may stand still once


def test_a_link_that_carries_nothing_is_named(lab: Lab) -> None:
    lab._ip("internet", ["link set uplink0 down"])
    with pytest.raises(LabError, match=r"uplink0 in .*internet is not ready after 0.2 s"):
        await_links([lab.namespace("internet")], 0.2)
    with pytest.raises(LabError, match=r"wan0 in .*gateway is not ready"):
        await_links([lab.namespace("gateway")], 0.2)
    lab._ip("internet", ["link set uplink0 up"])
    await_links([lab.namespace("internet"), lab.namespace("gateway")])


def test_a_strict_reflector_refuses_a_masqueraded_client_as_in_the_captures(lab: Lab) -> None:
    reflector, ann = lab.reflector(), lab.client("workstation-1", "Ann")
    with packets_seen(lab, "workstation-1", "eth0") as packets:
        call(lab, ann)
        wait_until(lambda: len(ann.seen("dropped", kind="text")) == 3, "three refusals")
    assert reflector.seen("refused", udp="192.0.2.2:7648", header="192.168.1.10:7648")
    assert not reflector.seen("login")
    refusals = [packet[28:] for packet in packets if len(packet) == 28 + 199]
    assert len(refusals) == 3
    assert refusals[0].endswith(b"\r\rIP Header : 192.0.2.2, CU Header : 192.168.1.10")


def test_a_lenient_reflector_lets_a_masqueraded_client_in(lab: Lab) -> None:
    reflector, ann = lab.reflector(strict=False), lab.client("workstation-1", "Ann")
    ann.wait_for("login", since=call(lab, ann))
    reflector.wait_for("login", udp="192.0.2.2:7648", header="192.168.1.10:7648", name="Ann")


def test_two_outside_see_and_hear_each_other_through_the_reflector(lab: Lab) -> None:
    reflector, zoe = lab.reflector(), lab.client("caller", "Zoe")
    ann = lab.client("workstation-1", "Ann")
    olga = lab.client("reflector", "Olga", "--port", "7650", "--little-endian")
    for client in (zoe, olga):
        client.wait_for("login", since=call(lab, client))
    zoe.wait_for("watched", name="Olga")
    olga.wait_for("watched", name="Zoe")
    olga.command("video 10 50")
    olga.command("audio 10 50")
    wait_until(
        lambda: zoe.counters().get("received_video", 0) == 11, "ten frames, one of them in two packets"
    )
    wait_until(lambda: zoe.counters().get("received_audio", 0) == 10, "ten packets of sound")
    assert [event["member"] for event in zoe.seen("media", kind="video")] == ["127.0.0.3"]
    assert zoe.seen("member", name="Olga")[0]["peer"] == "203.0.113.10:7648"
    for actor in (reflector, zoe, olga, ann):
        counters = actor.counters()
        assert not any(
            counters.get(name) for name in ("dropped", "wrong_entry", "wrong_speaker", "wrong_checksum")
        )


def test_a_reflector_loses_the_media_of_a_client_that_is_rewritten_only_in_part(lab: Lab) -> None:
    reflector, zoe = lab.reflector(), lab.client("caller", "Zoe")
    zoe.wait_for("login", since=call(lab, zoe))
    stranger = encode_video(Header(port=7648, address=bytes((192, 168, 1, 10))), b"data").hex()
    zoe.command(f"send 203.0.113.10 {stranger}")
    ignored = reflector.wait_for("ignored", kind="video")
    assert ignored["header"] == "192.168.1.10:7648"
    assert reflector.counters()["ignored"] == 1


def test_large_packets_cross_as_fragments(lab: Lab) -> None:
    lab.reflector(strict=False)
    ann = lab.client("workstation-1", "Ann")
    ann.wait_for("login", since=call(lab, ann))
    with packets_seen(lab, "reflector", "eth0") as packets:
        ann.wait_for("sent", kind="video", since=ann.command("video 5 100"))
        time.sleep(0.1)
    sizes = [len(packet) for packet in packets if int.from_bytes(packet[6:8], "big") & 0x3FFF]
    assert sizes == [1500, 348]


@pytest.mark.parametrize(
    ("sender", "place"),
    [
        ("gateway", "workstation-1"),
        ("workstation-2", "workstation-1"),
        ("internet", "caller"),
        ("caller", "reflector"),
    ],
)
def test_a_wrong_checksum_is_dropped_on_receipt_and_counted(lab: Lab, sender: str, place: str) -> None:
    receiver = lab.client(place, "Ann")
    wrong, absent = (udp_packet(receiver.address, checksum) for checksum in (0x1234, 0))
    lab.within(sender, send_raw, wrong, receiver.address)
    lab.within(sender, send_raw, absent, receiver.address)
    receiver.wait_for("stranger")
    assert receiver.counters()["wrong_checksum"] == 1
    assert len(receiver.seen("stranger")) == 1


def test_a_checksum_on_the_wire_is_the_sender_s_own_and_not_left_to_hardware(lab: Lab) -> None:
    with packets_seen(lab, "workstation-1", "eth0") as packets:
        ann = lab.client("workstation-1", "Ann")
        call(lab, ann)
        lab.client("workstation-2", "Ben").counters()
        wait_until(lambda: ann.counters()["sent_open_continue"] >= 1, "it is sent")
    sent = next(packet for packet in packets if packet[9] == 17)
    assert ones_complement(sent[12:20] + bytes((0, 17)) + sent[24:26] + sent[20:]) == 0xFFFF


def test_without_checksum_is_sent_as_zero(lab: Lab) -> None:
    ben = lab.client("workstation-2", "Ben")
    with packets_seen(lab, "workstation-1", "eth0") as packets:
        ann = lab.client("workstation-1", "Ann")
        ann.command(f"send-without-checksum {ben.udp} {bytes(30).hex()}")
        ben.wait_for("stranger")
    assert [packet[26:28] for packet in packets if packet[9] == 17] == [b"\0\0"]


def test_a_closed_socket_answers_with_port_unreachable(lab: Lab) -> None:
    ann, ben = lab.client("workstation-1", "Ann", "--answer"), lab.client("workstation-2", "Ben")
    ben.wait_for("connected", since=ben.command(f"call {ann.udp}"))
    ann.wait_for("hung_up", since=ann.command("hangup 1"))
    ben.wait_for("peer_hung_up", name="Ann")
    ben.command(f"call {ann.udp}")
    answer = ben.wait_for("icmp")
    assert (answer["type"], answer["code"], answer["from"]) == (3, 3, "192.168.1.10")
    assert answer["destination"] == "192.168.1.10:7648"


def test_both_sides_give_up_a_silent_one(lab: Lab) -> None:
    reflector = lab.reflector("reflector", "--silence-timeout-s", "1", strict=False)
    ann = lab.client("workstation-1", "Ann", "--silence-timeout-s", "2")
    ann.wait_for("login", since=call(lab, ann))
    ann.command("silence")
    reflector.wait_for("left", cause="silence", name="Ann")
    ann.wait_for("timed_out", peer="203.0.113.10:7648", established=True)


def test_a_call_that_goes_on_is_not_given_up(lab: Lab) -> None:
    reflector = lab.reflector("reflector", "--silence-timeout-s", "2.5", strict=False)
    ann = lab.client("workstation-1", "Ann")
    ann.wait_for("login", since=call(lab, ann))
    time.sleep(3)
    assert not reflector.seen("left")
    assert ann.counters()["calls"][0]["established"]


def udp_packet(destination: str, checksum: int) -> bytes:
    payload = bytes(30)
    ports = (5000).to_bytes(2, "big") + (7648).to_bytes(2, "big")
    udp = ports + (8 + len(payload)).to_bytes(2, "big") + checksum.to_bytes(2, "big") + payload
    address = bytes(int(part) for part in destination.split("."))
    header = bytes((0x45, 0)) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes((64, 17, 0, 0))
    return header + bytes(4) + address + udp  # The kernel fills the source in.


def send_raw(packet: bytes, destination: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (destination, 0))


def ones_complement(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
