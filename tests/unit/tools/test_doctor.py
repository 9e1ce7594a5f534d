"""`doctor` finds what keeps a rewriter from running, in gateways made for it in network namespaces."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tools.doctor import (
    check_connection_table,
    check_datapath,
    check_forwarding,
    check_interface,
    check_kernel_version,
    check_libraries,
    check_log_directory,
    check_reverse_path,
    check_rights,
    check_tool,
    version_in,
)

GATEWAY = """
ip link set lo up
ip link add lan0 type bridge && ip address add 192.168.1.1/24 dev lan0 && ip link set lan0 up
ip link add wan0 type bridge && ip address add 192.0.2.2/24 dev wan0 && ip link set wan0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
for where in all default lan0 wan0; do echo 0 > /proc/sys/net/ipv4/conf/$where/rp_filter; done
"""
CONFIGURATION = """
[tracker]
log = "{directory}/log.sqlite"
[services.cuseeme]
profile = "cuseeme"
[gateway]
name = "gw1"
lan = ["lan0"]
wan = "wan0"
state_directory = "{directory}"
"""


def doctor(directory: Path, *, more: str = "", setting: str = "") -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the checks of `porthold doctor` on a gateway in a network namespace of its own."""
    config = directory / "porthold.toml"
    config.write_text(CONFIGURATION.format(directory=directory) + setting)
    program = "from tools.cli import main; main()"
    words = [sys.executable, "-c", program, "doctor", "--json", "--config", str(config)]
    script = f'set -e\n{GATEWAY}\n{more}\nexec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert found["would_run"] == (done.returncode == 0)
    return done.returncode, found["checks"]


def troubles(checks: list[dict[str, Any]], but: str = "speakers") -> list[tuple[str, str]]:
    """State and name of what is not ok; how far this kernel reaches into a packet is nobody's fault."""
    return [(it["state"], it["what"]) for it in checks if it["state"] != "ok" and it["what"] != but]


def test_a_gateway_that_is_ready_passes(tmp_path: Path) -> None:
    code, checks = doctor(tmp_path)
    assert code == 0
    assert troubles(checks) == []
    names = {check["what"] for check in checks}
    assert {"rights", "nft", "libraries", "datapath", "queue", "connections", "ruleset"} < names
    assert {"configuration", "forwarding", "interface", "log"} < names
    assert any("wan0 has 192.0.2.2" in check["found"] for check in checks)


def test_a_machine_that_forwards_nothing_fails(tmp_path: Path) -> None:
    code, checks = doctor(tmp_path, more="echo 0 > /proc/sys/net/ipv4/ip_forward")
    assert code == 1
    assert troubles(checks) == [("fail", "forwarding")]


def test_a_missing_interface_fails_with_its_key(tmp_path: Path) -> None:
    code, checks = doctor(tmp_path, more="ip link delete lan0")
    assert code == 1
    assert troubles(checks) == [("fail", "interface")]
    assert any("gateway.lan[0]: there is no 'lan0'" in check["found"] for check in checks)


def test_what_may_surprise_later_is_a_warning(tmp_path: Path) -> None:
    more = """
ip address flush dev wan0
echo 1 > /proc/sys/net/ipv4/conf/lan0/rp_filter
nft 'table inet firewall { chain guard { type filter hook forward priority 0; policy drop; }; }'
nft 'table inet other { chain open { type filter hook forward priority 0; policy accept; }; }'
nft 'table ip porthold { chain own { type filter hook forward priority 0; policy drop; }; }'
"""
    code, checks = doctor(tmp_path, more=more, setting='public_address = "192.0.2.2"\n')
    assert code == 0
    names = ["reverse path", "interface", "public address", "firewall"]
    assert troubles(checks) == [("warn", name) for name in names]
    assert any("inet firewall guard" in check["found"] for check in checks)


def test_a_state_directory_that_is_not_there_fails(tmp_path: Path) -> None:
    config = CONFIGURATION.replace('state_directory = "{directory}"', 'state_directory = "{directory}/none"')
    code, checks = doctor_with(tmp_path, config)
    assert code == 1
    assert troubles(checks) == [("fail", "configuration")]
    assert any("gateway.state_directory" in check["found"] for check in checks)


def doctor_with(directory: Path, configuration: str) -> tuple[int, list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.CONFIGURATION", configuration)
        return doctor(directory)


def test_nothing_of_the_machine_is_changed(tmp_path: Path) -> None:
    more = f"nft list ruleset > {tmp_path}/before; trap 'nft list ruleset > {tmp_path}/after' EXIT"
    script = f'set -e\n{GATEWAY}\n{more}\n"$@" || true'
    config = tmp_path / "porthold.toml"
    config.write_text(CONFIGURATION.format(directory=tmp_path))
    program = "from tools.cli import main; main()"
    words = [sys.executable, "-c", program, "doctor", "--config", str(config)]
    before = set(tmp_path.iterdir())
    subprocess.run(["unshare", "--net", "sh", "-c", script, "sh", *words], check=True, capture_output=True)
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text() == ""
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"before", "after"}


