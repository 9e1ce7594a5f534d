"""An operator's word reaches the kernel within a second, and no order is forgotten, whoever is away."""

import json
import signal
import socket
import subprocess
import time
from contextlib import ExitStack

import pytest

from tests.lab.gateway_site import ANN, BOB, PUBLIC, REFLECTOR, Site
from tests.lab.test_gateway_unbinding import hold
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, refusals, stream, udp_to, video
from tools.lab import wait_until
from tracker.events import (
    BarLifted,
    ClaimDenied,
    ClaimsFrozen,
    Ending,
    FreezeEnded,
    HostBarred,
    PortReserved,
    ReservationEnded,
    Restraint,
    WithdrawalOrdered,
)

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)
SECOND_NS = 1_000_000_000


def porthold(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, as an operator gives it."""
    command = [str(site.program), *words, "--config", str(site.configuration)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def done(site: Site, *words: str) -> str:
    """What a command says that has its reason and ends well."""
    ended = porthold(site, *words, "--reason", "a test")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def ordered_ns(site: Site) -> int:
    """When the last order to end a binding was logged."""
    with site.reader() as reader:
        times = [
            record.wall_ns
            for entry in reader.read(site.first_record)
            if (record := entry.record) is not None and record.type == 64
        ]
    return times[-1]


def refused(site: Site, place: str, sender: socket.socket, address: str) -> None:
    """Whoever claims now is told by ICMP that it may not, and holds nothing."""
    with capture(site.lab, place) as seen, stream(sender, open_continue(address), TO_REFLECTOR, per_s=5):
        wait_until(lambda: any(it.because for it in denials(site, address)), "a refusal on record")
        time.sleep(0.6)
    assert refusals(seen), "no ICMP"
    assert address not in site.holders()


def denials(site: Site, address: str) -> list[ClaimDenied]:
    return [it for it in site.events(ClaimDenied) if it.claimant == socket.inet_aton(address)]


@pytest.mark.parametrize("word", ["release", "revoke"])
def test_the_end_is_in_the_kernel_when_the_command_returns_and_within_a_second(site: Site, word: str) -> None:
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    with (
        stream(peer, video("127.0.0.2"), TO_PUBLIC, per_s=200),
        capture(site.lab, "workstation-1") as to_ann,
    ):
        said = done(site, word, "7648/udp", *(["--for", "1h"] if word == "revoke" else []))
        returned_ns = time.time_ns()
        assert site.holders() == []
        assert site.connections(f"src={ANN}") == site.connections(f"dst={ANN}") == []
        time.sleep(1.2)  # past the second purge
    assert "the kernel has let go" in said
    reached = udp_to(to_ann, ANN)
    assert reached, "she was reached before"
    assert reached[-1].at_ns < min(returned_ns, ordered_ns(site) + SECOND_NS)
    assert [holding.reason for holding in site.holdings()] == [Ending(word)]
    (order,) = site.events(WithdrawalOrdered)
    assert (order.ending, order.why, order.by.endswith("(unix:0)")) == (Ending(word), "a test", True)
    if word == "revoke":
        refused(site, "workstation-1", ann, ANN)
        assert denials(site, ANN)[0].because is Restraint.REVOKED
    bob.sendto(open_continue(BOB), TO_REFLECTOR)
    site.await_holders(BOB)
    done(site, "release", BOB)
    site.await_holders()
    if word == "revoke":
        assert "may claim again" in done(site, "revoke", "--end", ANN)
        wait_until(lambda: "192.168.1.10" not in str(site.elements("set", "cuseeme_refused")), "allowed")
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    site.assert_log_clean()


def test_a_bar_ends_by_itself(site: Site) -> None:
    ann = site.udp_socket("workstation-1")
    hold(site, ANN, ann)
    done(site, "revoke", "7648/udp", "--for", "2s")
    with stream(ann, open_continue(ANN), TO_REFLECTOR, per_s=5):
        site.await_holders(ANN)
    (bar,), (lifted,) = site.events(HostBarred), site.events(BarLifted)
    assert (bar.host, lifted.by) == (socket.inet_aton(ANN), None)
    assert [holding.reason for holding in site.holdings()] == [Ending.REVOKE, None]


def test_a_reserved_port_is_one_host_s_whoever_comes_first_also_after_a_restart(site: Site) -> None:
    ann, bob = (site.udp_socket(p) for p in ("workstation-1", "workstation-2"))
    hold(site, ANN, ann)
    assert f"{ANN} holds it" in done(site, "reserve", "7648/udp", BOB)
    assert site.holders() == [ANN]
    done(site, "reserve", "cuseeme", BOB, "--end-calls")
    site.await_holders()
    site.kill("tracker")
    site.start_tracker()
    wait_until(lambda: "lease for" in porthold(site, "status").stdout, "a session")
    said = porthold(site, "status").stdout
    assert all(fact in said for fact in ("reserved", BOB, "a test"))
    wait_until(lambda: site.said("rewriter") != "" and bool(site.queues()), "queues")
    refused(site, "workstation-1", ann, ANN)
    assert porthold(site, "who", "--port", "7648").stdout.count(f"reserved for {BOB}") == 1
    with stream(bob, open_continue(BOB), TO_REFLECTOR, per_s=2):
        site.await_holders(BOB)
    done(site, "reserve", "--end", "7648/udp")
    done(site, "release", BOB)
    with stream(ann, open_continue(ANN), TO_REFLECTOR, per_s=2):
        site.await_holders(ANN)
    assert (len(site.events(PortReserved)), len(site.events(ReservationEnded))) == (1, 1)
    site.assert_log_clean()


def test_a_freeze_leaves_calls_alone_or_ends_them_all_and_thaws(site: Site) -> None:
    ann, bob, peer = (site.udp_socket(p) for p in ("workstation-1", "workstation-2", "reflector"))
    hold(site, ANN, ann, peer)
    done(site, "freeze")
    peer.sendto(video("127.0.0.2"), TO_PUBLIC)
    assert ann.recvfrom(2048)
    done(site, "freeze", "--end-calls")
    assert site.holders() == []
    refused(site, "workstation-2", bob, BOB)
    refused(site, "workstation-1", ann, ANN)
    assert {it.because for it in site.events(ClaimDenied)} == {Restraint.FROZEN}
    done(site, "freeze", "--end")
    with stream(bob, open_continue(BOB), TO_REFLECTOR, per_s=2):
        site.await_holders(BOB)
    assert (len(site.events(ClaimsFrozen)), len(site.events(FreezeEnded))) == (1, 1)


def test_an_order_to_a_worker_that_is_away_is_carried_out_when_it_comes(site: Site) -> None:
    ann = site.udp_socket("workstation-1")
    hold(site, ANN, ann)
    with ExitStack() as stack:
        stack.enter_context(site.stopped("rewriter"))
        waiting = porthold(site, "release", ANN, "--reason", "a test", "--timeout", "1", "--json")
        assert waiting.returncode == 1
        (result,) = json.loads(waiting.stdout)["bindings"]
        assert result["outcome"] == "waiting"
        assert site.holders() == [ANN]
    site.await_holders()
    hold(site, ANN, ann)
    site.kill("rewriter")
    assert porthold(site, "release", ANN, "--reason", "a test", "--timeout", "1").returncode == 1
    site.signal("tracker", signal.SIGKILL)
    site.daemon("tracker").wait()
    site.start_tracker()
    assert site.holders() == [ANN]
    site.start_rewriter()
    site.await_holders()
    assert [holding.reason for holding in site.holdings()] == [Ending.RELEASE, Ending.RELEASE]
    site.assert_log_clean()
