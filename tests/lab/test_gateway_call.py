"""Calls through a running gateway: what the kernel does alone, and what one claim costs."""

import os
import socket
import threading
import time

from tests.lab.gateway_site import (
    ANN,
    CALLER,
    PUBLIC,
    REFLECTOR,
    SERVICE_PORT,
    Site,
    capture,
    on_processor,
    open_continue,
    received,
    udp_to,
    video,
)
from tools.lab import wait_until
from tracker.events import HolderNamed, PortBound


def test_ten_thousand_media_packets_cause_no_upcall_and_arrive_translated(site: Site) -> None:
    reflector = site.lab.reflector(strict=True)
    ann = site.lab.client("workstation-1", "Ann")
    zoe = site.lab.client("caller", "Zoe")
    site.log_in(ann)
    site.log_in(zoe)
    ann.wait_for("watched", name="Zoe")
    zoe.wait_for("watched", name="Ann")
    before, queued_before = site.counters(), site.queues()
    talks_before = talks(ann.counters()) + talks(zoe.counters())
    frames, sounds, per_s = 2300, 2500, 600
    for client in (ann, zoe):
        client.command(f"video {frames} {per_s}")
        client.command(f"audio {sounds} {per_s}")
    for client in (ann, zoe):
        for kind in ("video", "audio"):
            client.wait_for("sent", timeout_s=60, kind=kind)
    pictures = frames + frames // 10
    for client in (ann, zoe):
        wait_until(lambda c=client: c.counters().get("received_audio", 0) == sounds, "all audio", 10)
        wait_until(lambda c=client: c.counters().get("received_video", 0) == pictures, "all video", 10)
    after, queued = site.counters(), site.queues()
    media = (
        after["cuseeme_sent"]
        + after["cuseeme_received"]
        - before["cuseeme_sent"]
        - before["cuseeme_received"]
    )
    assert media >= 2 * (pictures + sounds) >= 10_000
    assert after["claims_queued"] == before["claims_queued"] == 1
    # Every packet that reached a queue meanwhile was an OpenContinue; both ends count theirs.
    upcalls = sum(line.packets for line in queued.values()) - sum(q.packets for q in queued_before.values())
    assert upcalls == after["talks_queued"] - before["talks_queued"]
    assert upcalls <= talks(ann.counters()) + talks(zoe.counters()) - talks_before
    for actor in (ann, zoe, reflector):
        facts = actor.counters()
        wrong = (
            "wrong_checksum",
            "wrong_entry",
            "wrong_speaker",
            "dropped",
            "ignored",
            "refused",
            "strangers",
        )
        assert {name: facts.get(name, 0) for name in wrong} == dict.fromkeys(wrong, 0)


def talks(counters: dict[str, int]) -> int:
    return counters.get("sent_open_continue", 0)


def test_a_hundred_claims_at_once_are_one_upcall(site: Site) -> None:
    listener = site.udp_socket("reflector")
    senders = [site.udp_socket("workstation-1", port) for port in (SERVICE_PORT, 40001, 40002, 40003)]
    claim = open_continue(ANN, name="Ann")
    start = threading.Barrier(len(senders))

    def flood(sender: socket.socket) -> None:
        start.wait()
        for _ in range(25):
            sender.sendto(claim, (REFLECTOR, SERVICE_PORT))

    threads = [
        on_processor(number % (os.cpu_count() or 1), lambda s=sender: flood(s))
        for number, sender in enumerate(senders)
    ]
    for thread in threads:
        thread.join()
    site.await_holders(ANN)
    assert site.counters()["claims_queued"] == 1
    assert site.claims_queue().packets == 1
    assert [bound.holder for bound in site.events(PortBound)] == [socket.inet_aton(ANN)]
    assert received(listener)  # the packet that asked went on, and so did what came after the answer


def test_a_hundred_claims_while_the_worker_is_stopped_are_one_upcall(site: Site) -> None:
    sender = site.udp_socket("workstation-1")
    with site.stopped("rewriter"):
        for _ in range(100):
            sender.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
        assert site.counters()["claims_queued"] == 1
        assert site.claims_queue().waiting == 1
    site.await_holders(ANN)


