"""The end of a binding: not one packet more reaches the old holder, and the next one has the port at once."""

import signal
import socket
import time

import pytest

from rewriter.cuseeme import Message
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, stream, udp_to, video
from tools.lab import wait_until
from tracker.events import Ending

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)


def hold(site: Site, address: str, sender: socket.socket, peer: socket.socket | None = None) -> None:
    """Claim the port with an OpenContinue; `peer` answers it, so that the connection is replied."""
    sender.sendto(open_continue(address), TO_REFLECTOR)
    site.await_holders(address)
    if peer is not None:
        _, source = peer.recvfrom(2048)
        peer.sendto(video("127.0.0.2", to=address), source)
        sender.recvfrom(2048)


def test_a_silent_holder_is_unbound_and_his_peers_reach_him_no_more(impatient_site: Site) -> None:
    site = impatient_site
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    started = time.monotonic()
    with stream(peer, video("127.0.0.2"), TO_PUBLIC, per_s=200):  # what comes in keeps nothing alive
        site.await_holders()
        assert 0.7 < time.monotonic() - started < 3
        assert site.connections(f"src={ANN}") == []
        assert site.connections(f"dst={ANN}") == []
        with capture(site.lab, "workstation-1") as to_ann:
            time.sleep(1.1)  # past the second purge
        assert udp_to(to_ann, ANN) == []
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        site.await_holders(BOB)
        with capture(site.lab, "workstation-1") as to_ann, capture(site.lab, "workstation-2") as to_bob:
            for _ in range(20):
                bob.sendto(video(BOB), TO_REFLECTOR)
                time.sleep(0.02)
        assert udp_to(to_ann, ANN) == []
        assert len(udp_to(to_bob, BOB)) > 20
    [first, second] = site.holdings()
    assert (first.reason, second.until_ns) == (Ending.IDLE, None)
    site.assert_log_clean()


def test_the_idle_time_is_kept_to_the_packet(impatient_site: Site) -> None:
    site = impatient_site
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    hold(site, ANN, ann, peer)
    for _ in range(4):
        ann.sendto(video(ANN), TO_REFLECTOR)
        time.sleep(0.5)
    assert site.holders() == [ANN]  # two seconds, and never one of silence
    ann.sendto(b"last", TO_REFLECTOR)
    last_ns = time.time_ns()
    wait_until(lambda: not site.holders(), "expiry in the kernel")
    assert 0.9e9 < time.time_ns() - last_ns < 1.5e9
    site.await_holders()
    [holding] = site.holdings()
    assert holding.last_packet_ns is not None
    assert abs(holding.last_packet_ns - last_ns) < 0.5e9


@pytest.mark.parametrize("disaster", ["stopped", "killed"])
def test_idle_time_runs_out_without_a_worker(impatient_site: Site, disaster: str) -> None:
    site = impatient_site
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    if disaster == "killed":
        site.kill("rewriter")
    else:
        site.signal("rewriter", signal.SIGSTOP)
    wait_until(lambda: not site.holders(), "expiry in the kernel", 4)
    with capture(site.lab, "workstation-1") as to_ann:
        for _ in range(50):
            peer.sendto(video("127.0.0.2"), TO_PUBLIC)
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        time.sleep(0.2)
    assert udp_to(to_ann, ANN) == []
    if disaster == "killed":
        site.start_rewriter()
    else:
        site.signal("rewriter", signal.SIGCONT)
    if site.holders() != [BOB]:
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
    site.await_holders(BOB)
    assert [holding.reason for holding in site.holdings()] == [Ending.IDLE, None]
    site.assert_log_clean()


def test_packets_held_in_the_queues_reach_nobody_after_the_end(impatient_site: Site) -> None:
    """The race that the old path won: a packet in the queue is accepted after its holder is none any more."""
    site = impatient_site
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    caller = site.udp_socket("caller", 5000)
    hold(site, ANN, ann, peer)
    with capture(site.lab, "workstation-1") as to_ann, capture(site.lab, "reflector") as out:
        with site.stopped("rewriter"):
            for number in range(20):  # all OpenContinues: into the queue, while the worker is thought alive
                ann.sendto(open_continue(ANN, sequence=number), TO_REFLECTOR)
                ann.sendto(open_continue(ANN, sequence=number), (CALLER, 7000 + number))  # claims no more
                peer.sendto(open_continue("127.0.0.2", sequence=number), TO_PUBLIC)
                caller.sendto(open_continue(CALLER, sequence=number), TO_PUBLIC)  # a connection of its own
            assert site.talks_queue().waiting >= 40
            wait_until(lambda: not site.holders(), "expiry in the kernel", 4)
            bob.sendto(open_continue(BOB), TO_REFLECTOR)  # waits behind them, in the claims queue
            assert site.claims_queue().waiting == 1
        wait_until(lambda: site.talks_queue().waiting == 0, "queues read")
        site.await_holders(BOB)
        for _ in range(10):  # the old peers go on, and reach the new holder
            peer.sendto(video("127.0.0.2"), TO_PUBLIC)
            caller.sendto(video(CALLER), TO_PUBLIC)
        time.sleep(1.1)  # past the second purge
    assert udp_to(to_ann, ANN) == []
    assert site.connections(f"src={ANN}") == []
    assert site.connections(f"dst={ANN}") == []
    assert len(received(bob)) == 20
    sent = [seen.packet for seen in udp_to(out, REFLECTOR, [SERVICE_PORT])]
    assert len(sent) == 1  # Bob's; nothing of Ann's went out under the address that was no longer hers
    site.assert_log_clean()


