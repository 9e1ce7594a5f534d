"""A gateway whose tracker is on another host: TCP and CURVE between them, real packets through the one.

The tracker runs outside, where a caller would be. Numbered packets of the call go on all the time; whatever
happens to tracker and keys, each of them has to arrive.
"""

import json
from pathlib import Path

import pytest

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, CALLER, REFLECTOR, Site
from tests.lab.test_gateway_standby import begin_call, numbers_received, sending
from tests.lab.traffic import SERVICE_PORT, open_continue, video
from tools.lab import wait_until
from tracker.events import PortBound, SessionOpened, WorkerLost, WorkerReturned, from_record
from tracker.keyring import (
    TRACKER_ROLE,
    SecretKey,
    authorise,
    authorised_key,
    generate,
    revoke,
    write_secret_key,
)
from tracker.roles import Role

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
LEASE_S = 3.0
WORKER = "ada"


class Remote:
    """A site with its tracker elsewhere, and the keys of both."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.authority = site.directory / "keys"
        self.authority.mkdir(mode=0o755)
        self.worker = generate(Role.WORKER.value, WORKER)
        server = self.new_server_key()
        write_secret_key(site.directory / "ada.key", self.worker)
        self.authorise()
        endpoint = f"tcp://{CALLER}:7650"
        tracker = {
            "listen": [endpoint],
            "server_key": str(site.directory / "server.key"),
            "authorised_keys": str(self.authority),
        }
        gateway = {
            "worker": WORKER,
            "tracker": endpoint,
            "tracker_key": server.public,
            "key": str(site.directory / "ada.key"),
        }
        text = site.configuration.read_text()
        for section, settings in (("tracker", tracker), ("gateway", gateway)):
            lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
            text = text.replace(f"[{section}]\n", f"[{section}]\n{lines}")
        site.configuration.write_text(text)
        site.wrappers["tracker"] = ("ip", "netns", "exec", site.lab.namespace("caller"))

    def new_server_key(self) -> SecretKey:
        """In the place of the one before, which goes to `server.key.old`."""
        path = self.site.directory / "server.key"
        if path.exists():
            path.rename(path.with_suffix(".key.old"))
        made = generate(TRACKER_ROLE, "tracker")
        write_secret_key(path, made)
        return made

    def old_server_key(self) -> None:
        path = self.site.directory / "server.key"
        path.with_suffix(".key.old").rename(path)

    def authorise(self) -> Path:
        key = authorised_key(WORKER, Role.WORKER, ("gateway-1",), self.worker.public)
        return authorise(self.authority, key)


@pytest.fixture
def remote(new_site: SiteMaker) -> Remote:
    made = Remote(new_site(tracker={"lease_s": LEASE_S}))
    made.site.start()
    return made


def named(site: Site) -> set[str]:
    """Who is behind the records that only a worker causes."""
    with site.reader() as reader:
        records = [entry.record for entry in reader.read(0) if entry.record is not None]
    return {it.source.name for it in records if isinstance(from_record(it), PortBound | SessionOpened)}


def is_lost(site: Site) -> bool:
    """As the log has it; on a busy machine a worker may be silent for a lease once more than we see to."""
    return len(site.events(WorkerLost)) > len(site.events(WorkerReturned))


def test_a_call_through_a_gateway_whose_tracker_is_elsewhere_outlives_tracker_and_keys(
    remote: Remote,
) -> None:
    site = remote.site
    ann, peer = begin_call(site)
    bob = site.udp_socket("workstation-2")
    assert named(site) == {WORKER}

    def send(number: int) -> None:
        ann.sendto(video(ANN, bytes(96) + number.to_bytes(4, "big")), TO_REFLECTOR)

    with sending(send, 100) as sent:
        site.kill("tracker")
        site.start_tracker()
        revoke(remote.authority, WORKER)
        wait_until(lambda: is_lost(site), "that nothing is heard of a revoked key", 20)
        site.await_said("rewriter", "does not answer: claims are refused")
        assert "is our key authorised there" in site.said("rewriter")
        bob.sendto(open_continue(BOB), TO_REFLECTOR)  # and nothing he claims by it is granted
        remote.authorise()
        wait_until(lambda: not is_lost(site), "the return of who is authorised again", 20)
        site.await_said("rewriter", "answers again")
        site.kill("tracker")
        remote.new_server_key()
        site.start_tracker()
        wait_until(lambda: is_lost(site), "a worker that meets another tracker's key", 20)
        site.kill("tracker")
        remote.old_server_key()
        site.start_tracker()
        wait_until(lambda: not is_lost(site), "the return to the tracker it knows", 20)
    assert numbers_received(peer) == sent
    assert [bound.holder for bound in site.events(PortBound)] == [bytes(map(int, ANN.split(".")))]
    site.assert_running()
    [holding] = site.holdings()
    assert holding.until_ns is None
    site.assert_log_clean()
    assert "the key of ada is not authorised any more" in site.said("tracker")
