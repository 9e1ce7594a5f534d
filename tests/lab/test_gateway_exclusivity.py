"""One holder at a time, whatever the workstations do: packets seen against the intervals of the log."""

import random
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise

import pytest

from rewriter import ruleset
from rewriter.command import KernelRefused
from rewriter.configuration import GatewayFile, ruleset_for
from rewriter.cuseeme import Message, parse
from rewriter.tables import Tables
from rewriter.vocabulary import Element, Ruleset
from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, Seen, capture, open_continue, stream, udp_to, video
from tracker.audit import Holding
from tracker.configuration import load

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)
WORKSTATIONS = 4
CHURN_S = 6.0
IDLE_S = 1.0


@dataclass
class Traffic:
    """What came to each workstation, by its address, and what left the gateway."""

    arrived: dict[str, list[Seen]]
    out: list[Seen]


def owns(intervals: list[tuple[int, int]], at_ns: int) -> bool:
    """Whether a moment falls into one of the intervals, which are in order."""
    index = bisect_right(intervals, (at_ns, 1 << 63)) - 1
    return index >= 0 and intervals[index][0] <= at_ns <= intervals[index][1]


def intervals_by_holder(holdings: list[Holding], now_ns: int) -> dict[str, list[tuple[int, int]]]:
    """When each host held the port by the log: from the record that gave it to the report of its end."""
    found: dict[str, list[tuple[int, int]]] = {}
    for holding in holdings:
        until_ns = now_ns if holding.ended_ns is None else holding.ended_ns
        found.setdefault(str(IPv4Address(holding.holder)), []).append((holding.since_ns, until_ns))
    return found


def play_workstation(site: Site, number: int, chance: random.Random, until_s: float) -> None:
    """Call, talk, hang up or fall silent, at random."""
    place, address = f"workstation-{number}", site.lab.addresses[f"workstation-{number}"]
    sender = site.udp_socket(place)
    while time.monotonic() < until_s:
        talk_until_s = time.monotonic() + chance.uniform(0.1, 1.2)
        while time.monotonic() < min(talk_until_s, until_s):
            sender.sendto(open_continue(address, name=place), TO_REFLECTOR)
            for _ in range(chance.randrange(4)):
                sender.sendto(video(address), TO_REFLECTOR)
            time.sleep(chance.uniform(0.005, 0.08))
        if chance.random() < 0.7:
            for _ in range(chance.choice([1, 2, 2, 3])):
                sender.sendto(open_continue(address, message=Message.CLOSE, name=place), TO_REFLECTOR)
            for _ in range(chance.randrange(3)):
                sender.sendto(video(address), TO_REFLECTOR)
            time.sleep(chance.uniform(0, 0.5))
        else:
            time.sleep(chance.uniform(0, 1.5 * IDLE_S))


def churn(
    site: Site, chance: random.Random, length_s: float, disturb: Callable[[], None] | None = None
) -> Traffic:
    """Everybody at once for `length_s`; `disturb` is called again and again meanwhile."""
    peer, caller = site.udp_socket("reflector"), site.udp_socket("caller", 5000)
    until_s = time.monotonic() + length_s
    numbers = range(1, WORKSTATIONS + 1)
    threads = [threading.Thread(target=answer, args=(peer, until_s))]
    threads += [
        threading.Thread(
            target=play_workstation, args=(site, number, random.Random(chance.random()), until_s)
        )
        for number in numbers
    ]
    with ExitStack() as stack:
        arrived = {
            site.lab.addresses[f"workstation-{number}"]: stack.enter_context(
                capture(site.lab, f"workstation-{number}")
            )
            for number in numbers
        }
        out = stack.enter_context(capture(site.lab, "internet", "uplink0"))
        stack.enter_context(stream(caller, video(CALLER), TO_PUBLIC, 100))
        stack.enter_context(stream(peer, open_continue(REFLECTOR, entries=(PUBLIC,)), TO_PUBLIC, 30))
        for thread in threads:
            thread.start()
        while disturb is not None and time.monotonic() < until_s:
            disturb()
        for thread in threads:
            thread.join()
        site.await_holders(timeout_s=30 * IDLE_S)
    site.open_until_end.close()
    return Traffic(arrived, out)


def assert_exclusive(site: Site, traffic: Traffic) -> None:
    """Every packet at a workstation, and every OpenContinue that left, lies in an interval of its holder."""
    site.assert_running()
    site.assert_log_clean()
    holdings = site.holdings()
    intervals = intervals_by_holder(holdings, time.time_ns())
    assert_disjoint(holdings)
    for address, packets in traffic.arrived.items():
        got = udp_to(packets, address)
        stray = [seen.at_ns for seen in got if not owns(intervals.get(address, []), seen.at_ns)]
        assert stray == [], (address, len(stray), len(got), intervals.get(address))
    assert sum(len(udp_to(packets, address)) for address, packets in traffic.arrived.items()) > 50
    assert_sent_by_holders(traffic.out, intervals, site)


