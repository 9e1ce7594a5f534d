"""Calls through a running gateway: what the kernel does alone, and what one claim costs."""

import os
import socket
import threading
import time
from functools import partial

from tests.lab.gateway_site import (
    ANN,
    CALLER,
    PUBLIC,
    REFLECTOR,
    Site,
    assert_nothing_wrong,
    await_received,
    await_video_both_ways,
    conference,
)
from tests.lab.traffic import SERVICE_PORT, capture, on_processor, open_continue, received, udp_to, video
from tracker.events import HolderNamed, PortBound


def test_ten_thousand_media_packets_cause_no_upcall_and_arrive_translated(site: Site) -> None:
    reflector, ann, zoe = conference(site)
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
        await_received(client, "audio", sounds)
        await_received(client, "video", pictures)
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
    assert_nothing_wrong(ann, zoe, reflector)


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
        on_processor(number % (os.cpu_count() or 1), partial(flood, sender))
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
        await_received(client, "audio", 60)
        await_received(client, "video", 66)
    assert_nothing_wrong(ann, zoe)
    assert zoe.seen("called")[0]["peer"] == f"{PUBLIC}:{SERVICE_PORT}"
    assert [named.user_name for named in site.events(HolderNamed)] == ["Ann"]


def test_a_client_on_an_ephemeral_port_keeps_it_and_its_large_frames_cross_both_ways(site: Site) -> None:
    reflector, ann, zoe = conference(site, "--ephemeral", "--little-endian")
    port = int(ann.udp.rpartition(":")[2])
    assert port != SERVICE_PORT
    swapped = int.from_bytes(port.to_bytes(2, "big"), "little")
    login = reflector.wait_for("login", name="Ann")
    assert (login["udp"], login["header"]) == (f"{PUBLIC}:{port}", f"{PUBLIC}:{swapped}")
    with capture(site.lab, "internet", "uplink0") as out, capture(site.lab, "workstation-1") as arrived:
        await_video_both_ways(ann, zoe, frames=50, per_s=100)
    for packets in (out, arrived):
        assert sum(seen.packet[6] & 0x20 > 0 for seen in packets) >= 5  # first fragments
    assert_nothing_wrong(ann, zoe, reflector)
    mark = reflector.mark()
    ann.command("hangup 1")
    reflector.wait_for("left", since=mark, name="Ann", cause="hang-up")
    site.await_holders()


def test_packets_without_a_checksum_cross_without_one(site: Site) -> None:
    listener, ann = site.udp_socket("reflector"), site.lab.client("workstation-1", "Ann")
    talk, picture = open_continue(ANN, name="Ann").hex(), video(ANN).hex()
    ann.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {talk}")
    listener.recvfrom(2048)
    site.await_holders(ANN)
    with capture(site.lab, "reflector") as packets:
        for payload in (talk, picture):
            ann.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {payload}")
            listener.recvfrom(2048)
    found = udp_to(packets, REFLECTOR)
    assert [seen.packet[26:28] for seen in found] == [b"\0\0", b"\0\0"]
    assert all(seen.packet[40:44] == socket.inet_aton(PUBLIC) for seen in found)


def test_a_hundred_open_continues_in_a_second_are_not_all_upcalls_but_all_arrive(site: Site) -> None:
    listener, sender = site.udp_socket("reflector"), site.udp_socket("workstation-1")
    sender.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    began_s = time.monotonic()
    for number in range(400):
        sender.sendto(open_continue(ANN, sequence=number), (REFLECTOR, SERVICE_PORT))
        time.sleep(0.001)
    took_s = time.monotonic() - began_s
    arrived = received(listener)
    assert len(arrived) == 401
    assert {payload[12:16] for payload, _ in arrived} == {socket.inet_aton(PUBLIC)}
    # A burst of a hundred, one more if the ten seconds of the last one just end, and fifty a second.
    assert site.counters()["talks_queued"] <= 210 + 50 * took_s
