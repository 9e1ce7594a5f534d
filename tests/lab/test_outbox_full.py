"""A worker whose outbox is full goes on with its calls, refuses claims, says why, and drops no report."""

import time

import pytest

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, REFLECTOR
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, refusals, stream
from tools.lab import wait_until
from tracker.audit import outages
from tracker.client import TrackerClient
from tracker.clock import read_clock
from tracker.events import KernelStateRestored, OutboxFilled


@pytest.mark.parametrize("left", [0, 5])
def test_a_full_outbox_says_so_refuses_claims_and_loses_nothing(new_site: SiteMaker, left: int) -> None:
    site = new_site(gateway={"outbox_messages": 100})
    holes = [KernelStateRestored("gateway-1", 1, "test", number, number) for number in range(100 - left)]
    box = site.directory / "gateway-1.outbox"
    client = TrackerClient.open(
        "ipc:///nonexistent/t", worker="gateway-1", outbox=box, now=read_clock(), limit=100
    )
    for message in holes:  # as a worker leaves them behind whose tracker was away for long
        client.submit(message, read_clock())
    client.close()
    site.start_tracker()
    with site.stopped("tracker"):
        site.start_rewriter(wait=False)
        wait_until(lambda: "the outbox is full: claims are refused" in site.said("rewriter"), "a warning", 20)
        ann = site.udp_socket("workstation-1")
        with capture(site.lab, "workstation-1") as seen:
            wait_until(lambda: bool(site.queues()), "queues")
            ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
            time.sleep(1)
        assert refusals(seen)
        assert site.daemon("rewriter").poll() is None
    wait_until(lambda: "the outbox has room again" in site.said("rewriter"), "room", 20)
    with stream(ann, open_continue(ANN), (REFLECTOR, SERVICE_PORT), per_s=2):
        site.await_holders(ANN)
    logged = [it.lost_since_ns for it in site.events(KernelStateRestored) if it.what == "test"]
    assert logged == list(range(100 - left))
    (filled,) = site.events(OutboxFilled)
    assert filled.refused >= 1
    assert filled.since_ns < filled.until_ns
    with site.reader() as reader:
        assert "outbox-full" in [outage.kind for outage in outages(reader)]
    site.assert_log_clean()