def test_packets_held_in_the_queues_reach_nobody_after_a_hang_up(site: Site) -> None:
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    with capture(site.lab, "workstation-1") as to_ann:
        with site.stopped("rewriter"):
            ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
            bob.sendto(open_continue(BOB), TO_REFLECTOR)
        site.await_holders()
        marked = len(to_ann)
        for number in range(50):
            peer.sendto(open_continue("127.0.0.2", sequence=number), TO_PUBLIC)
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        site.await_holders(BOB)
        assert marked == 0
    assert udp_to(to_ann, ANN) == []


def test_the_next_holder_reaches_the_same_peer_at_once_while_that_peer_goes_on_sending(site: Site) -> None:
    """The peer's packets make a connection of their own, to nobody, whose tuple the next holder wants."""
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    with stream(peer, video("127.0.0.2"), TO_PUBLIC, per_s=500):
        for sender, address in ((bob, BOB), (ann, ANN), (bob, BOB), (ann, ANN)):
            before = ann if sender is bob else bob
            old = ANN if sender is bob else BOB
            for _ in range(2):
                before.sendto(open_continue(old, message=Message.CLOSE), TO_REFLECTOR)
            site.await_holders()
            received(sender, 0.05)
            received(peer, 0.05)
            sender.sendto(open_continue(address, name="next"), TO_REFLECTOR)
            site.await_holders(address)
            arrived = received(peer, 0.3)
            assert [payload[12:16] for payload, _ in arrived] == [socket.inet_aton(PUBLIC)]
            assert arrived[0][1] == TO_PUBLIC
            sender.recvfrom(2048)
            received(before, 0.05)
            time.sleep(0.1)
            assert received(before, 0.05) == []


def test_a_hang_up_with_another_live_peer_unbinds_nothing(site: Site) -> None:
    ann, peer, other = (site.udp_socket(p) for p in ("workstation-1", "reflector", "caller"))
    hold(site, ANN, ann, peer)
    ann.sendto(open_continue(ANN), (CALLER, SERVICE_PORT))
    _, source = other.recvfrom(2048)
    other.sendto(open_continue(CALLER), source)
    ann.recvfrom(2048)
    for _ in range(2):
        ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    time.sleep(0.5)
    assert site.holders() == [ANN]
    other.sendto(video(CALLER), source)
    assert ann.recvfrom(2048)[0] == video(CALLER)
    ann.sendto(open_continue(ANN, message=Message.CLOSE), (CALLER, SERVICE_PORT))
    site.await_holders()
    assert [holding.reason for holding in site.holdings()] == [Ending.HANG_UP]


def test_whoever_calls_again_right_after_a_hang_up_keeps_the_port(site: Site) -> None:
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    hold(site, ANN, ann, peer)
    for message in (Message.CLOSE, Message.CLOSE, Message.OPEN):
        ann.sendto(open_continue(ANN, message=message), TO_REFLECTOR)
    time.sleep(0.3)
    assert site.holders() == [ANN]
    assert len(received(peer, 0.05)) == 3
    assert len(site.holdings()) == 1


@pytest.mark.parametrize("times", [1, 2, 3])
def test_every_repeat_of_a_hang_up_leaves_translated(site: Site, times: int) -> None:
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    hold(site, ANN, ann, peer)
    for _ in range(times):
        ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    site.await_holders()
    assert [payload[12:16] for payload, _ in received(peer)] == [socket.inet_aton(PUBLIC)] * times


def test_a_hang_up_never_claims_and_after_one_only_a_new_call_does(site: Site) -> None:
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    time.sleep(0.3)
    assert site.counters()["claims_queued"] == 0
    hold(site, ANN, ann, peer)
    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    # The kernel alone is asked: it remembers who hung up for five seconds only.
    wait_until(lambda: site.holders() == [], "the end of the binding", 4)
    received(peer, 0.05)
    for late in (
        video(ANN),
        b"short",
        open_continue(ANN, message=Message.CLOSE),
        open_continue(ANN, message=2),
    ):
        ann.sendto(late, TO_REFLECTOR)
    time.sleep(0.5)
    assert (site.holders(), received(peer, 0.05)) == ([], [])
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)


def test_a_caller_from_outside_is_cut_off_with_the_binding(impatient_site: Site) -> None:
    site = impatient_site
    ann, caller = site.udp_socket("workstation-1"), site.udp_socket("caller", 5000)
    hold(site, ANN, ann)
    caller.sendto(video(CALLER), TO_PUBLIC)
    ann.recvfrom(2048)
    with stream(caller, video(CALLER), TO_PUBLIC, per_s=200):
        site.await_holders()
        with capture(site.lab, "workstation-1") as to_ann:
            time.sleep(1.1)
        assert udp_to(to_ann, ANN) == []
    # What the old holder still answers goes nowhere either.
    received(caller, 0.1)
    ann.sendto(video(ANN), (CALLER, 5000))
    assert [source for _, source in received(caller) if source == TO_PUBLIC] == []
