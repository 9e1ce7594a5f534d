"""The units of `porthold systemd`, run by systemd as PID 1 on a gateway with real packets."""

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, REFLECTOR, Site
from tests.lab.machine import Machine
from tests.lab.test_gateway_standby import numbers_received, sending
from tests.lab.traffic import SERVICE_PORT, open_continue, video
from tools.lab import wait_until
from tools.systemd import UNITS, unreachable

TRACKER, REWRITER = UNITS
PORTHOLD = Path(__file__).resolve().parents[2] / ".venv/bin/porthold"
TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
WATCHDOG_S = 4
CONFIGURATION = """\
[tracker]
endpoint = "ipc:///run/porthold/tracker.ipc"
log = "/var/lib/porthold/log.sqlite"
listen = ["tcp://127.0.0.1:7650"]
server_key = "/etc/porthold/server.key"
authorised_keys = "/etc/porthold/keys"
[gateway]
name = "gateway-1"
lan = ["lan0"]
wan = "wan0"
[services.cuseeme]
profile = "cuseeme"
"""
INSTALL = f"""
useradd --system --user-group --no-create-home --shell /usr/sbin/nologin porthold
install -d -m 0755 /etc/porthold /etc/porthold/keys
cat >/etc/porthold/porthold.toml <<'END'
{CONFIGURATION}END
{PORTHOLD} keys server
chown porthold /etc/porthold/server.key
{PORTHOLD} systemd
for unit in {TRACKER} {REWRITER}; do
    mkdir /etc/systemd/system/$unit.d
    printf '[Service]\\nWatchdogSec={WATCHDOG_S}\\n' >/etc/systemd/system/$unit.d/soon.conf
done
systemctl daemon-reload
systemctl enable --now {TRACKER} {REWRITER} || {{ journalctl --no-pager; false; }}
"""


def holds(site: Site, machine: Machine) -> bool:
    return site.holders() == [ANN] and ANN in machine.run(f"{PORTHOLD} holds --open")


def began_anew(machine: Machine, unit: str) -> bool:
    return machine.property(unit, "NRestarts") != "0" and machine.property(unit, "ActiveState") == "active"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_units_serve_a_call_are_watched_reread_and_end_in_order(new_site: SiteMaker) -> None:
    assert unreachable(PORTHOLD) is None, "this checkout has to be elsewhere, like /opt/porthold"
    site = new_site()
    with Machine(site.lab, site.directory) as machine:
        machine.run(INSTALL)
        wait_until(lambda: "epoch 1" in machine.property(REWRITER, "StatusText"), "a gateway session", 20)
        assert machine.process(TRACKER)["CapEff"] == "0000000000000000"
        assert machine.process(REWRITER)["CapEff"] == f"{1 << 12:016x}"  # CAP_NET_ADMIN
        assert machine.run("stat -c %U /etc/porthold /var/lib/porthold").split() == ["root", "porthold"]
        assert machine.property(TRACKER, "MemoryMax") == str(1 << 30)

        ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
        ann.sendto(open_continue(ANN), TO_REFLECTOR)
        assert peer.recvfrom(65535)
        wait_until(lambda: holds(site, machine), "that Ann holds the port", 20)

        machine.run("sed -i '$ a idle_s = 200.0' /etc/porthold/porthold.toml")
        machine.run(f"systemctl reload {TRACKER} {REWRITER}")
        assert "configuration read again: services.cuseeme" in machine.said(REWRITER)
        assert "configuration read again" in machine.said(TRACKER)

        def send(number: int) -> None:
            ann.sendto(video(ANN, bytes(96) + number.to_bytes(4, "big")), TO_REFLECTOR)

        with sending(send, 50) as sent:
            for unit in UNITS:
                machine.run(f"systemctl kill --signal={signal.SIGSTOP.name} --kill-whom=main {unit}")
            for unit in UNITS:
                wait_until(partial(began_anew, machine, unit), f"{unit} anew", 40)
                assert "Watchdog timeout" in machine.said(unit)
            wait_until(lambda: "bindings" in machine.property(REWRITER, "StatusText"), "a session anew", 40)
        assert numbers_received(peer) == sent
        assert holds(site, machine)

        machine.run(f"systemctl stop {REWRITER} {TRACKER}")
        for unit in UNITS:
            assert machine.property(unit, "Result") == "success"
        assert site.holders() == [ANN], "the call goes on in the kernel"
        machine.run(f"{PORTHOLD} verify")
