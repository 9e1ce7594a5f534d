"""A place for a tracker, and its end."""

import shutil
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