def test_a_bad_configuration_fails_for_people_with_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "porthold.toml"
    config.write_text("[gateway]\nname = 'gw1'\nlan = ['lan0']\n")
    program = "from tools.cli import main; main()"
    words = [sys.executable, "-c", program, "doctor", "--config", str(config)]
    done = subprocess.run(["unshare", "--net", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"fail configuration: {config}: gateway.wan: is missing" in done.stdout
    assert done.stdout.endswith("A rewriter would not run here.\n")


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_user_who_is_not_root_fails_on_rights_and_nothing_crashes(mode: int) -> None:
    program = (
        "import os, rewriter.kernel, tools.doctor; from tools.cli import main; os.setgroups([]);"
        " os.setgid(65534); os.setuid(65534); main()"
    )
    with tempfile.TemporaryDirectory(prefix="ph-doctor-") as name:
        directory = Path(name)
        private = directory / "private"
        private.mkdir(mode=0o700)
        config = directory / "porthold.toml"
        config.write_text(CONFIGURATION.format(directory=private / "within"))
        directory.chmod(mode)
        words = [sys.executable, "-c", program, "doctor", "--json", "--config", str(config)]
        done = subprocess.run(["unshare", "--net", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {("fail", "rights"), ("warn", "kernel"), ("fail", "configuration")} <= set(troubles(checks))
    assert any("Permission denied" in check["found"] for check in checks)


# --- single checks ------------------------------------------------------------------------------------------


def test_root_without_capabilities_is_told_which_are_missing() -> None:
    (check,) = check_rights(0, "Name:\tx\nCapEff:\t0000000000001000\n")
    assert (check.state, check.found) == ("fail", "root, but without CAP_SYS_ADMIN")
    (check,) = check_rights(0, "CapEff:\t0000000000000000\n")
    assert check.found == "root, but without CAP_NET_ADMIN and CAP_SYS_ADMIN"
    (check,) = check_rights(0, "CapEff:\t0000000000201000\n")
    assert check.state == "ok"
    (check,) = check_rights(1000, "CapEff:\t0000000000201000\n")
    assert (check.state, check.found) == ("fail", "user 1000 is not root")


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("5.15.0-91-generic", "warn"),
        ("5.6", "warn"),
        ("5.4.0-150-generic", "fail"),
        ("5.16", "ok"),
        ("6.1.0-13-amd64", "ok"),
        ("4.19.0", "fail"),
        ("", "fail"),
    ],
)
def test_kernels_from_5_16_on_can_rewrite(release: str, state: str) -> None:
    assert check_kernel_version(release).state == state


@pytest.mark.parametrize(
    ("wanted", "refused", "in_kernel", "state", "said"),
    [
        ("auto", None, True, "ok", "kernel"),
        ("kernel", None, True, "ok", "kernel"),
        ("queue", None, False, "ok", "queue, as configured"),
        ("queue", "syntax error", False, "ok", "queue, as configured"),
        ("auto", "syntax error", False, "warn", "queue: the kernel refuses @ih … set …: syntax error"),
        ("kernel", "syntax error", True, "fail", "the kernel refuses @ih … set …: syntax error"),
    ],
)
def test_the_datapath_is_named_with_its_reason(
    wanted: str, refused: str | None, in_kernel: bool, state: str, said: str
) -> None:
    chosen, check = check_datapath(wanted, refused)
    assert (chosen, check.state) == (in_kernel, state)
    assert check.found.startswith(said)


def test_a_gateway_may_be_told_to_rewrite_in_the_queue(tmp_path: Path) -> None:
    code, checks = doctor(tmp_path, setting='datapath = "queue"\n')
    assert (code, troubles(checks)) == (0, [])
    (datapath,) = (check for check in checks if check["what"] == "datapath")
    assert "as configured" in datapath["found"]


def test_versions_are_found_in_what_tools_say() -> None:
    assert version_in("nftables v1.0.6 (Lester Gooch #5)") == (1, 0, 6)
    assert version_in("no version") == ()


def test_a_tool_that_is_missing_or_too_old_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert check_tool("porthold-no-such-tool", "package").found == "is not installed"
    tool = tmp_path / "old-tool"
    tool.write_text("#!/bin/sh\necho old-tool v1.0.0\n")
    tool.chmod(0o755)
    assert check_tool("old-tool", "package", (1, 0, 1)).state == "fail"
    assert check_tool("old-tool", "package", (1, 0, 0)).state == "ok"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert check_tool("old-tool", "package").found == "does not run"


def test_libraries_that_cannot_be_loaded_fail_and_do_not_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rewriter.queues", raising=False)
    monkeypatch.setitem(sys.modules, "netfilterqueue", None)
    check = check_libraries()
    assert check.state == "fail"
    assert "netfilterqueue" in check.found


def test_the_stricter_of_two_reverse_path_settings_counts(tmp_path: Path) -> None:
    for name, value in (("all", 0), ("lan0", 1), ("wan0", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rp_filter").write_text(f"{value}\n")
    assert [check.state for check in check_reverse_path("lan0", tmp_path)] == ["warn"]
    assert list(check_reverse_path("wan0", tmp_path)) == []
    assert [check.state for check in check_reverse_path("lan0", tmp_path, passing=True)] == ["fail"]
    (tmp_path / "all" / "rp_filter").write_text("2\n")
    assert list(check_reverse_path("lan0", tmp_path)) == []


def test_forwarding_and_directories_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "ip_forward").write_text("1\n")
    assert [check.state for check in check_forwarding(tmp_path)] == ["ok"]
    assert check_log_directory(tmp_path).state == "ok"
    assert check_log_directory(tmp_path / "none").state == "warn"
    assert check_interface("gateway.wan", "no-such", there=False).state == "fail"


@pytest.mark.parametrize(("count", "states"), [(10, ["ok"]), (900, ["ok"]), (901, ["warn"])])
def test_a_connection_table_that_is_nearly_full_is_a_warning(
    tmp_path: Path, count: int, states: list[str]
) -> None:
    assert list(check_connection_table(tmp_path)) == []
    (tmp_path / "nf_conntrack_max").write_text("1000\n")
    (tmp_path / "nf_conntrack_count").write_text(f"{count}\n")
    checks = list(check_connection_table(tmp_path))
    assert [check.state for check in checks] == states
    assert all("nf_conntrack_max=2000" in check.mend for check in checks if check.state == "warn")