def test_a_direct_call_reaches_the_other_with_every_address_translated(site: Site) -> None:
    ann = site.lab.client("workstation-1", "Ann", "--address-peer")
    zoe = site.lab.client("caller", "Zoe", "--answer", "--address-peer")
    mark = ann.command(f"call {CALLER}")
    ann.wait_for("connected", since=mark)
    ann.wait_for("watched", name="Zoe")
    zoe.wait_for("watched", name="Ann")
    for client in (ann, zoe):
        client.command("video 60 60")
        client.command("audio 60 60")
    for client in (ann, zoe):
        for kind in ("video", "audio"):
            client.wait_for("sent", kind=kind)
    for client in (ann, zoe):
        wait_until(lambda c=client: c.counters().get("received_audio", 0) == 60, "all audio")
        wait_until(lambda c=client: c.counters().get("received_video", 0) == 66, "all video")
        facts = client.counters()
        wrong = ("wrong_checksum", "wrong_entry", "wrong_speaker", "dropped", "strangers")
        assert {name: facts.get(name, 0) for name in wrong} == dict.fromkeys(wrong, 0)
    assert zoe.seen("called")[0]["peer"] == f"{PUBLIC}:{SERVICE_PORT}"
    assert [named.user_name for named in site.events(HolderNamed)] == ["Ann"]


def test_a_client_on_an_ephemeral_port_keeps_it_and_its_large_frames_cross_both_ways(site: Site) -> None:
    reflector = site.lab.reflector(strict=True)
    ann = site.lab.client("workstation-1", "Ann", "--ephemeral", "--little-endian")
    zoe = site.lab.client("caller", "Zoe", "--ephemeral", "--little-endian")
    site.log_in(ann)
    site.log_in(zoe)
    ann.wait_for("watched", name="Zoe")
    zoe.wait_for("watched", name="Ann")
    port = int(ann.udp.rpartition(":")[2])
    assert port != SERVICE_PORT
    swapped = int.from_bytes(port.to_bytes(2, "big"), "little")
    login = reflector.wait_for("login", name="Ann")
    assert (login["udp"], login["header"]) == (f"{PUBLIC}:{port}", f"{PUBLIC}:{swapped}")
    with capture(site.lab, "internet", "uplink0") as out, capture(site.lab, "workstation-1") as arrived:
        for client in (ann, zoe):
            client.command("video 50 100")
        for client in (ann, zoe):
            client.wait_for("sent", kind="video")
        for client in (ann, zoe):
            wait_until(lambda c=client: c.counters().get("received_video", 0) == 55, "all video")
    for packets in (out, arrived):
        assert sum(seen.packet[6] & 0x20 > 0 for seen in packets) >= 5  # first fragments
    for actor in (ann, zoe, reflector):
        assert actor.counters()["wrong_checksum"] == 0
    mark = reflector.mark()
    ann.command("hangup 1")
    reflector.wait_for("left", since=mark, name="Ann", cause="hang-up")
    site.await_holders()


def test_packets_without_a_checksum_cross_without_one(site: Site) -> None:
    listener, zoe = site.udp_socket("reflector"), site.lab.client("workstation-1", "Ann")
    payload = open_continue(ANN, name="Ann").hex()
    zoe.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {payload}")
    site.await_holders(ANN)
    with capture(site.lab, "reflector") as packets:
        zoe.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {payload}")
        zoe.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {video(ANN).hex()}")
        assert len(received(listener)) == 3
    found = udp_to(packets, REFLECTOR)
    assert [seen.packet[26:28] for seen in found] == [b"\0\0", b"\0\0"]
    assert all(seen.packet[40:44] == socket.inet_aton(PUBLIC) for seen in found)


def test_a_hundred_open_continues_in_a_second_are_not_all_upcalls_but_all_arrive(site: Site) -> None:
    listener, sender = site.udp_socket("reflector"), site.udp_socket("workstation-1")
    sender.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    for number in range(400):
        sender.sendto(open_continue(ANN, sequence=number), (REFLECTOR, SERVICE_PORT))
        time.sleep(0.001)
    arrived = received(listener)
    assert len(arrived) == 401
    assert {payload[12:16] for payload, _ in arrived} == {socket.inet_aton(PUBLIC)}
    assert site.counters()["talks_queued"] < 200
