"""Nothing of a laboratory survives it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools import namespaces
from tools.lab import Lab, LabError, wait_until
from tools.namespaces import NAMESPACES

ROOT = Path(__file__).parents[2]
LAB = """
import sys, time
from tools.lab import Lab
with Lab() as lab:
    ann = lab.client("workstation-1", "Ann")
    sleeper = lab.start(None, ["sleep", "1000"])
    print(lab.namespace(""), ann.process.pid, sleeper.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def other_lab() -> Iterator[tuple[subprocess.Popen[str], str, list[int]]]:
    """A lab that belongs to another process; with its names' prefix and the pids of what runs in it."""
    with subprocess.Popen(
        [sys.executable, "-c", LAB], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        prefix, *pids = process.stdout.readline().split()
        yield process, prefix, [int(pid) for pid in pids]
        process.kill()


def left(prefix: str) -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"{prefix}*")]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_is_left_after_a_normal_end() -> None:
    with Lab() as lab:
        ann, sleeper = lab.client("workstation-1", "Ann"), lab.start("gateway", ["sleep", "1000"])
        assert len(left(lab.namespace(""))) == 6
    assert not left(lab.namespace(""))
    assert not is_running(ann.process.pid)
    assert not is_running(sleeper.pid)


def test_nothing_is_left_after_an_exception() -> None:
    lab = Lab()
    with pytest.raises(ZeroDivisionError), lab:
        raise ZeroDivisionError
    assert not left(lab.namespace(""))


def test_a_lab_that_cannot_be_built_leaves_nothing() -> None:
    lab = Lab(outside={"somewhere": "not-an-address"})
    with pytest.raises(LabError, match="not-an-address"), lab:
        pass
    assert not left(lab.namespace(""))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(
    other_lab: tuple[subprocess.Popen[str], str, list[int]], number: signal.Signals
) -> None:
    process, prefix, pids = other_lab
    process.send_signal(number)
    process.wait(10)
    assert not left(prefix)
    assert not any(is_running(pid) for pid in pids)


def test_a_second_ctrl_c_does_not_interrupt_the_cleaning_up(
    other_lab: tuple[subprocess.Popen[str], str, list[int]],
) -> None:
    process, prefix, pids = other_lab
    for _ in range(50):
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    process.wait(10)
    assert not left(prefix)
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize("delay_ms", range(50, 450, 20))
def test_a_ctrl_c_while_it_is_built_leaves_nothing(delay_ms: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAB], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGINT)
        process.wait(10)
    assert not left(f"{namespaces.PREFIX}{process.pid}-")


@pytest.mark.parametrize("have_begun", [True, False])
def test_after_kill_9_of_its_owner_its_processes_end_and_the_next_lab_removes_the_rest(
    other_lab: tuple[subprocess.Popen[str], str, list[int]], have_begun: bool
) -> None:
    """Also when the owner dies so early that its death is no signal any more."""
    process, prefix, pids = other_lab
    if have_begun:
        sleeper = Path(f"/proc/{pids[1]}/cmdline")
        wait_until(lambda: sleeper.read_bytes().startswith(b"sleep"), "the process runs what it should")
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids), "its processes end")
    assert left(prefix)
    with Lab():
        assert not left(prefix)


def test_a_lab_leaves_another_one_s_namespaces_alone(
    other_lab: tuple[subprocess.Popen[str], str, list[int]],
) -> None:
    process, prefix, pids = other_lab
    with Lab():
        pass
    assert len(left(prefix)) == 6
    assert process.poll() is None
    assert all(is_running(pid) for pid in pids)


def test_two_labs_of_one_process_do_not_meet() -> None:
    with Lab() as one, Lab() as other:
        assert not set(left(one.namespace(""))) & set(left(other.namespace("")))
        one.client("workstation-1", "Ann")
        other.client("workstation-1", "Ann")


def test_the_machine_s_own_network_is_not_touched() -> None:
    before = host_network()
    with Lab() as lab:
        lab.client("workstation-1", "Ann")
        assert host_network() == before
    assert host_network() == before


def host_network() -> list[str]:
    """Links, addresses, routes and rules of the namespace that the tests run in."""
    commands = ["ip -brief link", "ip -brief address", "ip route", "nft list ruleset"]
    return [
        subprocess.run(words.split(), capture_output=True, text=True, check=True).stdout for words in commands
    ]


def test_without_its_tools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(
            LabError, match=r"not found: ip, nft, setpriv.*apt-get install iproute2 nftables util-linux"
        ),
        Lab(),
    ):
        pass


def test_an_ordinary_user_is_told_to_be_root() -> None:
    def without_rights() -> None:
        os.setgid(65534)
        os.setuid(65534)

    assert failure_as(without_rights) == "network namespaces are made by root: run this with sudo"


def failure_as(change: Callable[[], None]) -> str:
    """What a lab says in a child process that has changed itself first."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        change()
        try:
            Lab().__enter__()
        except LabError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()
