"""A laboratory leaves nothing behind, however its owner ends: no namespace, no process, no rule outside."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.lab import Lab, wait_until
from tools.namespaces import NAMESPACES

REPOSITORY = Path(__file__).parents[2]
OWNER = """
import sys, time
from contextlib import ExitStack
from tests.lab.conftest import make_site
with ExitStack() as stack:
    site = make_site(stack)
    site.start()
    client = site.lab.client("workstation-1", "Ann")
    client.command("call 203.0.113.10")
    site.await_holders("192.168.1.10")
    pids = [process.pid for process in site.lab._processes]
    print(site.lab.namespace(""), *pids, flush=True)
    time.sleep(60)
"""


def begin_owner() -> tuple[subprocess.Popen[str], str, list[int]]:
    """A process with a running site; the prefix of its namespaces, and the pids of its processes."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert owner.stdout is not None
    prefix, *pids = owner.stdout.readline().split()
    return owner, prefix, [int(pid) for pid in pids]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def rules_of_this_machine() -> str:
    return subprocess.run(["nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_gateway_whose_owner_ends(number: signal.Signals) -> None:
    before = rules_of_this_machine()
    owner, prefix, pids = begin_owner()
    with owner:
        assert len(list(NAMESPACES.glob(f"{prefix}*"))) == 6
        assert all(is_alive(pid) for pid in pids)
        owner.send_signal(number)
        owner.wait(10)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "its processes gone")
    if number is signal.SIGKILL:
        with Lab():  # what a killed owner could not remove, the next one does
            pass
    assert list(NAMESPACES.glob(f"{prefix}*")) == []
    assert rules_of_this_machine() == before
