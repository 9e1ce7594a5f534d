"""A damaged or forged file: every command says so in a line, with 1 or 2, or answers; none breaks down."""

import random
import sqlite3
import struct
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.store import AppendFailed, Log
from tests.unit.eventlog.samples import many_held
from tests.unit.tools.sample_log import write_sample_log
from tools.cli import main
from tools.tracker import mend_of
from tracker.audit import ALIVE
from tracker.projections import PROJECTIONS

AT: Final = "2026-05-04T16:02Z"
COMMANDS: Final = (
    ("who", "--port", "7648"),
    ("who", "--at", AT),
    ("holds",),
    ("explain", "1"),
    ("export",),
    ("export", "--format", "ipfix"),
    ("log", "show"),
    ("log", "stats"),
    ("replay",),
    ("replay", "--at", AT),
    ("verify",),
    ("verify", "--exclusive", "--json"),
    ("prove", "7", "-o", "-"),
    ("archive", "--list"),
)
FORGED: Final = {
    "a sign of life that is none": "UPDATE log_notes SET value = x'00'",
    "a sign of life without end": "UPDATE log_notes SET value = x'8000000000000000ffffffffffffffff'",
    "two heads": "INSERT INTO log_head SELECT 2, 0, root, 0 FROM log_head",
    "no head": "DELETE FROM log_head",
    "a checkpoint that is none": "INSERT INTO log_checkpoints VALUES (99, 5, 5, x'00')",
    "a binding that ended as none does": "UPDATE bindings SET reason = '9999', holder = x'01'",
    "an outage of no kind": "UPDATE outages SET kind = 'none', since_ns = NULL, until_ns = NULL",
    "addresses that are none": "UPDATE bindings SET public_address = x'', mac = x'01', destination = x'02'",
    "no hashes": "DELETE FROM log_nodes",
    "no records": "DELETE FROM log_records",
    "a leaf of one octet": "UPDATE log_records SET leaf = x'00'",
    "a snapshot that is none": "INSERT INTO log_snapshots VALUES ('tracker', 5, 1, 6, x'00')",
    "a removal that no record tells of": "INSERT INTO log_removals VALUES (9, 2, 3, 4)",
    "a newer version's": "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('eventlog', 'z')",
    "an older version's": "DELETE FROM _sqlite_migrations",
    "no tables": "DROP TABLE bindings",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_sample_log(tmp_path_factory.mktemp("whole") / "log.sqlite")
    with Log.open(path, projections=PROJECTIONS) as log:
        last_ns = log.last_wall_ns or 0
        log.append([], notes={ALIVE: struct.pack(">QQ", last_ns, last_ns)})
        make_checkpoint(log, SigningKey("log.example", bytes(32)), last_ns)
    return path.read_bytes()


def breakdowns(path: Path) -> list[tuple[tuple[str, ...], BaseException]]:
    found: list[tuple[tuple[str, ...], BaseException]] = []
    for words in COMMANDS:
        result = CliRunner().invoke(main, [*words, "--log", str(path)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            found.append((words, result.exception))
        assert result.exit_code in (0, 1, 2)
    return found


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_breaks_no_command(tmp_path: Path, whole: bytes, case: str) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(whole)
    with sqlite3.connect(path, isolation_level=None) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(FORGED[case])
    connection.close()
    assert breakdowns(path) == []


@pytest.mark.parametrize("seed", range(12))
def test_noise_in_a_file_breaks_no_command(tmp_path: Path, whole: bytes, seed: int) -> None:
    chance = random.Random(seed)
    noisy = bytearray(whole)
    pages = (0, chance.randrange(len(whole) // 4096)) if seed % 2 else (0,)
    for page in pages:  # The first one says what all others are.
        for _ in range(chance.choice((1, 3, 20))):
            noisy[page * 4096 + chance.randrange(100, 4096)] = chance.randrange(256)
    path = tmp_path / "log.sqlite"
    path.write_bytes(noisy)
    assert breakdowns(path) == []


def test_a_tracker_that_ends_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with Log.open(path) as log:
        log._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(AppendFailed, match="full") as full:
            log.append(many_held(500))
    with Log.open(path) as log:
        path.rename(tmp_path / "elsewhere.sqlite")
        with pytest.raises(AppendFailed, match="it is gone") as gone:
            log.append(many_held(5))
    assert mend_of(full.value) == "start it again when there is room"
    assert "porthold verify" in mend_of(gone.value)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", str(2**63)),
        ("holds", "--limit", str(2**63)),
        ("log", "show", "--from", str(2**70)),
        ("log", "show", "--to", str(2**70)),
        ("log", "tail", "--from", str(-(2**70))),
        ("replay", "--to", str(2**70)),
        ("replay", "--diff", "0", str(2**63)),
        ("prove", str(2**70)),
        ("redact", str(2**63), "--reason", "why"),
        ("redact", str(2**63 - 2), "--reason", "why"),
        ("archive", "--segment", str(2**70)),
        ("prune", "--segment", str(-(2**70)), "--reason", "why"),
    ],
)
def test_a_number_beyond_all_numbers_breaks_no_command(
    tmp_path: Path, whole: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(whole)
    result = CliRunner().invoke(main, [*words, "--log", str(path)])
    assert result.exit_code in {0, 1, 2}
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
