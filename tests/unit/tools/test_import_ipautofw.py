"""`porthold import-ipautofw`: every command line of the 1999 how-to, and what its flags meant."""

import json
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rewriter.configuration import GatewayFile
from tools.autofw import Entry, NotUnderstood, read_line, table_after
from tools.cli import main
from tracker.configuration import load
from tracker.events import Policy

HOST = "192.168.1.10"
WORDS = [
    *(f"-{letter}" for letter in "ADFrdhcuivp"),
    "udp",
    "tcp",
    "t",
    "0",
    "7648",
    "7649",
    HOST,
    "-",
    "é",
    "",
]
CONTROL = "ipautofw -A -r udp 7648 7649 -c udp 7648 -u"
FIXED = f"ipautofw -A -r udp 7648 7649 -h {HOST}"
WHITE_PINE = f"ipautofw -A -r udp 24032 24032 -h {HOST}"
LINUX_22 = [
    f"ipmasqadm autofw -A -r udp 7648 7648 -h {HOST}",
    f"ipmasqadm autofw -A -r udp 7649 7649 -h {HOST}",
    f"ipmasqadm autofw -A -r tcp 7648 7648 -h {HOST}",
    f"ipmasqadm autofw -A -r tcp 7649 7649 -h {HOST}",
    f"ipmasqadm autofw -A -r udp 23042 23042 -h {HOST}",
]
LOCKED_IN = [
    f"ipmasqadm autofw -A -d {protocol} {port} {port}" for protocol in ("udp", "tcp") for port in (7648, 7649)
]
FIRST = {
    "profile": "cuseeme",
    "control": ["udp/7648"],
    "forward": ["udp/7648-7649"],
    "policy": "first",
    "idle_s": 300.0,
}
HELD = {**FIRST, "policy": "fixed", "holder": HOST}
del HELD["idle_s"]


def run(*words: str, script: str | None = None) -> Result:
    return CliRunner().invoke(main, ["import-ipautofw", *words], input=script)


def imported(*words: str, script: str | None = None) -> dict[str, Any]:
    """What the printed TOML says; the JSON says the same."""
    result = run(*words, script=script)
    assert result.exit_code == 0, result.output
    as_json = json.loads(run("--json", *words, script=script).output)
    found = tomllib.loads(result.output)
    assert found == {key: value for key, value in as_json.items() if key != "commands" and value}
    return found


# --- the how-to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([CONTROL], {"services": {"cuseeme": FIRST}}),
        ([FIXED], {"services": {"cuseeme": HELD}}),
        (
            [WHITE_PINE],
            {
                "services": {
                    "udp-24032": {
                        **HELD,
                        "profile": "plain",
                        "control": ["udp/24032"],
                        "forward": ["udp/24032"],
                    }
                }
            },
        ),
        ([FIXED, WHITE_PINE], {"services": {"cuseeme": {**HELD, "forward": ["udp/7648-7649", "udp/24032"]}}}),
        (["modprobe ip_masq_cuseeme"], {}),
        (
            LINUX_22,
            {"services": {"cuseeme": {**HELD, "forward": ["udp/7648-7649", "udp/23042", "tcp/7648-7649"]}}},
        ),
        (
            LOCKED_IN,
            {"gateway": {"keep_source_ports": ["udp/7648", "udp/7649", "tcp/7648", "tcp/7649"]}},
        ),
    ],
)
def test_every_command_line_of_the_howto(lines: list[str], expected: dict[str, Any]) -> None:
    assert imported(*lines) == expected


@pytest.mark.parametrize("host", ["www.xxx.yyy.zzz", "192.168.x.x"])
def test_the_howtos_placeholder_is_no_address(host: str) -> None:
    result = run(f"ipautofw -A -r udp 7648 7649 -h {host}")
    assert result.exit_code == 2
    assert f"-h {host}:" in result.output
    assert "write the workstation's address" in result.output


def test_the_whole_script_of_the_howto_at_once() -> None:
    script = "#!/bin/sh\n# CU-SeeMe\n/sbin/insmod ne2k\n" + "\n".join(
        ["ipmasqadm autofw -F", *LINUX_22, *LOCKED_IN]
    )
    found = imported("-", script=script + "\necho done # ipautofw\n")
    assert sorted(found) == ["gateway", "services"]
    assert list(found["services"]) == ["cuseeme"]


def test_each_flag_is_explained_as_the_kernel_took_it() -> None:
    output = " ".join(run(CONTROL).output.replace("#", "").split())
    for said in (
        "-c udp 7648 each masqueraded packet to this port made its sender that workstation at once: the last",
        "-u no forgetting after 15 s",
        '"last": what the kernel in fact did',
    ):
        assert said in output


def test_a_configuration_takes_what_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "porthold.toml"
    gateway = '[gateway]\nname = "gateway-1"\nlan = ["eth1"]\nwan = "eth0"\n'
    file.write_text(gateway + run(CONTROL).output)
    loaded = load(file, GatewayFile)
    assert loaded.services["cuseeme"].idle_s == 300.0
    file.write_text(gateway + run("ipautofw -A -r tcp 6112 6119 -c tcp 6112 -u").output)
    assert [definition.name for definition in load(file, GatewayFile).service_definitions()] == [
        "tcp-6112-6119"
    ]