def test_never_do_two_hosts_get_packets_outside_their_intervals_of_the_log(
    new_site: SiteMaker, chance: random.Random
) -> None:
    site = new_site(
        lab={"workstations": WORKSTATIONS}, service={"idle_s": IDLE_S}, gateway={"refused_s": 0.2}
    )
    site.start()
    while True:  # on a busy machine little happens in a round
        traffic = churn(site, chance, CHURN_S)
        assert_exclusive(site, traffic)
        if len(site.holdings()) >= 6 and len({holding.holder for holding in site.holdings()}) >= 3:
            return


@pytest.mark.soak
def test_nor_do_they_while_daemons_are_killed_and_stopped(new_site: SiteMaker, chance: random.Random) -> None:
    site = new_site(
        lab={"workstations": WORKSTATIONS}, service={"idle_s": IDLE_S}, gateway={"refused_s": 0.2}
    )
    site.start()

    def disturb() -> None:
        time.sleep(chance.uniform(0.5, 3))
        match chance.randrange(4):
            case 0:
                site.kill("rewriter")
                time.sleep(chance.uniform(0, 3))
                site.start_rewriter()
            case 1:
                with site.stopped("rewriter"):
                    time.sleep(chance.uniform(0, 4))
            case 2:
                site.kill("tracker")
                time.sleep(chance.uniform(0, 3))
                site.start_tracker()
            case _:
                with site.stopped("tracker"):
                    time.sleep(chance.uniform(0, 4))

    assert_exclusive(site, churn(site, chance, 60.0, disturb))


def answer(peer: socket.socket, until_s: float) -> None:
    """A reflector that answers whatever comes, so that connections are replied."""
    peer.settimeout(0.2)
    while time.monotonic() < until_s:
        try:
            _, source = peer.recvfrom(4096)
        except TimeoutError:
            continue
        peer.sendto(video(REFLECTOR), source)


def assert_disjoint(holdings: list[Holding]) -> None:
    """One holder at a time, and what the kernel held lies within the log's interval."""
    for earlier, later in pairwise(holdings):
        assert earlier.until_ns is not None
        assert earlier.until_ns <= later.since_ns
    for holding in holdings:
        assert holding.installed_ns is not None
        assert holding.withdrawn_ns is not None
        assert holding.since_ns <= holding.installed_ns <= holding.withdrawn_ns <= (holding.until_ns or 0)


def assert_sent_by_holders(out: list[Seen], intervals: dict[str, list[tuple[int, int]]], site: Site) -> None:
    """Whose OpenContinue left under the public port held it then; the user name says whose it was."""
    checked = 0
    for seen in udp_to(out, REFLECTOR, [SERVICE_PORT]):
        assert seen.packet[12:16] == socket.inet_aton(PUBLIC)
        talk = parse(seen.packet[28:])
        assert talk is not None
        assert talk.header.address == socket.inet_aton(PUBLIC)
        if talk.user_name:
            assert owns(intervals[site.lab.addresses[talk.user_name]], seen.at_ns), talk.user_name
            checked += 1
    assert checked > 10


def apply(site: Site, batch: str) -> None:
    """What a worker of whatever epoch would tell the kernel."""
    site.lab.within("gateway", lambda: Tables().apply(batch))


def test_every_batch_of_another_epoch_is_refused_whole(site: Site) -> None:
    ann = site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    rules = production_rules(site)
    [epoch] = [int(str(element), 0) for element in site.elements("set", "epoch")]
    service = rules.services[0]
    held = Element("cuseeme", IPv4Address(ANN), IPv4Address(PUBLIC))
    other = Element("cuseeme", IPv4Address(BOB), IPv4Address(PUBLIC))
    for wrong in (epoch - 1, epoch + 1, 0, 99):
        batches = (
            ruleset.install(rules, wrong, other),
            ruleset.withdraw(wrong, service, [("cuseeme_holders", ANN), ("cuseeme_outbound", ANN)]),
            ruleset.refuse(wrong, service, IPv4Address(ANN)),
            ruleset.settle(wrong, service, IPv4Address(ANN)),
            ruleset.keep_alive(wrong),
            ruleset.render(rules, wrong, [other], replaces=wrong),
            ruleset.render(rules, wrong, [held], replaces=None),
        )
        for batch in batches:
            with pytest.raises(KernelRefused):
                apply(site, batch)
    assert site.holders() == [ANN]
    assert site.elements("map", "cuseeme_inbound") == [[PUBLIC, ANN]]
    assert site.elements("set", "cuseeme_refused") == []
    apply(
        site, ruleset.keep_alive(epoch)
    )  # and of the right one taken: the refusals were for the epoch's sake
    site.assert_running()


def production_rules(site: Site) -> Ruleset:
    """The rules as the running worker has them."""
    return ruleset_for(load(site.configuration, GatewayFile), 1, native_queue=False, most_speakers=63)
