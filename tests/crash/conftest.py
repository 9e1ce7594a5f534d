"""A place for a tracker and directories for logs, and their ends."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.place import Place


@pytest.fixture
def place() -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="porthold-"))  # pytest's own paths are too long for a socket
    place = Place(directory)
    yield place
    if place.process is not None:
        place.kill()
    shutil.rmtree(directory)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory where nobody waits for a disk; where one is to fail, that is simulated."""
    with tempfile.TemporaryDirectory(prefix="porthold-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, which a test can fill, or mount otherwise."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "porthold-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)
