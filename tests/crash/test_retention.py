"""A tracker goes on where it was, whatever became of its old records."""

import signal
from contextlib import closing

import pytest
from click.testing import CliRunner, Result

from eventlog.archive import archives_of
from eventlog.reading import LogReader
from eventlog.record import SNAPSHOT_TAKEN
from eventlog.retention import archive_segment, close_segment, prune_segments
from eventlog.store import Log
from tests.crash.place import Place, answers, claim, opening, settle
from tools.cli import main
from tools.writing import keep_tracker_state
from tracker.clock import read_clock
from tracker.messages import BindingView
from tracker.projections import PROJECTIONS


def fill(place: Place, number: signal.Signals) -> tuple[BindingView, ...]:
    """A tracker that grants forty claims, and ends; returns what it held."""
    place.start()
    with closing(place.client()) as client:
        settle(client, opening(), *(claim(1, peer) for peer in range(40)))
        held = place.status().bindings
    assert len(held) == 40
    place.kill(number)
    return held


def run(place: Place, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--log", str(place.log)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_starts_on_a_log_with_redacted_archived_and_pruned_records(
    place: Place, number: signal.Signals
) -> None:
    held = fill(place, number)
    result = run(place, "redact", "30", "--reason", "asked for")
    assert result.exit_code == 0, result.output
    with Log.open(place.log, projections=PROJECTIONS) as log:
        now_ns = read_clock().wall_ns
        close_segment(log, 20, now_ns)
        close_segment(log, 40, now_ns)
        archive_segment(log, 0, now_ns)
        archive_segment(log, 1, now_ns)
        keep_tracker_state(log, now_ns)
        prune_segments(log, [0], "too old", now_ns, projections=PROJECTIONS)
    place.check()
    place.start()
    assert place.status().bindings == held
    with closing(place.client()) as client:
        settle(client, claim(1, 99))
        assert len(place.status().bindings) == 41
    place.kill(signal.SIGTERM)
    place.check()


def test_a_backup_has_log_and_archives_while_a_tracker_writes(place: Place) -> None:
    fill(place, signal.SIGTERM)
    with Log.open(place.log, projections=PROJECTIONS) as log:
        now_ns = read_clock().wall_ns
        close_segment(log, 40, now_ns)
        archive = archive_segment(log, 0, now_ns)
        archived = log.entry(7)
    place.start()
    copy = place.directory / "copy" / "log.sqlite"
    copy.parent.mkdir()
    with closing(place.client()) as client:
        client.submit_all([claim(1, peer) for peer in range(100, 400)], read_clock())
        while client.pending > 250:  # It is in the midst of it.
            client.receive(read_clock())
        result = run(place, "backup", str(copy))
        answers(client, lambda: client.pending == 0)
    assert result.exit_code == 0, result.output
    place.kill(signal.SIGTERM)
    with LogReader.open(copy) as copied, LogReader.open(place.log) as log_after:
        assert 40 < copied.size <= log_after.size
        assert copied.head().root == log_after.root_at(copied.size)
        assert copied.entry(7) == archived
    assert [file.name for file in archives_of(copy).iterdir()] == [archive.name]


def test_a_record_is_not_taken_out_under_a_running_tracker(place: Place) -> None:
    place.start()
    assert place.process is not None
    result = run(place, "redact", "0", "--reason", "asked for")
    assert result.exit_code == 2
    assert f"process {place.process.pid}" in result.output
    assert "Stop that first" in result.output


def test_without_a_state_that_is_believed_it_does_not_begin_and_says_why(place: Place) -> None:
    fill(place, signal.SIGTERM)
    assert run(place, "redact", "30", "--reason", "asked for").exit_code == 0
    with Log.open(place.log, projections=PROJECTIONS) as log:
        log._connection.execute("UPDATE log_snapshots SET state = x'00' WHERE name = 'tracker'")
    place.process = place.begin()
    code, said = place.ended()
    assert code == 2
    assert "record 30 is redacted" in said
    assert "Traceback" not in said
    with LogReader.open(place.log) as reader:
        last = reader.entry(reader.size - 1).record
        assert last is not None
        assert last.type != SNAPSHOT_TAKEN
