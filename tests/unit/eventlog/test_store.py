"""The writer: a batch is there whole or not at all, once, at the end, by one process."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from eventlog import merkle
from eventlog.record import CLOCK_STEPPED, RecordError, encode
from eventlog.store import (
    Answer,
    AppendFailed,
    Forget,
    Log,
    LogBusy,
    LogLocked,
    LogReader,
    LogUnreadable,
    UnexpectedPosition,
)
from tests.unit.eventlog.samples import (
    SECOND_NS,
    START_NS,
    Holders,
    held,
    make_log,
    make_record,
    many_held,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def test_what_was_appended_is_read_again_after_reopening(path: Path) -> None:
    records = many_held(40)
    with Log.open(path) as log:
        assert log.append(records[:25]) == range(25)
        assert log.append(records[25:]) == range(25, 40)
    with LogReader.open(path) as reader:
        assert [entry.record for entry in reader.read()] == records
        assert [entry.position for entry in reader.read(7, 9)] == [7, 8]
        assert reader.entry(3).leaf == merkle.leaf_hash(encode(records[3]))
        with pytest.raises(IndexError):
            reader.entry(40)


def test_more_records_than_are_read_at_once_come_in_order(path: Path) -> None:
    records = many_held(2500)
    with Log.open(path) as log:
        log.append(records)
        assert [entry.record for entry in log.read(3)] == records[3:]


def test_head_and_old_roots_are_the_tree_over_the_bytes(path: Path) -> None:
    records = many_held(75)
    frontier = merkle.Frontier()
    roots = [frontier.root()]
    for record in records:
        frontier.append(merkle.leaf_hash(encode(record)))
        roots.append(frontier.root())
    with Log.open(path) as log:
        for first in range(0, 75, 10):
            log.append(records[first : first + 10])
            assert log.head().root == roots[log.size]
        assert [log.root_at(size) for size in range(76)] == roots
        expected = log.head()
    with Log.open(path) as log, LogReader.open(path) as reader:
        assert log.head() == reader.head() == expected
        log.append([held(75)])
        assert reader.root_at(75) == roots[75]
        assert reader.root_at(76) == log.head().root


def test_a_record_whose_source_is_there_already_is_left_out(path: Path) -> None:
    with Log.open(path) as log:
        log.append([held(1), held(2)])
        assert log.append([held(2), held(3)]) == range(2, 3)
        assert log.append([held(1)]) == range(3, 3)
        assert log.size == 3
    with Log.open(path) as log:
        assert log.append([held(3)]) == range(3, 3)
        assert log.append([make_record(3, part=1)]) == range(3, 4)
        assert log.append([make_record(3, incarnation=9)]) == range(4, 5)
        assert log.append([make_record(3, name="gateway-2")]) == range(5, 6)


def test_an_expected_position_is_held_to(path: Path) -> None:
    with Log.open(path) as log:
        log.append(many_held(3), expected_position=0)
        with pytest.raises(UnexpectedPosition) as refused:
            log.append([held(9)], expected_position=2)
        assert (refused.value.expected, refused.value.size) == (2, 3)
        assert log.append([held(9)], expected_position=3) == range(3, 4)


def test_values_that_are_no_record_are_refused_before_anything_is_written(path: Path) -> None:
    with Log.open(path) as log:
        with pytest.raises(RecordError):
            log.append([held(1), make_record(2, kind=-1)])
        assert log.append([held(1)]) == range(1)


def test_answers_outlive_a_restart_and_the_first_one_counts(path: Path) -> None:
    with Log.open(path) as log:
        log.append([held(1)], answers=[Answer("gw", 5, 1, b"granted")])
        log.append([], answers=[Answer("gw", 5, 2, b"refused"), Answer("gw", 5, 1, b"changed my mind")])
    with Log.open(path) as log:
        assert log.answer("gw", 5, 1) == b"granted"
        assert log.answer("gw", 5, 2) == b"refused"
        assert log.answer("gw", 5, 3) is None
        assert log.answer("gw", 6, 1) is None
        assert log.answer("other", 5, 1) is None


def test_forgotten_answers_go_but_never_a_workers_newest(path: Path) -> None:
    with Log.open(path) as log:
        log.append([], answers=[Answer("gw", 9, sequence, b"%d" % sequence) for sequence in range(1, 6)])
        log.append([], answers=[Answer("other", 9, 1, b"x")], forget_answers=[Forget("gw", 9, 3)])
        assert [log.answer("gw", 9, sequence) for sequence in range(1, 6)] == [None, None, None, b"4", b"5"]
        log.append([], forget_answers=[Forget("gw", 9, 99), Forget("other", 9, 99)])
        other = Answer("other", 9, 1, b"x")
        assert log.latest_answers() == [Answer("gw", 9, 5, b"5"), other]
        log.append([], answers=[Answer("gw", 7, 1, b"new outbox, its clock was behind")])
        log.append([], forget_answers=[Forget("gw", 9, 99)])
        assert log.answer("gw", 9, 5) is None
        assert log.latest_answers() == [Answer("gw", 7, 1, b"new outbox, its clock was behind"), other]


def test_a_failed_append_takes_its_answers_with_it(path: Path) -> None:
    with Log.open(path) as log, pytest.raises(AppendFailed):
        log.append([held(1), held(1)], answers=[Answer("gw", 5, 1, b"granted")], notes={"alive": b"1"})
    with LogReader.open(path) as reader:
        assert reader.size == 0
        assert reader.answer("gw", 5, 1) is None
        assert reader.note("alive") is None


def test_notes_are_kept_and_replaced(path: Path) -> None:
    with Log.open(path) as log:
        log.append([], notes={"alive": b"1"})
        log.append([held(1)], notes={"alive": b"2"})
    with LogReader.open(path) as reader:
        assert reader.note("alive") == b"2"


def test_a_clock_set_back_needs_a_record_that_says_so(path: Path) -> None:
    with Log.open(path) as log:
        log.append([held(100)])
        log.append([make_record(101, wall_ns=START_NS + 99 * SECOND_NS)])
        assert log.last_wall_ns == START_NS + 100 * SECOND_NS
        with pytest.raises(AppendFailed, match="CLOCK_STEPPED"):
            log.append([make_record(102, wall_ns=START_NS + 98 * SECOND_NS)])
    with Log.open(path) as log:
        assert log.last_wall_ns == START_NS + 100 * SECOND_NS
        log.append([make_record(103, kind=CLOCK_STEPPED, wall_ns=5), make_record(104, wall_ns=7)])
        assert log.last_wall_ns == 7
    with LogReader.open(path) as reader:
        assert reader.last_wall_ns == 7


def test_the_position_of_a_moment_is_found_across_clock_steps(path: Path) -> None:
    with Log.open(path) as log:
        assert log.position_at(START_NS) == 0
        log.append([make_record(number, wall_ns=1000 + 10 * number) for number in range(20)])
        log.append([make_record(20, kind=CLOCK_STEPPED, wall_ns=500)])
        log.append([make_record(number, wall_ns=500 + 10 * (number - 20)) for number in range(21, 30)])
        for moment, size in ((0, 0), (499, 0), (500, 21), (515, 22), (590, 30), (10**6, 30)):
            assert log.position_at(moment) == size


def test_a_second_writer_is_refused_with_the_first_ones_process_named(path: Path) -> None:
    with Log.open(path) as log:
        log.append([held(1)])
        with pytest.raises(LogLocked, match=f"process {os.getpid()} "):
            Log.open(path)
        link = path.with_name("link.sqlite")
        link.symlink_to(path)
        with pytest.raises(LogLocked):
            Log.open(link)
    with Log.open(path) as log:
        assert log.size == 1


def test_a_killed_writers_lock_is_free(path: Path) -> None:
    script = f"from eventlog.store import Log; import os; Log.open({str(path)!r}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with Log.open(path) as log:
        assert log.append([held(1)]) == range(1)


def test_an_append_without_its_lock_file_fails(path: Path) -> None:
    with Log.open(path) as log:
        path.with_name(path.name + ".lock").unlink()
        with pytest.raises(AppendFailed, match="lock"):
            log.append([held(1)])


def test_an_append_to_a_log_that_was_replaced_fails(path: Path, tmp_path: Path) -> None:
    other = make_log(tmp_path / "other.sqlite", 3)
    with Log.open(path) as log:
        log.append([held(1)])
        other.rename(path)
        with pytest.raises(AppendFailed, match="another file"):
            log.append([held(2)])


def test_an_append_after_somebody_elses_fails(path: Path) -> None:
    with Log.open(path) as log:
        log.append([held(1)])
        stranger = sqlite3.connect(path)
        stranger.execute("UPDATE log_head SET size = 9")
        stranger.commit()
        stranger.close()
        with pytest.raises(AppendFailed, match="somebody else"):
            log.append([held(2)])


def test_a_log_that_failed_takes_nothing_more_and_lets_the_next_writer_in(path: Path) -> None:
    with Log.open(path) as log:
        with pytest.raises(AppendFailed):
            log.append([held(1), held(1)])
        with pytest.raises(AppendFailed, match="closed"):
            log.append([held(2)])
        with Log.open(path) as next_log:
            assert next_log.append([held(2)]) == range(1)


def test_a_lock_held_by_another_program_makes_it_busy_and_the_append_can_be_repeated(path: Path) -> None:
    with Log.open(path, busy_s=0.05) as log:
        shell = sqlite3.connect(path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogBusy):
            log.append([held(1)])
        shell.execute("ROLLBACK")
        shell.close()
        assert log.append([held(1)]) == range(1)


def test_a_long_reader_sees_one_state_and_holds_nobody_up(path: Path) -> None:
    with Log.open(path, projections=[Holders()], busy_s=0.05) as log:
        log.append(many_held(10))
        with LogReader.open(path) as reader, reader.snapshot():
            before = reader.head()
            for first in range(10, 400, 10):
                log.append(many_held(10, first))
            assert reader.head() == before
            assert len(list(reader.read())) == 10
        with LogReader.open(path) as reader:
            assert reader.size == 400


def test_a_full_disk_leaves_nothing_and_the_log_works_again_when_there_is_room(tmp_path: Path) -> None:
    # A file-size limit is as good as a full disk: the write fails for real, in the middle of a batch.
    path = tmp_path / "log.sqlite"
    script = f"""
        import resource, signal, sys
        from eventlog.store import Answer, AppendFailed, Log
        from tests.unit.eventlog.samples import Holders, many_held
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = Log.open({str(path)!r}, projections=[Holders()])
        log.append(many_held(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for first in range(100, 100_000, 100):
            try:
                log.append(many_held(100, first), answers=[Answer("gw", 1, first, b"granted")])
            except AppendFailed as failed:
                print(first, failed)
                sys.exit(1)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stderr
    acknowledged = int(ended.stdout.split()[0])
    with Log.open(path, projections=[Holders()]) as log:
        assert log.size in (acknowledged, acknowledged + 100)
        assert log.root_at(log.size) == log.head().root
        size = log.size
        assert log.append([held(10**6)]) == range(size, size + 1)


INSERT = (
    "{} INTO log_records SELECT {}, type, 0, source, {}, part, leaf, bytes"
    " FROM log_records WHERE position = 3"
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_records SET wall_ns = 0 WHERE position = 3",
        "UPDATE OR REPLACE log_records SET position = 4 WHERE position = 3",
        "DELETE FROM log_records WHERE position = 9",
        INSERT.format("INSERT", 3, "99"),
        INSERT.format("INSERT OR REPLACE", 3, "99"),
        INSERT.format("INSERT OR REPLACE", 40, "sequence"),
        INSERT.format("INSERT", 41, "99"),
        INSERT.format("INSERT", -1, "99"),
        "UPDATE log_sources SET name = 'somebody else'",
        "DELETE FROM log_sources",
        "INSERT OR REPLACE INTO log_sources VALUES (0, 'somebody else', 1)",
        "INSERT OR REPLACE INTO log_sources SELECT 7, name, incarnation FROM log_sources",
        "UPDATE log_nodes SET hash = zeroblob(32)",
        "DELETE FROM log_nodes",
        "INSERT OR REPLACE INTO log_nodes VALUES (4, 0, zeroblob(32))",
    ],
)
def test_the_triggers_refuse_every_change_of_what_is_there(path: Path, statement: str) -> None:
    with Log.open(path) as log:
        log.append(many_held(40))
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="log"):
        connection.execute(statement)
    connection.close()


