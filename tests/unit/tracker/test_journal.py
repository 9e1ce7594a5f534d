"""Lines on stderr: for people, for programs, for systemd's journal."""

import json
import logging
import os
import sys

import pytest

from tests.unit.tracker.wire import ANN
from tracker.events import (
    Ending,
    Event,
    PortBound,
    PortUnbound,
    Resource,
    SessionEnded,
    SessionEnding,
    WorkerLost,
)
from tracker.journal import Form, Formatter, about, is_journal, tell

BOUND = PortBound(3, Resource("gw", b"\xcb\x00\x71\x01", "cuseeme", None), ANN, None, 1, 17, 7648, ANN, 7648)


def formatted(form: Form, *, priority: bool = False, level: int = logging.INFO) -> str:
    record = logging.LogRecord("x", level, __file__, 1, "%s – held", ("port",), None)
    for name, value in about("port-bound", binding=3).items():
        setattr(record, name, value)
    return Formatter("tracker", form, priority=priority).format(record)


def test_a_line_for_people_has_its_time_and_its_program() -> None:
    time, _, said = formatted("text").partition(" ")
    assert time.endswith("Z")
    assert said == "porthold tracker: port – held"


def test_a_line_for_programs_says_the_same_in_fields() -> None:
    values = json.loads(formatted("json"))
    assert values.pop("time").endswith("Z")
    expected = {"level": "info", "program": "tracker", "event": "port-bound", "message": "port – held"}
    assert values == {**expected, "binding": 3}


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)]
)
def test_the_journal_gets_a_priority_and_no_time(level: str, priority: int) -> None:
    number = logging.getLevelNamesMapping()[level]
    line = formatted("text", priority=True, level=number)
    assert line == f"<{priority}>porthold tracker: port – held"
    assert formatted("json", priority=True, level=number).startswith(f"<{priority}>{{")


def test_every_line_of_a_traceback_has_its_priority() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it broke", (), sys.exc_info())
    said = Formatter("tracker", "text", priority=True).format(record)
    assert len(said.splitlines()) > 2
    assert all(line.startswith("<3>") for line in said.splitlines())


def test_only_the_stream_that_the_variable_names_is_the_journal() -> None:
    status = os.fstat(2)
    assert is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
    assert not is_journal({})


@pytest.mark.parametrize(
    ("event", "level", "name", "words"),
    [
        (BOUND, logging.INFO, "port-bound", "192.168.0.2 holds cuseeme of gw"),
        (PortUnbound(3, Ending.IDLE), logging.INFO, "port-unbound", "binding 3 is over: idle"),
        (WorkerLost("gw", 2, "w1", 5), logging.WARNING, "worker-lost", "is it running"),
        (SessionEnded("gw", 2, "w1", SessionEnding.CLOSED), logging.INFO, "session-ended", "closed"),
    ],
)
def test_what_operators_want_to_see_is_told(
    caplog: pytest.LogCaptureFixture, event: Event, level: int, name: str, words: str
) -> None:
    with caplog.at_level(logging.INFO):
        tell(event)
    [record] = caplog.records
    assert (record.levelno, vars(record)["event"]) == (level, name)
    assert words in record.getMessage()
