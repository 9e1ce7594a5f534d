"""Segments are closed, archived, pruned, records redacted; whatever is left goes on being proven.

Longer than other modules because the three are shown on the same logs, and after one another.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog import merkle
from eventlog.archive import archives_of
from eventlog.checkpoint import make_checkpoint, parse_checkpoint
from eventlog.kept_tables import TablesUnknown
from eventlog.note import SigningKey
from eventlog.projection import Insert, Row
from eventlog.proof import make_proof, verify_proof
from eventlog.reading import Entry, LogReader, RecordsGone
from eventlog.record import SEGMENT_CLOSED, Record, Value, encode
from eventlog.refold import compare_projection
from eventlog.retention import (
    RetentionRefused,
    archive_segment,
    close_due_segments,
    close_segment,
    keep_state,
    prune_segments,
    redact,
)
from eventlog.segments import SegmentPolicy, Span, closed_fields
from eventlog.shelf import Gap
from eventlog.snapshot import Snapshot
from eventlog.store import AppendFailed, Log, LogUnreadable
from eventlog.verify import FaultKind, Report, verify
from tests.unit.eventlog.samples import (
    SECOND_NS,
    START_NS,
    Holders,
    PortsSeen,
    held,
    make_record,
    many_held,
)

KEY = SigningKey.generate("example.com/log")
LATER_NS = START_NS + 10**6 * SECOND_NS
POLICY = SegmentPolicy(records=100, monthly=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """Five hundred records, a checkpoint after each 70."""
    with Log.open(path, projections=[Holders()]) as log:
        fill(log, 500)
        yield log


def fill(log: Log, count: int) -> None:
    for first in range(0, count, 70):
        log.append(many_held(min(70, count - first), first))
        make_checkpoint(log, KEY, LATER_NS)


def now_held(sequence: int) -> Record:
    return make_record(sequence, (7000 + sequence % 50, b"x"), wall_ns=LATER_NS)


def check(log: LogReader) -> Report:
    return verify(log, [Holders()], keys=[KEY.verifying_key])


def pruned(log: Log, *numbers: int) -> None:
    prune_segments(log, numbers, "older than a year", LATER_NS, projections=[Holders()])


def redacted(log: Log, position: int) -> None:
    redact(log, position, "asked for by the person", LATER_NS, projections=[Holders()])


def archived(log: Log, *numbers: int) -> list[Path]:
    return [archive_segment(log, number, LATER_NS) for number in numbers]


def test_segments_close_at_their_size_one_after_the_other(log: Log) -> None:
    segments = close_due_segments(log, POLICY, LATER_NS)
    assert [(it.span.first, it.span.end) for it in segments] == [(at, at + 100) for at in range(0, 500, 100)]
    assert [it.closed_at for it in segments] == [500, 501, 502, 503, 504]
    assert [it.root for it in segments] == [log.root_at(it.span.end) for it in segments]
    assert close_due_segments(log, POLICY, LATER_NS) == []
    assert check(log).clean


def test_an_archived_segment_is_read_as_if_it_were_in_the_log(log: Log) -> None:
    before = list(log.read())
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 0, 2)
    assert list(log.read(0, 500)) == before
    assert list(log.read(95, 315)) == before[95:315]
    assert log.entry(17) == before[17]
    assert [log.root_at(size) for size in (1, 17, 93, 100, 101, 250, 299)] == [
        tree_root(before, size) for size in (1, 17, 93, 100, 101, 250, 299)
    ]
    report = check(log)
    assert report.clean, report.faults
    assert report.records_checked == log.size
    assert compare_projection(log, Holders()) == []
    with LogReader.open(log.path) as reader:
        assert list(reader.read(0, 500)) == before


def tree_root(entries: Sequence[Entry], size: int) -> bytes:
    frontier = merkle.Frontier()
    for entry in entries[:size]:
        frontier.append(entry.leaf)
    return frontier.root()


def test_the_rows_of_an_archived_segment_are_gone_from_the_file(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 1)
    rows = log.query("SELECT position FROM log_records WHERE position >= 100 AND position < 200")
    # Of whole groups of sixteen only the ones that a checkpoint cuts: at 140.
    assert [row[0] for row in rows] == [*range(100, 112), *range(128, 144), *range(192, 200)]
    assert log.query("SELECT count(*) FROM log_records WHERE bytes IS NULL") == [(36,)]


def test_pruned_records_are_gone_and_nobody_is_told_otherwise(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (path,) = archived(log, 1)
    pruned(log, 0, 1)
    assert not path.exists()
    with pytest.raises(RecordsGone, match="pruned, as the record at position") as gone:
        list(log.read())
    assert gone.value.gap.span.first == 0
    with pytest.raises(RecordsGone):
        log.entry(150)
    pieces = list(log.read_with_gaps())
    assert {type(piece) for piece in pieces if has_bytes(piece)} == {Entry}
    assert not has_bytes(pieces[0])
    assert next(log.read(200)).position == 200
    report = check(log)
    assert report.clean, report.faults
    assert [str(gap.span) for gap in report.gone] == ["positions 0 to 99", "positions 100 to 199"]
    assert report.records_checked == log.size - 200


def test_kept_checkpoints_and_proofs_go_on_working_whatever_was_pruned(log: Log, path: Path) -> None:
    notes = [it.note for it in log.checkpoints()]
    proofs = {at: make_proof(log, at, notes[-1]) for at in (0, 17, 139, 250, 499)}
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 1)
    pruned(log, 0, 1, 2)
    redacted(log, 333)
    last = make_checkpoint(log, KEY, LATER_NS)
    report = verify(log, [Holders()], keys=[KEY.verifying_key], against=notes)
    assert report.clean, report.faults
    head = log.head()
    for note in notes:
        size, root = parse_checkpoint(note).size, parse_checkpoint(note).root
        way = merkle.consistency_proof(log, size, head.size)
        merkle.verify_consistency(size, root, head.size, head.root, way)
    for position, proof in proofs.items():
        assert verify_proof(proof, [KEY.verifying_key]).position == position
    for position in (300, 333, 499, log.size - 1):
        shown = verify_proof(make_proof(log, position, last), [KEY.verifying_key])
        assert (shown.record is None) == (position == 333)


def test_the_logs_own_records_stay_in_what_is_archived_and_pruned(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    log.append([now_held(at) for at in range(600, 760)])
    for end in (540, 660):
        close_segment(log, end, LATER_NS)
    archived(log, 5)
    pruned(log, 5, 6)
    assert [entry.position for entry in pieces_with_bytes(log, 500, 660)] == [500, 501, 502, 503, 504]
    note = make_checkpoint(log, KEY, LATER_NS)
    for position in range(500, 505):
        shown = verify_proof(make_proof(log, position, note), [KEY.verifying_key])
        assert shown.record is not None
        assert shown.record.type == SEGMENT_CLOSED
    report = check(log)
    assert report.clean, report.faults
    assert [str(gap.span) for gap in report.gone] == ["positions 505 to 539", "positions 540 to 659"]


def pieces_with_bytes(log: Log, first: int, end: int) -> list[Entry]:
    return [it for it in log.read_with_gaps(first, end) if isinstance(it, Entry) and it.data is not None]


def test_a_redacted_record_leaves_no_trace_in_the_file(log: Log, path: Path) -> None:
    data = log.entry(77).data
    assert data is not None
    nonce = data[-40:]
    assert nonce in path.read_bytes() + path.with_name("log.sqlite-wal").read_bytes()
    redacted(log, 77)
    assert log.entry(77).data is None
    assert log.give_back()
    assert nonce not in path.read_bytes()
    assert path.with_name("log.sqlite-wal").stat().st_size == 0
    assert check(log).clean


def test_a_record_is_redacted_in_an_archive_too(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (old,) = archived(log, 0)
    redacted(log, 42)
    assert not old.exists()
    assert [entry.position for entry in log.read(0, 500) if entry.data is None] == [42]
    assert check(log).clean
    with pytest.raises(RetentionRefused, match="already"):
        redacted(log, 42)


def test_the_tables_are_made_again_from_what_was_kept_when_records_are_gone(log: Log, path: Path) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    pruned(log, 0, 1)
    log.append([now_held(at) for at in range(1000, 1020)])
    assert compare_projection(log, Holders()) == []
    log._connection.execute("UPDATE holders SET holder = x'ff' WHERE port = 7005")
    assert len(compare_projection(log, Holders())) == 1
    assert [fault.kind for fault in check(log).faults] == [FaultKind.PROJECTION]
    log.rebuild_projections()
    assert check(log).clean
    assert check(log).projections_checked == ("holders",)


def test_a_new_version_of_tables_goes_on_from_kept_ones_only_if_it_knows_how(log: Log, path: Path) -> None:
    class Newer(Holders):
        def upgraded(self, version: int, table: str, row: Row) -> Insert | None:
            assert version == 1
            return Insert(table, row)

    before = log.query("SELECT * FROM holders")
    close_due_segments(log, POLICY, LATER_NS)
    pruned(log, 0)
    log.close()
    with pytest.raises(LogUnreadable, match="not kept"):
        Log.open(path, projections=[Holders(version=2)])
    with Log.open(path, projections=[Newer(version=2)]) as reopened:
        assert reopened.query("SELECT * FROM holders") == before
        assert verify(reopened, [Newer(version=2)]).clean


def test_tables_that_nobody_can_make_again_are_said_to_be_unknown(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (archive,) = archived(log, 0)
    hidden = archive.rename(archive.with_name("elsewhere"))
    with pytest.raises(TablesUnknown, match="archive that is no use"):
        compare_projection(log, Holders())
    report = check(log)
    assert [fault.kind for fault in report.faults] == [FaultKind.ARCHIVE]
    assert report.projections_checked == ()
    assert "No such file" in report.unfolded[0]
    with LogReader.open(log.path) as reader:
        hidden.rename(archive)
        assert check(reader).clean


def test_nothing_goes_while_the_tables_are_not_what_the_records_give(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    log._connection.execute("UPDATE holders SET holder = x'ff' WHERE port = 7005")
    size = log.size
    with pytest.raises(RetentionRefused, match="not what the records give"):
        pruned(log, 0)
    with pytest.raises(RetentionRefused, match="not what the records give"):
        redacted(log, 3)
    assert log.size == size


def test_nothing_goes_that_the_newest_state_was_not_made_of(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    keep_state(log, Snapshot("ports", 1, 50, b"[]"), LATER_NS)
    with pytest.raises(RetentionRefused, match="ports is over 50 records, 100 are wanted"):
        pruned(log, 0)
    redacted(log, 49)


def test_states_are_not_folded_over_what_is_gone(log: Log) -> None:
    fold = PortsSeen()
    for entry in log.read():
        fold.apply(entry.position, entry.record or make_record(0))
    keep_state(log, Snapshot("ports", 1, 500, fold.state()), LATER_NS)
    redacted(log, 3)
    report = verify(log, [Holders()], folds=[PortsSeen()])
    assert report.clean, report.faults
    assert any("states of ports" in why for why in report.unfolded)


def test_a_record_that_was_archived_or_pruned_is_not_appended_again(log: Log) -> None:
    records = many_held(500)
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 0)
    pruned(log, 1)
    size = log.size
    assert len(log.append([records[5], records[150], records[300], now_held(5000)])) == 1
    assert log.size == size + 1
    log.close()
    with Log.open(log.path, projections=[Holders()]) as reopened:
        assert len(reopened.append([held(5), held(150), held(499)])) == 0


@pytest.mark.parametrize("remove", [archived, pruned])
def test_the_very_last_record_that_went_is_not_appended_again_either(
    path: Path, remove: Callable[[Log, int], object]
) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(96))
        close_segment(log, 96, LATER_NS)
        remove(log, 0)
        assert log.query("SELECT count(*) FROM log_records WHERE position < 96") == [(0,)]
        assert len(log.append([held(95)])) == 0
        assert len(log.append([now_held(96)])) == 1


def test_how_far_a_source_went_is_not_forgotten_when_older_records_go_later(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(192))
        close_segment(log, 96, LATER_NS)
        close_segment(log, 192, LATER_NS)
        archived(log, 1, 0)
        assert len(log.append([held(191)])) == 0
        assert check(log).clean


def test_a_state_that_is_older_than_what_was_pruned_can_still_be_held_against_the_tree(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(200))
        keep_state(log, Snapshot("ports", 1, 40, b"as it was"), LATER_NS)
        keep_state(log, Snapshot("ports", 1, log.size, b"as it is"), LATER_NS)
        close_segment(log, 96, LATER_NS)
        pruned(log, 0)
        assert [snapshot.size for snapshot in log.snapshots("ports")] == [201, 40]
        for snapshot in log.snapshots("ports"):
            log.check_snapshot(snapshot)


REFUSED: dict[str, Callable[[Log], object]] = {
    "a segment that is not closed": lambda log: archived(log, 5),
    "an archived segment": lambda log: archived(log, 0),
    "archiving a pruned one": lambda log: archived(log, 1),
    "pruning a pruned one": lambda log: pruned(log, 1),
    "pruning one that is not closed": lambda log: pruned(log, 5),
    "redacting what is not there": lambda log: redacted(log, 10_000),
    "redacting what is pruned": lambda log: redacted(log, 120),
    "redacting a record of the log's own": lambda log: redacted(log, 500),
    "no reason": lambda log: redact(log, 3, "", LATER_NS, projections=()),
    "a long reason": lambda log: redact(log, 3, "x" * 257, LATER_NS, projections=()),
    "a clock that is behind": lambda log: redact(log, 3, "why", START_NS, projections=()),
    "a segment beyond the end": lambda log: close_segment(log, 10_000, LATER_NS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_and_changes_nothing(log: Log, case: str) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 0)
    pruned(log, 1)
    before = log.head()
    with pytest.raises(RetentionRefused):
        REFUSED[case](log)
    assert log.head() == before
    assert check(log).clean


def test_segments_close_with_their_month(path: Path) -> None:
    day = 86_400 * SECOND_NS
    with Log.open(path, projections=[Holders()]) as log:
        log.append([make_record(at, (7000 + at, b"x"), wall_ns=START_NS + at * day) for at in range(60)])
        now = START_NS + 60 * day
        segments = close_due_segments(log, SegmentPolicy(records=None), now)
        # 2023-11-14 22:13 and on: to the end of November, of December; January goes on.
        assert [(it.span.first, it.span.end) for it in segments] == [(0, 17), (17, 48)]
        assert close_due_segments(log, SegmentPolicy(records=None), now) == []
        more = close_due_segments(log, SegmentPolicy(records=5), now)
        assert [it.span.end for it in more] == [53, 58]


def test_moments_are_found_through_archives_and_said_to_be_gone_within_pruned_segments(log: Log) -> None:
    moments = [START_NS + at * SECOND_NS for at in (-1, 0, 50, 99, 100, 250, 499, 5000)]
    close_due_segments(log, POLICY, LATER_NS)
    expected = [min(500, max(0, at + 1)) for at in (-1, 0, 50, 99, 100, 250, 499, 5000)]
    archived(log, 0, 1, 2)
    assert [log.position_at(moment) for moment in moments] == expected
    pruned(log, 0, 2)
    assert log.first_wall_ns == START_NS
    for moment, position in zip(moments, expected, strict=True):
        if position in (1, 51, 251):
            with pytest.raises(RecordsGone, match="within what is gone"):
                log.position_at(moment)
        else:
            assert log.position_at(moment) == position


GUARDED = {
    "a record's bytes": "UPDATE log_records SET bytes = NULL WHERE position = 300",
    "other bytes": "UPDATE log_records SET bytes = x'00' WHERE position = 65",
    "another leaf": "UPDATE log_records SET leaf = zeroblob(32), bytes = NULL WHERE position = 65",
    "an own record's bytes": "UPDATE log_records SET bytes = NULL WHERE type < 16",
    "a record": "DELETE FROM log_records WHERE position = 300",
    "a redacted record": "DELETE FROM log_records WHERE position = 250",
    "an own record": "DELETE FROM log_records WHERE type < 16",
    "a removal": "DELETE FROM log_removals",
    "another removal": "UPDATE log_removals SET end = 400",
    "a removal that no record says": "INSERT INTO log_removals VALUES (200, 7, 0, 100)",
    "a removal of what comes later": "INSERT INTO log_removals SELECT position, type, 0, 900 FROM log_records"
    " WHERE type = 2",
    "a removal twice": "INSERT OR REPLACE INTO log_removals SELECT said_at, type, 0, end FROM log_removals",
}


@pytest.mark.parametrize("case", GUARDED)
def test_the_way_out_is_guarded(log: Log, case: str) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    redacted(log, 250)
    archived(log, 0)
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|already"):
        log._connection.execute(GUARDED[case])


FORGED = {
    "bytes of a redacted record brought back": (
        "UPDATE log_records SET bytes = :bytes WHERE position = 450",
        FaultKind.REDACTION,
    ),
    "bytes taken out in silence": (
        "UPDATE log_records SET bytes = NULL WHERE position = 300",
        FaultKind.REDACTION,
    ),
    "a row taken out in silence": ("DELETE FROM log_records WHERE position = 300", FaultKind.MISSING),
    "a leaf that proofs need": ("DELETE FROM log_records WHERE position = 100", FaultKind.TREE),
    "a leaf of a pruned record": (
        "UPDATE log_records SET leaf = zeroblob(32) WHERE position = 100",
        FaultKind.TREE,
    ),
    "a group's hash": (
        "UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 4 AND number = 7",
        FaultKind.TREE,
    ),
    "a group's hash gone": ("DELETE FROM log_nodes WHERE level = 4 AND number = 7", FaultKind.TREE),
    "another removal": ("UPDATE log_removals SET end = end + 1 WHERE type = 2", FaultKind.REDACTION),
    "no removal": ("DELETE FROM log_removals WHERE type = 7", FaultKind.REDACTION),
    "a record that was archived put back": (
        "UPDATE log_records SET bytes = :bytes WHERE position = 299",
        FaultKind.REDACTION,
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_removal_is_found(log: Log, case: str) -> None:
    data = log.entry(299).data
    close_due_segments(log, POLICY, LATER_NS)
    redacted(log, 450)
    archived(log, 0, 2)
    pruned(log, 1)
    assert check(log).clean
    assert data is not None
    statement, kind = FORGED[case]
    triggers = log.query("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
    for name, _ in triggers:
        log._connection.execute(f"DROP TRIGGER {name!s}")
    log._connection.execute(statement, {"bytes": data} if ":bytes" in statement else {})
    for _, sql in triggers:
        log._connection.execute(str(sql))
    assert kind in {fault.kind for fault in check(log).faults}, check(log).faults


def test_what_is_left_of_a_source_is_checked_against_the_archives(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    archived(log, 0)
    assert check(log).clean
    log._connection.execute("UPDATE log_gone SET sequence = 10000")
    assert [fault.kind for fault in check(log).faults] == [FaultKind.REDACTION]


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_archive_is_found_and_the_rest_is_read(log: Log, seed: int) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (path,) = archived(log, 1)
    data = bytearray(path.read_bytes())
    data[len(data) * seed // 6 + 3] ^= 0xFF
    path.write_bytes(data)
    with LogReader.open(log.path) as reader:
        report = check(reader)
        assert [fault.kind for fault in report.faults] == [FaultKind.ARCHIVE]
        assert report.faults[0].position in range(100, 200)
        with pytest.raises(RecordsGone, match=r"\.archive"):
            list(reader.read())
        assert len(list(reader.read(200))) == reader.size - 200


def test_behind_a_damaged_run_of_an_archive_everything_is_checked_again(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(700))
        close_segment(log, 650, LATER_NS)
        make_checkpoint(log, KEY, LATER_NS)
        (archive,) = archived(log, 0)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with LogReader.open(path) as reader:
        report = check(reader)
        assert [(it.position, it.kind) for it in report.faults] == [(256, FaultKind.ARCHIVE)]
        assert [str(gap.span) for gap in report.gone] == ["positions 256 to 511"]
        assert report.checkpoints_checked == 1
        assert report.records_checked == reader.size - 256


@pytest.mark.parametrize("wrong", [(5, 0), (0, -5)])
def test_a_segment_that_says_other_times_than_its_records_is_found(log: Log, wrong: tuple[int, int]) -> None:
    first_ns, last_ns = START_NS + wrong[0], START_NS + 99 * SECOND_NS + wrong[1]
    fields = closed_fields(Span(0, 100), log.root_at(100), first_ns, last_ns)
    log.append([make_record(600, fields, kind=SEGMENT_CLOSED, name="log", wall_ns=LATER_NS)])
    assert [(it.position, it.kind) for it in check(log).faults] == [(500, FaultKind.SEGMENT)]
    archived(log, 0)
    assert [(it.position, it.kind) for it in check(log).faults] == [(500, FaultKind.SEGMENT)]


def test_another_logs_archive_is_not_taken_for_this_ones(log: Log, tmp_path: Path) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (path,) = archived(log, 0)
    with Log.open(tmp_path / "other.sqlite", projections=[Holders()]) as other:
        fill(other, 500)
        close_due_segments(other, POLICY, LATER_NS)
        (wrong,) = archived(other, 0)
    shutil.copy(wrong, path)
    with LogReader.open(log.path) as reader:
        assert [fault.kind for fault in check(reader).faults] == [FaultKind.ARCHIVE]


def test_what_a_crash_left_beside_the_log_is_swept_away(log: Log) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    directory = archives_of(log.path)
    directory.mkdir()
    left = [directory / f"{'0' * 12}-{'1' * 12}-{'a' * 16}.archive", directory / ".000000000000.partial"]
    kept = directory / "notes.txt"
    for file in (*left, kept):
        file.write_bytes(b"x")
    (path,) = archived(log, 0)
    assert sorted(directory.iterdir()) == sorted([path, kept])


def test_asking_again_makes_an_end_of_a_redaction_that_was_cut_short(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_due_segments(log, POLICY, LATER_NS)
    (old,) = archived(log, 0)
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        redacted(log, 42)
    assert old.exists()
    with pytest.raises(RetentionRefused, match="already"):
        redacted(log, 42)
    assert not old.exists()
    assert check(log).clean


def test_a_record_of_segments_that_cannot_be_is_not_appended(path: Path) -> None:
    wrong: list[tuple[int, tuple[Value, ...]]] = [
        (5, (1, 10, bytes(32), 0, 0)),
        (5, (0, 10, bytes(32), 0, 0)),
        (5, (0, 100, bytes(32), 0, 0)),
        (6, (0, 10, bytes(32))),
        (7, (0, 10, "why")),
        (2, (10_000, "why")),
        (2, ("x", "why")),
    ]
    for kind, fields in wrong:
        with Log.open(path, projections=[Holders()]) as log:
            if log.size == 0:
                log.append(many_held(20))
            with pytest.raises(AppendFailed):
                log.append([make_record(50, fields, kind=kind, name="log")])
    with LogReader.open(path) as reader:
        assert reader.size == 20


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 60)),
    st.tuples(st.just("checkpoint"), st.just(0)),
    st.tuples(st.sampled_from(["close", "close", "archive", "prune"]), st.integers(1, 80)),
    st.tuples(st.just("redact"), st.integers(0, 300)),
    st.tuples(st.just("reopen"), st.just(0)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=12, max_size=30))
def test_whatever_is_done_to_old_records_every_other_proof_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("life") / "log.sqlite"
    life = _Life(path)
    try:
        life.take("append", 30)
        for what, number in steps:
            life.take(what, number)
        life.check()
    finally:
        life.log.close()


def has_bytes(piece: Entry | Gap) -> bool:
    return isinstance(piece, Entry) and piece.data is not None


class _Life:
    """A log, and beside it what it must still say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log.open(path, projections=[Holders()])
        self.records: dict[int, Record] = {}
        self.gone: set[int] = set()
        self.notes: list[bytes] = []
        self.proofs: list[bytes] = []
        self.sequence = 0

    def take(self, what: str, number: int) -> None:
        with suppress(RetentionRefused):
            self._take(what, number)

    def _take(self, what: str, number: int) -> None:
        match what:
            case "append":
                records = many_held(number, self.sequence)
                records = [Record(1, 16, LATER_NS, None, it.source, it.nonce, it.fields) for it in records]
                self.sequence += number
                for position, record in zip(self.log.append(records), records, strict=True):
                    self.records[position] = record
            case "checkpoint":
                note = make_checkpoint(self.log, KEY, LATER_NS)
                self.notes.append(note)
                wanted = self.log.size * 2 // 3
                if wanted in self.records and wanted not in self.gone:
                    self.proofs.append(make_proof(self.log, wanted, note))
            case "close":
                first = self.log.life().closed_end
                close_segment(self.log, first + 1 + number % (self.log.size - first), LATER_NS)
            case "archive":
                archive_segment(self.log, self.some_segment(number), LATER_NS)
            case "prune":
                which = [self.some_segment(number)]
                (segment,) = prune_segments(self.log, which, "too old", LATER_NS, projections=[Holders()])
                self.gone.update(range(segment.span.first, segment.span.end))
            case "redact":
                position = number % self.log.size
                redact(self.log, position, "asked for", LATER_NS, projections=[Holders()])
                self.gone.add(position)
            case _:
                self.log.close()
                self.log = Log.open(self.path, projections=[Holders()])

    def some_segment(self, number: int) -> int:
        return number % (len(self.log.life().segments) or 1)

    def check(self) -> None:
        log = self.log
        report = verify(log, [Holders()], keys=[KEY.verifying_key], against=self.notes)
        assert report.clean, report.faults
        head = log.head()
        for note in self.notes:
            said = parse_checkpoint(note)
            way = merkle.consistency_proof(log, said.size, head.size)
            merkle.verify_consistency(said.size, said.root, head.size, head.root, way)
        for proof in self.proofs:
            verify_proof(proof, [KEY.verifying_key])
        for position, record in self.records.items():
            if position in self.gone:
                assert not [it for it in log.read_with_gaps(position, position + 1) if has_bytes(it)]
                continue
            entry = log.entry(position)
            assert entry.data == encode(record)
            way = merkle.inclusion_proof(log, position, head.size)
            merkle.verify_inclusion(entry.leaf, position, head.size, head.root, way)
        with LogReader.open(self.path) as reader:
            assert compare_projection(reader, Holders()) == []
