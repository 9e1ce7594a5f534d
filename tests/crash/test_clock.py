"""The tracker's wall clock is set while it serves: forward, back, and while it is away. Each is a record."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from eventlog.reading import LogReader
from tests.crash.place import ROOT, Place, claim, opening, settle
from tracker.audit import outages
from tracker.events import ClockStepped
from tracker.messages import ClaimGranted, SessionGranted

SECOND_NS = 1_000_000_000

# Only the source of the time is another one: no test may set the machine's own clock.
SET_CLOCK = """
import sys, time
from pathlib import Path
offset, real = Path(sys.argv.pop(1)), time.time_ns
time.time_ns = lambda: real() + int(offset.read_text())
from tools.tracker import command
command()
"""


class SetPlace(Place):
    """A tracker whose wall clock is `offset_s` off."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._offset = directory / "offset"
        self.set_clock(0)

    def set_clock(self, offset_s: float) -> None:
        written = self._offset.with_suffix(".new")
        written.write_text(str(round(offset_s * SECOND_NS)))
        written.replace(self._offset)

    def begin(self, stderr: int | TextIO = subprocess.PIPE) -> subprocess.Popen[str]:
        words = [str(self._offset), "--config", str(self.configuration)]
        return subprocess.Popen([sys.executable, "-c", SET_CLOCK, *words], cwd=ROOT, stderr=stderr, text=True)


def steps_s(place: Place) -> list[float]:
    return [
        (event.to_ns - event.from_ns) / SECOND_NS
        for event in place.events()
        if isinstance(event, ClockStepped)
    ]


@pytest.fixture
def set_place(place: Place) -> Iterator[SetPlace]:
    made = SetPlace(place.directory)
    yield made
    if made.process is not None:
        made.kill()


@pytest.mark.parametrize("away", [False, True])
def test_a_clock_set_forward_and_back_is_said_before_what_follows(set_place: SetPlace, *, away: bool) -> None:
    place = set_place
    place.start()
    client = place.client()
    (opened,) = settle(client, opening())
    assert isinstance(opened.reply, SessionGranted)
    epoch = opened.reply.epoch
    for number, offset_s in enumerate((3600, 0)):
        if away:
            place.kill()
        place.set_clock(offset_s)
        if away:
            place.start()
        (granted,) = settle(client, claim(epoch, number))
        assert isinstance(granted.reply, ClaimGranted)
        time.sleep(0.3)  # the sign of life, by the clock as it is now
    client.close()
    # Whoever was away can't tell a clock that was set forward from a time that passed.
    assert steps_s(place) == pytest.approx([-3600] if away else [3600, -3600], abs=60)
    with LogReader.open(place.log) as log:
        kinds = [it.kind for it in outages(log)]
    assert kinds.count("clock-stepped") == (1 if away else 2)
    assert kinds.count("tracker-down") == (2 if away else 0)
    place.check()
