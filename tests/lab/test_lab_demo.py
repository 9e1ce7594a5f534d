"""`porthold demo` holds what it says, notices what does not hold, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tools.lab import wait_until
from tools.namespaces import NAMESPACES, PREFIX

ROOT = Path(__file__).parents[2]


class Demo:
    """A running demo. `started`: the words of its processes by pid, found as its descendants while it ran."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tools.cli import main; main()", "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(directory)},
            start_new_session=True,
        )
        self.started: dict[int, list[str]] = {}

    def read_until(self, words: str) -> str:
        """What it prints up to a line with these words."""
        assert self.process.stdout is not None
        told = ""
        for line in self.process.stdout:
            self.note_started()
            told += line
            if words in line:
                return told
        raise AssertionError(f"it never says {words!r}: {told}")

    def note_started(self) -> None:
        for pid in descendants(self.process.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                self.started[pid] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")

    def running(self) -> list[list[str]]:
        """The words of those that still run."""
        return [words for pid, words in self.started.items() if is_running(pid)]

    def namespaces(self) -> list[str]:
        return [path.name for path in NAMESPACES.glob(f"{PREFIX}{self.process.pid}-*")]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: its names are long, and a unix socket's path has 108 octets.
    with TemporaryDirectory(prefix="porthold-") as name:
        yield Path(name)


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running_demo(directory: Path) -> Iterator[Demo]:
    """A demo; waits for its end, then nothing of it may be left."""
    demo = Demo(directory)
    with demo.process:
        try:
            yield demo
            demo.process.communicate(timeout=60)
        finally:
            demo.process.kill()
    # What dies with the demo (PDEATHSIG) is killed at once, and is gone a moment later on a busy machine.
    wait_until(lambda: not demo.running(), "nothing of the demo runs", timeout_s=2)
    assert not demo.namespaces()
    assert not list(directory.iterdir())


def test_all_that_it_says_holds(directory: Path) -> None:
    with running_demo(directory) as demo:
        told = demo.read_until("facts, and all of them held")
    assert demo.process.returncode == 0
    assert "✗" not in told
    assert re.findall(r"who --at \S+Z --port 7648\n.* 7648 .*: (\S+)\n", told) == [
        "nobody",
        "192.168.1.10",
        "192.168.1.11",
    ]
    assert "clean: " in told


@pytest.mark.parametrize(
    "words",
    [
        "masquerading gateway",
        "Without porthold",
        "Tracker and rewriter",
        "3 Ann calls",
        "see and hear",
        "hangs up",
    ],
)
def test_ctrl_c_leaves_nothing(directory: Path, words: str) -> None:
    with running_demo(directory) as demo:
        demo.read_until(words)
        os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.process.returncode == 130


def test_sigterm_leaves_nothing(directory: Path) -> None:
    with running_demo(directory) as demo:
        demo.read_until("3 Ann calls")
        demo.process.terminate()
    assert demo.process.returncode == 128 + signal.SIGTERM


def test_kill_9_leaves_no_process(directory: Path) -> None:
    """Its namespaces go with the next lab (test_lab_lifetime); what it wrote into TMPDIR stays."""
    demo = Demo(directory)
    with demo.process:
        demo.read_until("3 Ann calls")
        assert {"tracker", "rewriter"} < {word for words in demo.running() for word in words}
        demo.process.kill()
    wait_until(lambda: not demo.running(), "its processes end")


@pytest.mark.parametrize("victim", ["tracker", "rewriter"])
def test_a_fact_that_does_not_hold_ends_it_with_1_and_leaves_nothing(directory: Path, victim: str) -> None:
    with running_demo(directory) as demo:
        demo.read_until("each told")
        [pid] = [pid for pid, words in demo.started.items() if victim in words and is_running(pid)]
        os.kill(pid, signal.SIGKILL)
        told = demo.read_until("The last words of rewriter")
    assert demo.process.returncode == 1
    assert "✗ This does not hold: " in told
    assert "all of them held" not in told
