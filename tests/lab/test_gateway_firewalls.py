"""Beside ufw, firewalld and Docker: their rules drop calls, doctor says what to add, and then calls pass.

tests/data/firewalls holds what they wrote themselves, in a network namespace with lan0 and wan0: Debian 12's
ufw 0.36.2 (`ufw enable`; -routed: with the commands that doctor names), firewalld 1.3.3 (lan0 in its zone
internal, wan0 in external; -policy: with the policy that doctor names), and the Docker daemon 20.10.24.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, open_continue, received, video

WRITTEN = Path(__file__).parents[1] / "data" / "firewalls"
TO_PUBLIC = (PUBLIC, SERVICE_PORT)


def load(site: Site, name: str) -> None:
    text = (WRITTEN / name).read_text()
    reader = ["iptables-nft-restore"] if name.endswith(".rules") else ["nft", "-f", "-"]
    site.lab.run("gateway", reader, stdin_text=text)


def doctors_advice(site: Site) -> list[str]:
    """The commands that doctor names, for each chain that it warns of."""
    words = [str(site.program), "doctor", "--json", "--config", str(site.configuration)]
    checks = json.loads(site.lab.run("gateway", words).stdout)["checks"]
    return [check["mend"] for check in checks if check["what"] == "firewall"]


def add_dockers(site: Site) -> None:
    [advice] = doctors_advice(site)
    for command in advice.split("; "):
        site.lab.run("gateway", command.split())


def foreign_tables(site: Site) -> str:
    """Everything but our own, without what only counts."""
    listed = site.lab.run("gateway", ["nft", "list", "ruleset"]).stdout
    theirs = re.sub(r"table ip porthold \{.*?\n\}\n", "", listed, flags=re.DOTALL)
    theirs = re.sub(
        r"table ip mangle \{.*?\n\}\n", "", theirs, flags=re.DOTALL
    )  # where the queue rules stand
    return re.sub(r"packets \d+ bytes \d+", "", theirs)


def call_both_ways(site: Site) -> bool:
    """Whether Ann reaches a peer, and a stranger her, translated."""
    ann, peer, caller = (site.udp_socket(place) for place in ("workstation-1", "reflector", "caller"))
    with ann, peer, caller:
        ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
        out = [source for _, source in received(peer, 1.0)]
        caller.sendto(video(CALLER, to=PUBLIC), TO_PUBLIC)
        return out == [TO_PUBLIC] and [data for data, _ in received(ann, 1.0)] == [video(CALLER, to=ANN)]


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ("ufw-default.rules", lambda site: load(site, "ufw-routed.rules")),
        ("docker-default.rules", add_dockers),
        ("firewalld-default.nft", lambda site: load(site, "firewalld-policy.nft")),
    ],
)
def test_a_firewall_that_drops_is_named_with_what_to_add_and_then_calls_pass(
    new_site: SiteMaker, written: str, mended: Callable[[Site], None]
) -> None:
    site = new_site()
    load(site, written)
    site.start()
    assert not call_both_ways(site)
    [advice] = doctors_advice(site)
    assert {"ufw": "ufw route allow", "docker": "DOCKER-USER", "firewalld": "firewall-cmd"}[
        written.partition("-")[0]
    ] in advice
    if written.startswith("firewalld"):
        site.lab.run("gateway", ["nft", "delete", "table", "inet", "firewalld"])
    mended(site)
    before = foreign_tables(site)
    assert call_both_ways(site)
    assert site.holders() == [ANN]
    rewriter = site.daemon("rewriter")
    rewriter.terminate()
    rewriter.wait(10)
    site.start_rewriter()
    assert foreign_tables(site) == before
    site.assert_log_clean()
