"""Workers that are lost while another one waits: whose word the kernel follows, and until when it forwards.

Packets go on all the time, each with its number: what was lost, and who forwarded when, is counted.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, Seen, capture, open_continue, received, udp_to, video
from tools import namespaces
from tools.lab import MASQUERADE, wait_until
from tracker.events import SessionEnded, SessionEnding, SessionOpened, WorkerLost, WorkerReturned

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)
LEASE_S = 3.0
ADOPTED = "bindings adopted"
UPLINKS = ("uplink0", "uplink1")
"""The routers' interfaces to the first gateway and to the second one; probes come from 5000 and 5001."""


def stop(process: Popen[bytes]) -> int:
    """SIGSTOP; the wall time (ns) at which it runs no more."""
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the process is stopped")
    return time.time_ns()


@contextlib.contextmanager
def sending(send: Callable[[int], object], per_s: float) -> Iterator[list[int]]:
    """Call `send` with 0, 1, 2… in the block; the list grows with the numbers sent."""
    sent: list[int] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(1 / per_s):
            send(len(sent))
            sent.append(len(sent))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


def numbers_received(peer: socket.socket) -> list[int]:
    """Of the video packets that wait at a socket, each sent with its number at its end."""
    return [int.from_bytes(payload[-4:], "big") for payload, _ in received(peer, 0.3) if len(payload) > 100]


def hear_from(listener: socket.socket, port: int) -> None:
    """Read until something comes from a port; TimeoutError when nothing does, or only other things."""
    for _ in range(10_000):
        if listener.recvfrom(65535)[1][1] == port:
            return
    raise TimeoutError(f"nothing from port {port}")


def fenced_site(new_site: SiteMaker) -> Site:
    site = new_site(tracker={"lease_s": LEASE_S}, gateway={"on_tracker_loss": "fence"})
    site.start()
    return site


def begin_call(site: Site) -> tuple[socket.socket, socket.socket]:
    """Ann holds the port; her socket and the reflector's."""
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    if site.settings["gateway"].get("on_tracker_loss") == "fence":  # before the first lease all are refused
        wait_until(lambda: bool(site.elements("set", "lease")), "a lease", 10)
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    assert peer.recvfrom(65535)
    return ann, peer


def test_under_fence_the_kernel_itself_stops_forwarding_when_the_lease_has_ended(new_site: SiteMaker) -> None:
    site = fenced_site(new_site)
    ann, peer = begin_call(site)
    bob, caller = site.udp_socket("workstation-2"), site.udp_socket("caller", 5000)
    with sending(lambda _: ann.sendto(video(ANN), TO_REFLECTOR), 50), capture(site.lab, "reflector") as out:
        stopped_ns = stop(site.daemon("rewriter"))
        time.sleep(LEASE_S + 0.5)
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        received(ann, 0.05)
        peer.sendto(video(REFLECTOR), TO_PUBLIC)
        caller.sendto(open_continue(PUBLIC), TO_PUBLIC)
        time.sleep(0.3)
        assert site.holders() == [ANN]
    assert udp_to(out, REFLECTOR)[-1].at_ns - stopped_ns < LEASE_S * 1e9
    assert received(ann, 0.05) == []
    received(peer, 0.05)
    site.signal("rewriter", signal.SIGCONT)
    with sending(lambda _: ann.sendto(video(ANN), TO_REFLECTOR), 50):
        assert peer.recvfrom(65535)
    with sending(lambda _: caller.sendto(open_continue(PUBLIC), TO_PUBLIC), 10):
        hear_from(ann, 5000)  # nothing was left in the way of who called meanwhile
    wait_until(lambda: len(site.events(WorkerReturned)) == 1, "the return in the log", 10)
    assert len(site.events(WorkerLost)) == 1
    [holding] = site.holdings()
    assert holding.until_ns is None
    site.assert_running()
    site.signal("rewriter", signal.SIGTERM)
    assert site.daemon("rewriter").wait(10) == 0
    assert (site.holders(), site.elements("set", "lease")) == ([ANN], [])  # so another host may come at once
    site.assert_log_clean()


def test_a_standby_takes_over_by_itself_and_no_packet_of_the_call_is_lost(new_site: SiteMaker) -> None:
    site = new_site(tracker={"lease_s": LEASE_S}, gateway={"standby": True})
    site.start()
    ann, peer = begin_call(site)
    site.start_standby()
    site.await_said("standby", "is served by another worker")

    def send(number: int) -> None:
        ann.sendto(video(ANN, bytes(96) + number.to_bytes(4, "big")), TO_REFLECTOR)

    with sending(send, 200) as sent:
        stop(site.daemon("rewriter"))
        site.await_said("standby", ADOPTED)
        site.signal("rewriter", signal.SIGCONT)
        site.await_said("rewriter", "standing by")
        time.sleep(0.5)
    assert numbers_received(peer) == sent
    ended = [(it.worker, it.reason) for it in site.events(SessionEnded)]
    assert ended == [("gateway-1", SessionEnding.LEASE_ENDED)]
    site.assert_running()
    [holding] = site.holdings()
    assert holding.until_ns is None
    site.assert_log_clean()


