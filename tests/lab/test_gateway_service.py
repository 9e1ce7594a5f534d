"""The rewriter as a service: with one capability and no root, ready, told to end, told to read again."""

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import (
    ANN,
    BOB,
    REFLECTOR,
    Site,
    assert_nothing_wrong,
    await_video_both_ways,
    conference,
)
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, refusals
from tools.lab import wait_until
from tracker.events import BindingInstalled, SessionEnded, SessionEnding

NOBODY = 65534
UNPRIVILEGED = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--bounding-set", "-all")
PRIVILEGED = (
    *UNPRIVILEGED[:-2],
    *("--bounding-set", "-all,+net_admin"),
    *("--inh-caps", "-all,+net_admin"),
    *("--ambient-caps", "-all,+net_admin"),
)
"""What the rewriter's unit gives: CapabilityBoundingSet= and AmbientCapabilities=CAP_NET_ADMIN."""


FETCH = "import urllib.request as it; print(it.urlopen('http://127.0.0.1:9649/metrics').read().decode())"


def somebody() -> int:
    """A user who is not root; root, as bare of capabilities, where nobody else can read this checkout."""
    program = Path(sys.executable)
    readable = all(path.stat().st_mode & 0o005 == 0o005 for path in program.parents)
    return NOBODY if readable else 0


def run_as(site: Site, user: int) -> None:
    """Both daemons as the units run them: `user`, the rewriter in group root for the queues' statistics."""
    subprocess.run(["chown", "-R", str(user), site.directory], check=True)
    ids = ("--reuid", str(user), "--regid", str(user), "--groups")
    site.wrappers = {
        "tracker": (*UNPRIVILEGED, *ids, str(user)),
        "rewriter": (*PRIVILEGED, *ids, f"{user},0"),
    }


def test_with_one_capability_a_call_works_from_claim_to_hang_up(new_site: SiteMaker) -> None:
    site = new_site()
    run_as(site, somebody())
    site.start()
    status = Path(f"/proc/{site.daemon('rewriter').pid}/status").read_text()
    assert re.search(r"CapPrm:\s*0000000000001000\n", status)
    assert re.search(rf"Uid:\s*{somebody()}\s", status)
    status = Path(f"/proc/{site.daemon('tracker').pid}/status").read_text()
    assert re.search(r"CapPrm:\s*0000000000000000\n", status)
    reflector, ann, zoe = conference(site)
    await_video_both_ways(ann, zoe)
    site.await_holders(ANN)
    with capture(site.lab, "workstation-2") as seen, closing(site.udp_socket("workstation-2")) as bob:
        bob.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
        time.sleep(0.5)
    assert refusals(seen)
    assert_nothing_wrong(reflector, ann, zoe)  # in the hole that follows a packet may pass untranslated
    site.lab.run("gateway", ["nft", "flush", "table", "ip", "porthold"])
    wait_until(lambda: "restored" in site.said("rewriter"), "the table restored", 10)
    wait_until(lambda: site.elements("set", "alive") != [], "OpenContinues to be looked at again", 10)
    ann.command("hangup")
    site.await_holders()
    site.assert_running()
    site.assert_log_clean()


def test_the_rewriter_says_when_it_is_ready_alive_and_ending(new_site: SiteMaker) -> None:
    site = new_site()
    path = site.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        site.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}
        site.start_rewriter(wait=False)  # no tracker yet: calls in progress are served all the same
        assert manager.recv(4096).decode().startswith("READY=1\nSTATUS=gateway gateway-1: waiting")
        assert site.counters() != {}
        site.environment = {}
        site.start_tracker()
        heard: set[str] = set()
        while not any("epoch 1, 0 bindings" in said for said in heard) or "WATCHDOG=1" not in heard:
            heard.add(manager.recv(4096).decode())
        site.signal("rewriter", signal.SIGSTOP)
        time.sleep(0.3)
        manager.setblocking(False)
        drain(manager)
        time.sleep(1.5)
        assert drain(manager) == []
        manager.settimeout(20)
        site.signal("rewriter", signal.SIGCONT)
        wait_until(lambda: manager.recv(4096) == b"WATCHDOG=1", "a sign of life", 20)
        site.signal("rewriter", signal.SIGTERM)
        wait_until(lambda: manager.recv(4096).startswith(b"STOPPING=1"), "the end", 20)
        assert site.daemon("rewriter").wait(10) == 0, site.said("rewriter")


def drain(manager: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(manager.recv(4096))
    except BlockingIOError:
        return found


def test_told_to_end_it_closes_its_session_and_leaves_the_call_to_the_kernel(new_site: SiteMaker) -> None:
    site = new_site()
    site.start()
    _, ann, zoe = conference(site)
    site.await_holders(ANN)
    site.signal("rewriter", signal.SIGTERM)
    assert site.daemon("rewriter").wait(10) == 0, site.said("rewriter")
    # The tracker has heard it, not only the outbox, and all that was to be said before.
    assert [event.reason for event in site.events(SessionEnded)] == [SessionEnding.CLOSED]
    assert len(site.events(BindingInstalled)) == 1
    assert "wait in the outbox" not in site.said("rewriter")
    await_video_both_ways(ann, zoe)
    site.start_rewriter()
    site.await_holders(ANN)


def test_without_a_tracker_it_ends_all_the_same_and_says_what_is_unheard(new_site: SiteMaker) -> None:
    site = new_site()
    site.start()
    site.kill("tracker")
    site.signal("rewriter", signal.SIGTERM)
    assert site.daemon("rewriter").wait(20) == 0, site.said("rewriter")
    assert "they wait in the outbox" in site.said("rewriter")
    site.start()
    assert [event.reason for event in site.events(SessionEnded)] == [SessionEnding.CLOSED]


def test_the_rewriter_s_metrics_say_how_it_stands(new_site: SiteMaker) -> None:
    site = new_site(gateway={"metrics": "127.0.0.1:9649"})
    site.start()
    _, ann, zoe = conference(site)
    await_video_both_ways(ann, zoe)

    def found() -> dict[tuple[str, ...], float]:
        words = [sys.executable, "-c", FETCH]
        families = text_string_to_metric_families(site.lab.run("gateway", words).stdout)
        return {(it.name, *it.labels.values()): it.value for family in families for it in family.samples}

    wait_until(lambda: found().get(("porthold_rewriter_bindings",)) == 1, "the binding in the metrics", 10)
    site.lab.run("gateway", ["nft", "flush", "table", "ip", "porthold"])
    wait_until(lambda: ("porthold_rewriter_restored_total", "table") in found(), "the restored table", 10)
    values = found()
    assert values["porthold_rewriter_epoch",] == 1
    assert values["porthold_rewriter_claims_total",] >= 1
    assert values["porthold_rewriter_upcalls_total", "claims"] >= 1
    assert values["porthold_rewriter_upcalls_total", "talks"] >= 1
    assert values["porthold_rewriter_queue_packets", "claims"] == 0
    assert values["porthold_rewriter_queue_dropped_total", "claims"] == 0
    assert values["porthold_rewriter_unparsed_total", "talks"] == 0
    assert values["porthold_rewriter_outbox_messages",] == 0
    assert 0 <= values["porthold_rewriter_tracker_silence_seconds",] < 30