# --- flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "idle_s"), [("", 15.0), ("-u", 300.0), ("-i", 300.0), ("-v", 15.0), (f"-h {HOST}", 300.0)]
)
def test_without_u_the_workstation_was_forgotten_after_15_s(flags: str, idle_s: float) -> None:
    found = imported(f"ipautofw -A -r udp 7648 7649 -c udp 7648 {flags}")
    assert found["services"]["cuseeme"] == {**FIRST, "idle_s": idle_s}


def test_a_host_beside_a_control_port_held_only_until_somebody_sent() -> None:
    command = f"{FIXED} -c udp 7648"
    assert "policy" in imported(command)["services"]["cuseeme"]
    assert imported(command)["services"]["cuseeme"]["policy"] == "first"
    assert "held only until the first packet" in run(command).output


def test_words_without_quotes_and_with_a_path_are_one_command() -> None:
    assert imported("/usr/sbin/ipautofw", "-A", "-h", HOST, "-r", "u", "7648", "7649") == imported(FIXED)


def test_delete_and_flush_leave_what_the_kernels_table_held_then() -> None:
    assert imported(FIXED, FIXED.replace("-A", "-D")) == {}
    assert imported(FIXED, "ipautofw -F", CONTROL) == imported(CONTROL)
    assert imported(CONTROL, CONTROL.replace("-A", "-D").replace(" -u", "")) == {}  # it compared no flags
    assert "Nothing is left to configure." in run(FIXED, "ipautofw -F").output
    assert run(FIXED.replace("-A", "-D")).exit_code == 2


def test_two_workstations_are_two_services() -> None:
    found = imported(FIXED, "ipautofw -A -r udp 24032 24032 -h 192.168.1.11")
    assert [service["holder"] for service in found["services"].values()] == [HOST, "192.168.1.11"]
    result = run(FIXED, "ipautofw -A -r udp 7649 7650 -h 192.168.1.11")
    assert result.exit_code == 2
    assert "udp/7649-7650 is also in an entry for another workstation (udp/7648-7649)" in result.output


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("ipautofw", "it ends before a command: -A, -D or -F"),
        ("ipautofw -r udp 1 2 -h 10.0.0.1", "'-r' is no command"),
        ("ipautofw -A -r udp 7648 7649 -h 10.0.0.1 -x", "'-x' is no option of ipautofw"),
        ("ipautofw -A -r udp 7648 7649 -h 10.0.0.1 extra", "'extra' is no option of ipautofw"),
        ("ipautofw -A -r udp 7648", "it ends before -r's port"),
        ("ipautofw -A -r icmp 1 2 -u", "-r: the protocol is tcp or udp, not 'icmp'"),
        ("ipautofw -A -r udp 7649 7648 -u", "-r: 7649 is above 7648"),
        ("ipautofw -A -r udp 0 7648 -u", "-r: '0' is no port"),
        ("ipautofw -A -r udp 1 65536 -u", "-r: '65536' is no port"),
        ("ipautofw -A -r udp 1 2 -d udp 3 4", "-r and -d exclude each other"),
        ("ipautofw -A -r udp 1 2 -r udp 3 4 -u", "-r stands there twice"),
        ("ipautofw -A -r udp 1 2", "-r without -c or -h sent callers to 0.0.0.0"),
        ("ipautofw -A -d udp 1 2 -h 10.0.0.1", "-d has no workstation"),
        ("ipautofw -A -h 10.0.0.1", "there are no ports"),
        ("ipautofw -F -v", "-F takes no options"),
        ("ipautofw -A -p tcp 80 10.0.0.1:8080", "-p sends a port to another port of one host"),
        ("ipmasqadm portfw -a", "of ipmasqadm's modules only autofw is known"),
        ("iptables -L", "begins with neither ipautofw nor ipmasqadm"),
        ("modprobe ip_masq_ftp", "of kernel modules only ip_masq_cuseeme"),
        ("ipautofw -A 'r", "No closing quotation"),
    ],
)
def test_what_is_not_understood_is_named_and_nothing_is_printed(command: str, complaint: str) -> None:
    result = CliRunner().invoke(main, ["import-ipautofw", command])
    assert result.exit_code == 2
    assert complaint in result.output
    assert result.stdout == ""


def test_a_script_without_such_a_line_is_wrong_use() -> None:
    assert run("-", script="echo\n\n").exit_code == 2


@given(st.lists(st.sampled_from(WORDS)))
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    try:
        line = read_line(" ".join(["ipautofw", *words]))
        table_after([line])
    except NotUnderstood:
        return
    assert line.action == "F" or isinstance(line.entry, Entry)


@pytest.mark.parametrize("command", [FIXED, WHITE_PINE])
def test_a_configuration_takes_a_fixed_holder_too(tmp_path: Path, command: str) -> None:
    file = tmp_path / "porthold.toml"
    file.write_text(run(command).output)
    (service,) = load(file, GatewayFile).service_definitions()
    assert (service.policy, service.holder) == (Policy.FIXED, IPv4Address(HOST).packed)
