"""The units that `porthold systemd` writes: whole, believed by systemd, and as narrow as they say."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools import systemd
from tools.cli import main
from tools.systemd import NOTIFY_RELOAD_SINCE, UNITS, unit

CONFIG = Path("/etc/porthold/porthold.toml")


def values(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever this checkout is."""
    monkeypatch.setattr(systemd, "unreachable", lambda _: None)


@pytest.mark.usefixtures("reachable")
def test_the_units_are_written_with_this_installation_s_program(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["systemd", "--directory", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(UNITS)
    for name, command in zip(UNITS, ("tracker", "rewriter"), strict=True):
        text = (tmp_path / name).read_text()
        assert values(text, "ExecStart") == [f"{systemd.program()} {command} --config {CONFIG}"]
        assert "{" not in text
    assert "useradd --system" in done.output


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("/root/porthold/.venv/bin/porthold", "ProtectHome"),
        ("/home/ann/porthold.toml", "ProtectHome"),
        ("/tmp/porthold.toml", "PrivateTmp"),
        ("/var/tmp/porthold/.venv/bin/porthold", "PrivateTmp"),
    ],
)
def test_what_the_units_can_t_see_is_said_before_they_are_written(
    tmp_path: Path, path: str, option: str
) -> None:
    assert option in (systemd.unreachable(Path(path)) or "")
    done = CliRunner().invoke(main, ["systemd", "--directory", str(tmp_path), "--config", path])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_program_in_its_owner_s_own_directory_starts_for_nobody_else(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert f"only its owner may go into {closed}" in (systemd.unreachable(closed / "porthold") or "")
    assert systemd.unreachable(Path("/usr/bin/true")) is None


@pytest.mark.parametrize("name", UNITS)
def test_neither_daemon_gets_the_configuration_s_directory(name: str) -> None:
    text = unit(name, Path("/usr/bin/porthold"), CONFIG, "porthold", 252)
    # With ConfigurationDirectory= systemd gives it to the user, who then says who may speak to the tracker.
    assert values(text, "ConfigurationDirectory") == []
    assert values(text, "ProtectSystem") == ["strict"]


@pytest.mark.parametrize("name", UNITS)
def test_a_daemon_may_ask_for_the_interfaces(name: str) -> None:
    # Tried under systemd: without it libzmq aborts as soon as it listens by TCP.
    text = unit(name, Path("/usr/bin/porthold"), CONFIG, "porthold", 252)
    assert "AF_NETLINK" in values(text, "RestrictAddressFamilies")[0].split()


def test_the_tracker_s_memory_has_a_bound() -> None:
    assert values(unit(UNITS[0], Path("/usr/bin/porthold"), CONFIG, "porthold", 252), "MemoryMax") == ["1G"]


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize(
    ("version", "type", "reload"),
    [
        (NOTIFY_RELOAD_SINCE - 1, "notify", "ExecReload=/bin/kill -HUP $MAINPID"),
        (NOTIFY_RELOAD_SINCE, "notify-reload", "ReloadSignal=SIGHUP"),
    ],
)
def test_a_reload_is_said_in_words_that_this_systemd_knows(
    name: str, version: int, type: str, reload: str
) -> None:
    text = unit(name, Path("/usr/bin/porthold"), CONFIG, "porthold", version)
    assert values(text, "Type") == [type]
    assert reload in text.splitlines()


@pytest.mark.parametrize(("name", "capabilities"), list(zip(UNITS, ("", "CAP_NET_ADMIN"), strict=True)))
def test_the_tracker_has_no_privilege_and_the_rewriter_one(name: str, capabilities: str) -> None:
    text = unit(name, Path("/usr/bin/porthold"), CONFIG, "porthold", 252)
    assert values(text, "CapabilityBoundingSet") == values(text, "AmbientCapabilities") == [capabilities]
    assert values(text, "User") == ["porthold"]
    assert values(text, "NoNewPrivileges") == ["yes"]
    # Tried with the real filter: without the last one libzmq aborts.
    assert values(text, "SystemCallFilter") == [
        "@system-service",
        "~@privileged @resources",
        "sched_setscheduler",
    ]


@pytest.mark.parametrize(("name", "most"), list(zip(UNITS, (2.0, 2.6), strict=True)))
def test_systemd_finds_no_fault_and_little_exposure(tmp_path: Path, name: str, most: float) -> None:
    path = tmp_path / name
    path.write_text(unit(name, Path("/bin/true"), CONFIG, "daemon", 252))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=yes", str(path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for \S+: (\S+)", said)
    assert found is not None
    assert float(found[1]) <= most


@pytest.mark.parametrize("user", ["root", "Has Space", ""])
def test_no_daemon_runs_as_root_or_as_somebody_impossible(tmp_path: Path, user: str) -> None:
    done = CliRunner().invoke(main, ["systemd", "--directory", str(tmp_path), "--user", user])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reachable")
def test_a_directory_that_cannot_be_written_is_named() -> None:
    done = CliRunner().invoke(main, ["systemd", "--directory", "/proc/nowhere"])
    assert done.exit_code == 2
    assert "--directory" in done.output
