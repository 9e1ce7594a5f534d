"""SIGHUP: what changed in the configuration takes effect, and nothing else is touched.

A call goes on all the time, with its packets numbered: what is lost is counted.
"""

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, video
from tools.lab import wait_until
from tracker.events import Ending, PortUnbound, ServiceDefined, ServiceRemoved

TO_REFLECTOR, TO_PUBLIC = (REFLECTOR, SERVICE_PORT), (PUBLIC, SERVICE_PORT)
PER_S = 200
LIST = ["nft", "list", "table", "ip", "porthold"]
CHAT = '[services.chat]\ncontrol = ["udp/9000"]\nforward = ["udp/9000-9001"]\n'
CUSEEME = "[services.cuseeme]\n"


def reload(site: Site, text: str, expected: str) -> None:
    """Another configuration file, SIGHUP, and wait for these words in its answer."""
    site.configuration.write_text(text)
    times = site.said("rewriter").count(expected)
    site.signal("rewriter", signal.SIGHUP)
    site.await_said("rewriter", expected, times + 1)


def table_handle(site: Site) -> int:
    """A table that is replaced has another one."""
    (handle,) = [
        int(item["table"]["handle"])
        for item in site.nft("list", "tables", "ip")
        if "table" in item and item["table"]["name"] == "porthold"
    ]
    return handle


def connections(site: Site) -> set[tuple[str, str]]:
    """The call's conntrack entries: their identity and mark."""
    listed = site.lab.run("gateway", ["conntrack", "-L", "-o", "id", "-s", ANN]).stdout.splitlines()
    found = [re.search(r" mark=(\d+) .*id=(\d+)", line) for line in listed]
    return {(match[2], match[1]) for match in found if match is not None}


class Call:
    """Ann's and the reflector's packets to each other, each with its number at its end."""

    def __init__(self, site: Site) -> None:
        self.ann, self.peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
        self.ann.sendto(open_continue(ANN), TO_REFLECTOR)
        site.await_holders(ANN)
        assert self.peer.recvfrom(65535)
        self.sent = self.looked_at = 0

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Both send in the block."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(1 / PER_S):
                number = bytes(96) + self.sent.to_bytes(4, "big")
                self.ann.sendto(video(ANN, number), TO_REFLECTOR)
                self.peer.sendto(video(REFLECTOR, number, to=PUBLIC), TO_PUBLIC)
                self.sent += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def assert_nothing_lost(self) -> None:
        for listener in (self.ann, self.peer):
            numbers = [int.from_bytes(payload[-4:], "big") for payload, _ in received(listener)]
            assert numbers == list(range(self.looked_at, self.sent))
        self.looked_at = self.sent


def claim_chat(host: socket.socket, peer: socket.socket) -> bytes:
    """A first packet to the other service's port; what the peer hears of it."""
    host.sendto(b"chat", (REFLECTOR, 9000))
    return peer.recvfrom(2048)[0]


def test_services_come_change_and_go_and_the_call_loses_no_packet(new_site: SiteMaker) -> None:
    site = new_site()
    site.start()
    text = site.configuration.read_text()
    call = Call(site)
    bob, peer = site.udp_socket("workstation-2", 9000), site.udp_socket("reflector", 9000)
    before = connections(site)
    assert len(before) == 1

    with call.going_on():
        # In front: the call's service is the file's second one now, and its connections' mark says 1.
        with_chat = text.replace(CUSEEME, CHAT + CUSEEME)
        reload(site, with_chat, "epoch 2: 1 of 1 bindings adopted")
        assert claim_chat(bob, peer) == b"chat"
        wait_until(lambda: site.holders("chat") == [BOB], "the new service's holder", 10)

        changed = with_chat.replace("9000-9001", "9000-9005").replace(CUSEEME, CUSEEME + "idle_s = 100.0\n")
        reload(site, changed, "epoch 3: 2 of 2 bindings adopted")
        assert site.elements("set", "chat_ports") == [{"concat": ["udp", {"range": [9000, 9005]}]}]

        reload(site, text.replace(CUSEEME, CUSEEME + "idle_s = 100.0\n"), "epoch 4: 1 of 1 bindings adopted")
        wait_until(lambda: len(site.events(PortUnbound)) == 1, "the end of the binding", 10)
        bob.sendto(b"gone", (REFLECTOR, 9000))
    call.assert_nothing_lost()
    assert connections(site) == before
    assert site.connections(f"src={BOB}", "dport=9000", "src=192.0.2.2") == []

    assert [(event.binding, event.reason) for event in site.events(PortUnbound)] == [(2, Ending.RECONFIGURED)]
    defined = [(event.service.name, event.service.idle_ms) for event in site.events(ServiceDefined)]
    assert defined == [("cuseeme", 300_000), ("chat", 300_000), ("chat", 300_000), ("cuseeme", 100_000)]
    assert [event.name for event in site.events(ServiceRemoved)] == ["chat"]
    site.await_holders(ANN)

    # The number that connections carry outlives the worker: the file's order is another one now.
    site.kill("rewriter")
    site.configuration.write_text(text.replace(CUSEEME, CHAT + CUSEEME))
    with call.going_on():
        site.start_rewriter()
    call.assert_nothing_lost()
    assert connections(site) == before
    site.await_holders(ANN)
    site.assert_running()
    site.assert_log_clean()


def test_what_only_shapes_rules_takes_effect_at_once_without_a_tracker_too(new_site: SiteMaker) -> None:
    site = new_site()
    site.start()
    text = site.configuration.read_text()
    call = Call(site)
    site.kill("tracker")
    bob = site.udp_socket("workstation-2")
    with call.going_on():
        wanted = text.replace("[gateway]\n", '[gateway]\nrefusal = "drop"\n').replace(
            CUSEEME, CUSEEME + 'callers = ["198.51.100.0/24"]\n'
        )
        reload(site, wanted, "read again: gateway.refusal, services.cuseeme")
        wait_until(lambda: "cuseeme_may_call" in site.lab.run("gateway", LIST).stdout, "the new rules", 10)
        with capture(site.lab, "workstation-2") as to_bob:
            bob.sendto(open_continue(BOB), TO_REFLECTOR)
            time.sleep(0.5)
        assert refusals(to_bob) == []
    call.assert_nothing_lost()
    assert site.elements("set", "epoch") == [1]
    site.start_tracker()
    site.await_holders(ANN)
    site.assert_running()


def test_what_is_wrong_the_same_or_needs_a_restart_touches_nothing(new_site: SiteMaker) -> None:
    site = new_site()
    site.start()
    text = site.configuration.read_text()
    call = Call(site)
    handle = table_handle(site)
    with call.going_on():
        reload(site, text + "# nothing new\n", "read again: nothing has changed")
        reload(site, text + 'colour = "red"\nidle_s = -1.0\n', "services.cuseeme.colour")
        assert "services.cuseeme.idle_s" in site.said("rewriter")
        wanted = text.replace("[gateway]\n", "[gateway]\nmark_mask = 0x003f0000\nqueue_base = 20000\n")
        reload(site, wanted, "only a restart brings it (calls go on meanwhile): gateway.mark_mask, gateway.q")
        # Beside them, what can be taken is.
        reload(site, wanted.replace("claim_timeout_s = 5.0", "claim_timeout_s = 4.0"), "claim_timeout_s")
    call.assert_nothing_lost()
    assert table_handle(site) == handle
    assert site.elements("set", "epoch") == [1]
    site.await_holders(ANN)
    site.assert_running()