def test_a_query_cannot_write(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append([held(1)])
        assert log.query(
            "SELECT port FROM holders WHERE holder = :holder", {"holder": b"\xc0\xa8\x00\x02"}
        ) == [(7648,)]
        assert log.query_rows("SELECT port, user_name FROM holders") == [{"port": 7648, "user_name": None}]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            log.query("DELETE FROM holders")
        log.append([held(2)])


def test_a_new_log_is_for_its_owner_only(path: Path) -> None:
    Log.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_no_bytes_becomes_a_log(path: Path) -> None:
    path.touch()
    with Log.open(path) as log:
        assert log.append([held(1)]) == range(1)


def test_what_is_no_log_is_not_opened(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database" * 1000)
    foreign = tmp_path / "foreign.sqlite"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE letters (letter)")
    connection.close()
    for path in (text, foreign, tmp_path / "missing" / "log.sqlite", tmp_path):
        with pytest.raises(LogUnreadable):
            Log.open(path)
        with pytest.raises(LogUnreadable):
            LogReader.open(path)
    with pytest.raises(LogUnreadable, match="does not exist"):
        LogReader.open(tmp_path / "missing.sqlite")
    assert foreign.stat().st_size == 8192


def test_a_log_of_a_newer_layout_is_not_opened(path: Path) -> None:
    make_log(path, 3)
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('eventlog', 'quantum_tables')"
    )
    connection.commit()
    connection.close()
    for opened in (Log, LogReader):
        with pytest.raises(LogUnreadable, match="quantum_tables"):
            opened.open(path)


def test_a_log_whose_tree_is_damaged_is_not_written_to(path: Path) -> None:
    make_log(path, 40)
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER log_nodes_never_change")
    connection.execute("UPDATE log_nodes SET hash = zeroblob(32) WHERE number = 1")
    connection.commit()
    connection.close()
    with pytest.raises(LogUnreadable, match="damaged"):
        Log.open(path, projections=[Holders()])
    with (path.with_name(path.name + ".lock")).open() as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and nobody is locked out by the refusal
