"""The rewriter goes and comes while a counted stream crosses: the kernel path loses none of it."""

import json
import signal
from collections.abc import Callable

import pytest

from tests.lab.conftest import SiteMaker
from tests.lab.flood import flooding
from tests.lab.gateway_site import ANN, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, open_continue, received

PER_S = 200
LASTING_S = 6


def stop(site: Site) -> None:
    site.signal("rewriter", signal.SIGTERM)
    assert site.daemon("rewriter").wait(20) == 0, site.said("rewriter")


def upgrade(site: Site) -> None:
    """The next one renders another table: a second service, other times, another answer to claims."""
    stop(site)
    text = site.configuration.read_text()
    text = text.replace("[gateway]\n", '[gateway]\nrefusal = "drop"\nrefused_s = 7.0\n')
    more = '[services.chat]\ncontrol = ["udp/9000"]\nforward = ["udp/9000-9001"]\n'
    site.configuration.write_text(text + more)


def kill(site: Site) -> None:
    site.kill("rewriter")


@pytest.mark.parametrize("leave", [kill, upgrade])
def test_a_counted_stream_loses_nothing_while_the_rewriter_is_exchanged(
    new_site: SiteMaker, leave: Callable[[Site], None]
) -> None:
    site = new_site()
    site.start()
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    received(peer, 0.05)
    before = json.dumps(site.nft("list", "table", "ip", "porthold"))
    words = ("--kind", "video", "--per-s", str(PER_S), "--seconds", str(LASTING_S))
    out = ("--from", f"{ANN}:{SERVICE_PORT}", "--to", f"{REFLECTOR}:{SERVICE_PORT}", *words)
    back = ("--from", f"{REFLECTOR}:{SERVICE_PORT}", "--to", f"{PUBLIC}:{SERVICE_PORT}", *words)
    with (
        flooding(site.lab, "workstation-1", *out) as sent,
        flooding(site.lab, "reflector", *back) as sent_back,
    ):
        assert peer.recvfrom(2048)[1] == (PUBLIC, SERVICE_PORT)  # it has begun
        ann.recvfrom(2048)
        leave(site)
        site.start_rewriter()
        site.await_holders(ANN)
    assert sent.sent >= PER_S * LASTING_S - 1
    assert (len(received(peer, 0.3)), len(received(ann, 0.3))) == (sent.sent - 1, sent_back.sent - 1)
    assert len(site.holdings()) == 1
    assert ("chat_holders" in json.dumps(site.nft("list", "table", "ip", "porthold"))) == (leave is upgrade)
    assert "chat_holders" not in before
    site.assert_log_clean()