# ---- two gateways with one address -----------------------------------------------------------------------


def add_second_gateway(site: Site) -> None:
    """A namespace `gateway-2` beside the first: the same LAN, the same public address, a link of its own."""
    lab = site.lab
    name = lab.namespace("gateway-2")
    namespaces.carry_out(None, [f"netns add {name}"])
    namespaces.within(name, namespaces.set_namespace_up)
    lab._link("gateway", "lan0-9", "gateway-2", "lan0")
    lab._link("internet", UPLINKS[1], "gateway-2", "wan0")
    lab._ip("gateway", ["link set lan0-9 master lan0 up"])
    lab._ip("internet", [f"link set {UPLINKS[1]} up"])
    its = ["address add 192.168.1.2/24 dev lan0", f"address add {PUBLIC}/24 dev wan0"]
    lab._ip("gateway-2", [*its, "link set lan0 up", "link set wan0 up", "route add default via 192.0.2.1"])
    for place in ("gateway", "internet", "gateway-2"):
        namespaces.within(lab.namespace(place), namespaces.switch_offload_off)
    namespaces.await_links(map(lab.namespace, ("gateway", "internet", "gateway-2")))
    lab.run("gateway-2", ["nft", "-f", "-"], stdin_text=MASQUERADE)


def go_through(site: Site, number: int) -> None:
    """What VRRP does: from now on the addresses of the gateway are this one's (0 or 1)."""
    site.lab._ip("internet", [f"route replace {PUBLIC}/32 dev {UPLINKS[number]}"])
    site.lab._ip("workstation-1", [f"route replace default via 192.168.1.{number + 1}"])


def probe_socket(site: Site, number: int) -> socket.socket:
    """A caller whose packets reach the public address through this gateway, whatever the routes say."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, UPLINKS[number].encode())
        made.bind(("192.0.2.1", 5000 + number))
        return site.open_until_end.enter_context(made)

    return site.lab.within("internet", make)


def came_through(arrived: list[Seen], number: int) -> list[int]:
    """When the probes of a gateway came to Ann."""
    port = (5000 + number).to_bytes(2, "big")
    return [seen.at_ns for seen in udp_to(arrived, ANN) if seen.packet[20:22] == port]


def test_two_gateways_with_one_address_never_forward_at_once(new_site: SiteMaker) -> None:
    site = fenced_site(new_site)
    add_second_gateway(site)
    go_through(site, 0)
    ann, peer = begin_call(site)
    site.start_standby(place="gateway-2")
    first = site.daemon("rewriter")
    probes = [probe_socket(site, number) for number in (0, 1)]
    probe = open_continue("192.0.2.1")

    def call(_number: int) -> None:
        for caller in probes:
            caller.sendto(probe, TO_PUBLIC)

    with sending(call, 50):
        with capture(site.lab, "workstation-1") as there:
            hear_from(ann, 5000)
            stop(first)
            site.await_said("standby", ADOPTED)
            go_through(site, 1)
            hear_from(ann, 5001)
            first.send_signal(signal.SIGCONT)
            assert first.wait(10) == 1
            assert "gateway gateway-1 is standby's on" in site.said("rewriter")
            time.sleep(0.3)
        received(peer, 0.05)
        with sending(lambda _: ann.sendto(video(ANN), TO_REFLECTOR), 20):
            assert peer.recvfrom(65535)[1] == TO_PUBLIC
        with capture(site.lab, "workstation-1") as back:
            site.start_rewriter("--take-over")
            site.await_said("standby", "standing by")
            hear_from(ann, 5000)
    assert came_through(there, 0)[-1] < came_through(there, 1)[0]
    assert came_through(back, 1)[-1] < came_through(back, 0)[0]
    opened = [(it.worker, it.fence) for it in site.events(SessionOpened)]
    assert opened == [("gateway-1", True), ("standby", True), ("gateway-1", True)]
    reasons = [it.reason for it in site.events(SessionEnded)]
    assert reasons == [SessionEnding.LEASE_ENDED, SessionEnding.CLOSED]
    [holding] = site.holdings()
    assert holding.until_ns is None
    site.assert_log_clean()
