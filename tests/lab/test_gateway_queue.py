"""`datapath = "queue"`: calls through a gateway whose kernel rewrites nothing, packet by packet."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rewriter.packet import Endpoint, build_udp
from rewriter.selection import CALLERS_TALK_RATE_PER_S
from tests.lab.conftest import make_site
from tests.lab.flood import flooding
from tests.lab.gateway_site import (
    ANN,
    BOB,
    PUBLIC,
    REFLECTOR,
    Site,
    assert_nothing_wrong,
    await_received,
    conference,
)
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, stream, udp_to, video
from tools.lab import wait_until
from tracker.events import Ending, HolderNamed


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with ExitStack() as stack:
        site = make_site(stack, gateway={"datapath": "queue"}, service={"idle_s": 2.0})
        site.start()
        yield site


@pytest.fixture
def queue_site(running: Site) -> Iterator[Site]:
    running.begin_test()
    yield running
    assert running.end_test()


def test_the_log_says_which_datapath_and_the_kernel_is_asked_for_no_rewriting(queue_site: Site) -> None:
    assert "datapath queue (as configured)" in queue_site.said("rewriter")
    words = [str(queue_site.program), "status", "--config", str(queue_site.configuration)]
    said = queue_site.lab.run("gateway", words).stdout
    assert "this machine's kernel: epoch 1, datapath queue (as configured), queue by " in said
    as_json = json.loads(queue_site.lab.run("gateway", [*words, "--json"]).stdout)
    assert (as_json["kernel"]["epoch"], as_json["kernel"]["datapath"]) == (1, "queue")
    listed = json.dumps(queue_site.nft("list", "table", "ip", "porthold"))
    assert '"base": "ih"' not in listed
    assert '"mangle": {"key": {"payload"' not in listed


def test_a_conference_is_translated_packet_by_packet(queue_site: Site) -> None:
    reflector, ann, zoe = conference(queue_site)
    frames, sounds = 200, 200
    with capture(queue_site.lab, "internet", "uplink0") as out:
        for client in (ann, zoe):
            client.command(f"video {frames} 200")
            client.command(f"audio {sounds} 200")
        for client in (ann, zoe):
            await_received(client, "video", frames + frames // 10)
            await_received(client, "audio", sounds)
    assert sum(seen.packet[6] & 0x20 > 0 for seen in out) >= frames // 10  # large ones, as fragments
    assert queue_site.counters()["talks_queued"] >= 2 * (frames + frames // 10 + sounds)
    assert queue_site.counters()["never_queued"] == 0
    assert_nothing_wrong(ann, zoe, reflector)
    assert [named.user_name for named in queue_site.events(HolderNamed)] == ["Ann"]
    mark = reflector.mark()
    ann.command("hangup 2")
    reflector.wait_for("left", since=mark, name="Ann", cause="hang-up")
    queue_site.await_holders()
    assert [holding.reason for holding in queue_site.holdings()] == [Ending.HANG_UP]


def test_a_caller_from_any_port_and_packets_without_a_checksum(queue_site: Site) -> None:
    listener, ann = (
        queue_site.udp_socket("reflector"),
        queue_site.lab.client("workstation-1", "Ann", "--answer"),
    )
    ann.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {open_continue(ANN, name='Ann').hex()}")
    assert listener.recvfrom(2048)[0][12:16] == socket.inet_aton(PUBLIC)  # the claim's own packet
    queue_site.await_holders(ANN)
    with capture(queue_site.lab, "reflector") as packets:
        ann.command(f"send-without-checksum {REFLECTOR}:{SERVICE_PORT} {video(ANN).hex()}")
        assert listener.recvfrom(2048)[0][12:16] == socket.inet_aton(PUBLIC)
    assert [seen.packet[26:28] for seen in udp_to(packets, REFLECTOR)] == [b"\0\0"]
    zoe = queue_site.lab.client("caller", "Zoe", "--ephemeral", "--address-peer")
    mark = zoe.command(f"call {PUBLIC}")
    zoe.wait_for("connected", since=mark)
    zoe.command("video 20 100")
    await_received(ann, "video", 22)
    assert_nothing_wrong(ann, zoe)


def test_what_cannot_be_read_whole_does_not_leave_untranslated(queue_site: Site) -> None:
    listener, ann = queue_site.udp_socket("reflector"), queue_site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    queue_site.await_holders(ANN)
    received(listener)
    ends = Endpoint.parse(f"{ANN}:{SERVICE_PORT}"), Endpoint.parse(f"{REFLECTOR}:{SERVICE_PORT}")
    with_more_behind = bytearray(build_udp(*ends, video(ANN), checksum=False) + b"more")
    with_more_behind[2:4] = len(with_more_behind).to_bytes(2, "big")
    queue_site.raw_socket("workstation-1").sendto(with_more_behind, (REFLECTOR, 0))
    ann.sendto(video(ANN, bytes(65507 - 28)), (REFLECTOR, SERVICE_PORT))  # netlink lacks room for four octets
    ann.sendto(video(ANN, b"whole"), (REFLECTOR, SERVICE_PORT))
    arrived = received(listener)
    assert [payload[12:16] for payload, _ in arrived] == [socket.inet_aton(PUBLIC)]
    assert arrived[0][0].endswith(b"whole")


def test_another_workstation_is_refused_until_the_holder_is_idle(queue_site: Site) -> None:
    listener = queue_site.udp_socket("reflector")
    ann, bob = (queue_site.udp_socket(f"workstation-{number}") for number in (1, 2))
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    queue_site.await_holders(ANN)
    with capture(queue_site.lab, "workstation-2") as answered:
        bob.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
        wait_until(lambda: queue_site.counters()["claims_queued"] == 2, "Bob's claim", 5)
        assert len(received(listener)) == 1
    assert refusals(answered)
    queue_site.await_holders()  # two seconds of silence
    bob.close()
    queue_site.udp_socket("workstation-2").sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
    queue_site.await_holders(BOB)
    assert [holding.reason for holding in queue_site.holdings()] == [Ending.IDLE, None]


def test_callers_from_everywhere_reach_the_worker_at_a_bounded_rate(queue_site: Site) -> None:
    queue_site.lab.run("internet", ["ip", "route", "replace", "198.18.0.0/15", "dev", "host1"])
    listener, ann = queue_site.udp_socket("reflector"), queue_site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    queue_site.await_holders(ANN)
    words = ("--from", f"198.18.0.1:{SERVICE_PORT}", "--sources", "16384", "--to", f"{PUBLIC}:{SERVICE_PORT}")
    began_s = time.monotonic()
    with (
        stream(ann, video(ANN), (REFLECTOR, SERVICE_PORT), 20),  # so that she goes on holding it
        flooding(queue_site.lab, "caller", *words, "--seconds", "1.5") as flood,
    ):
        wait_until(lambda: queue_site.counters()["never_queued"] > 0, "the flood", 30)
    queued = queue_site.counters()["talks_queued"]
    assert queued < (2 + time.monotonic() - began_s) * (CALLERS_TALK_RATE_PER_S + 20)
    assert flood.sent > 2 * queued
    received(listener, 0.1)
    ann.sendto(video(ANN, b"still there"), (REFLECTOR, SERVICE_PORT))
    assert listener.recvfrom(2048)[0] == video(PUBLIC, b"still there")
    assert len(queue_site.holdings()) == 1


@pytest.mark.parametrize("disaster", ["killed", "stopped"])
def test_without_a_worker_nothing_passes_untranslated_and_with_it_the_call_goes_on(
    new_queue_site: Site, disaster: str
) -> None:
    site = new_queue_site
    listener, ann = site.udp_socket("reflector"), site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    received(listener)

    def is_silent() -> bool:
        for payload in (open_continue(ANN), video(ANN)):
            ann.sendto(payload, (REFLECTOR, SERVICE_PORT))
        return not received(listener, 0.2)

    if disaster == "killed":
        site.kill("rewriter")
        assert is_silent()
        site.start_rewriter()
    else:
        with site.stopped("rewriter"):
            assert is_silent()
            wait_until(lambda: is_silent() and site.counters()["never_queued"] > 0, "the end of alive", 10)
    deadline_s = time.monotonic() + 10
    arrived: list[tuple[bytes, tuple[str, int]]] = []
    while not arrived and time.monotonic() < deadline_s:
        ann.sendto(video(ANN), (REFLECTOR, SERVICE_PORT))
        arrived = received(listener, 0.2)
    assert {payload[12:16] for payload, _ in arrived} == {socket.inet_aton(PUBLIC)}
    assert {source for _, source in arrived} == {(PUBLIC, SERVICE_PORT)}
    site.await_holders(ANN)
    assert len(site.holdings()) == 1
    site.assert_log_clean()


@pytest.fixture
def new_queue_site() -> Iterator[Site]:
    with ExitStack() as stack:
        site = make_site(stack, gateway={"datapath": "queue"})
        site.start()
        yield site
