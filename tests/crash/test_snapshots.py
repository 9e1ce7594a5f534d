"""Trackers that are started again from snapshots, sound ones and damaged ones: all real processes."""

import signal
import sqlite3
from pathlib import Path

import pytest

from eventlog.schema import expected_layout
from eventlog.store import LogReader
from tests.crash.place import Place, claim, fill, opening, settle


def test_a_restart_folds_only_what_is_behind_the_snapshot_and_knows_the_same(place: Place) -> None:
    place.write_configuration(snapshot_every_records=20)
    place.start()
    client = place.client()
    settle(client, opening())
    settle(client, *(claim(1, peer) for peer in range(30)))
    fill(client, 30)
    before = place.status()
    place.kill()
    with LogReader.open(place.log) as log:
        snapshot = log.snapshots("tracker")[0]
        behind = log.size - snapshot.size
    assert 0 < behind <= 25
    place.start()
    after = place.status()
    assert after.bindings == before.bindings
    assert [it.worker for it in after.sessions] == ["w1"]
    settle(client, claim(1, 3), claim(1, 99))
    client.close()
    _, said = place.kill(signal.SIGTERM)
    assert f"state from the snapshot over {snapshot.size} records, and {behind} behind it" in said
    place.check()


def damaged(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    guards = [text for text in expected_layout().values() if text.startswith("CREATE TRIGGER")]
    for text in guards:
        connection.execute(f"DROP TRIGGER {text.split()[2]}")
    connection.execute(statement)
    for text in guards:
        connection.execute(text)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_snapshots SET state = x'00'",
        "UPDATE log_snapshots SET size = size - 1",
        "UPDATE log_snapshots SET state = (SELECT state FROM log_snapshots ORDER BY size LIMIT 1)"
        " WHERE size = (SELECT max(size) FROM log_snapshots)",
    ],
    ids=["poisoned", "of another position", "stale"],
)
def test_a_snapshot_that_is_not_what_was_recorded_is_refused_and_the_log_folded(
    place: Place, statement: str
) -> None:
    place.write_configuration(snapshot_every_records=20)
    place.start()
    client = place.client()
    settle(client, opening())
    settle(client, *(claim(1, peer) for peer in range(10)))
    fill(client, 60)
    client.close()
    before = place.status().bindings
    place.kill()
    damaged(place.log, statement)
    place.start()
    assert place.status().bindings == before
    _, said = place.kill(signal.SIGTERM)
    assert "a snapshot is not believed: snapshot tracker over" in said
    assert "state folded from all" in said


def test_a_snapshot_of_another_version_is_left_alone(place: Place) -> None:
    place.start()
    place.kill(signal.SIGTERM)
    damaged(place.log, "UPDATE log_snapshots SET version = 99")
    place.start()
    _, said = place.kill(signal.SIGTERM)
    assert "state folded from all 3 records" in said
    assert "not believed" not in said
