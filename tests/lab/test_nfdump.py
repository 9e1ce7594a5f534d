"""Debian's nfdump collects and decodes what `porthold export --format ipfix` sends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.sample_log import write_sample_log
from tools.lab import wait_until
from tools.namespaces import carry_out, new_prefix, remove, remove_stale, set_namespace_up, within

PORT = 2055


@pytest.fixture
def namespace() -> Iterator[str]:
    remove_stale()
    name = f"{new_prefix()}nf"
    carry_out(None, [f"netns add {name}"])
    try:
        within(name, set_namespace_up)
        yield name
    finally:
        remove([name])


def waiting_octets(namespace: str) -> int | None:
    """What the collector's socket has yet to hand out; None: there is no such socket (proc(5), net/udp)."""
    listed = subprocess.run(
        ["ip", "netns", "exec", namespace, "cat", "/proc/net/udp"], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{PORT:04X}"):
            return int(words[4].partition(":")[2], 16)
    return None


def decoded(directory: Path) -> list[dict[str, Any]]:
    (captured,) = directory.glob("nfcapd.2*")
    shown = subprocess.run(
        ["nfdump", "-r", str(captured), "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    )
    found = json.loads(shown.stdout)
    assert isinstance(found, list)
    return found


def test_nfdump_decodes_every_event_of_the_export(namespace: str, tmp_path: Path) -> None:
    log, flows = write_sample_log(tmp_path / "log.sqlite"), tmp_path / "flows"
    flows.mkdir()
    inside = ["ip", "netns", "exec", namespace]
    with (tmp_path / "nfcapd.out").open("wb") as out:
        collector = subprocess.Popen(
            [*inside, "nfcapd", "-b", "127.0.0.1", "-p", str(PORT), "-w", str(flows)], stdout=out, stderr=out
        )
    try:
        wait_until(lambda: waiting_octets(namespace) is not None, "nfcapd")
        porthold = [sys.executable, "-c", "from tools.cli import main; main()"]
        export = [*porthold, "export", "--log", str(log), "--format", "ipfix"]
        subprocess.run([*inside, *export, "--collector", f"127.0.0.1:{PORT}"], check=True)
        wait_until(lambda: waiting_octets(namespace) == 0, "all datagrams taken")
    finally:
        collector.send_signal(signal.SIGTERM)
        collector.wait(10)
    report = (tmp_path / "nfcapd.out").read_text()
    assert "Sequence Errors: 0, Bad Packets: 0" in report, report
    found = [
        (
            flow["t_event"],
            flow["nat_event"],
            flow["proto"],
            flow["src4_addr"],
            flow["src_port"],
            flow["src4_xlt_ip"],
            int(flow["src_xlt_port"]),
            flow["in_src_mac"],
        )
        for flow in decoded(flows)
    ]
    ports = [(17, 7648), (17, 7649), (6, 7648), (6, 7649), (17, 24032)]
    public = "192.0.2.2"
    expected = [
        (f"2026-05-04T{time}", f"NAT44 BIB {what}", protocol, f"192.168.1.{host}", port, public, port, mac)
        for time, what, host, mac in (
            ("16:01:00.123", "create", 10, "02:00:00:00:00:0a"),
            ("16:05:00.0", "delete", 10, "02:00:00:00:00:0a"),
            ("16:06:00.0", "create", 11, "02:00:00:00:00:0b"),
        )
        for protocol, port in ports
    ]
    assert found == expected
