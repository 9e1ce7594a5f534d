"""Thirteen attacks on a real file, by someone who owns it: each is caught, and the undamaged file passes.

The attacker drops triggers and puts them back, edits rows, or makes a whole new file with our own code. He
has the signing key only where the test says so. What nobody could see in the file alone, a checkpoint kept
elsewhere shows: those tests show both, so that nobody believes the file alone to suffice.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eventlog import merkle
from eventlog.checkpoint import (
    CheckpointContradicted,
    key_change_fields,
    make_checkpoint,
    parse_checkpoint,
)
from eventlog.note import SigningKey
from eventlog.proof import ProofRefused, make_proof, verify_proof
from eventlog.record import CLOCK_STEPPED, KEY_CHANGED, SNAPSHOT_TAKEN, Record, encode
from eventlog.schema import expected_layout
from eventlog.snapshot import SnapshotDamaged
from eventlog.store import Log, LogReader
from eventlog.verify import Fault, FaultKind, Report, verify
from tests.unit.eventlog.samples import (
    SECOND_NS,
    START_NS,
    Holders,
    PortsSeen,
    held,
    make_record,
    take_snapshot,
)

KEY = SigningKey("log.example/gateway-1", bytes(range(32)))
ATTACKERS_KEY = SigningKey("log.example/gateway-1", bytes(range(1, 33)))
SNAPSHOT_AT = 250
SIZE = 301
CHECKPOINTED = (100, 200, 300)
VICTIM = 57

KEY_RECORD = make_record(0, key_change_fields(KEY.verifying_key, None), kind=KEY_CHANGED)
RECORDS = [KEY_RECORD, *(held(number, 7000 + number % 50) for number in range(1, SIZE - 1))]


@dataclass(frozen=True)
class Honest:
    """A log as the tracker wrote it, and what an auditor keeps elsewhere: the key, and checkpoints."""

    path: Path
    kept: bytes
    kept_earlier: bytes


def write_log(
    path: Path,
    records: Sequence[Record],
    key: SigningKey | None = KEY,
    checkpointed: Sequence[int] = CHECKPOINTED,
) -> list[bytes]:
    """A whole log, with a snapshot in its midst, and its checkpoints."""
    notes = []
    with Log.open(path, projections=[Holders()]) as log:
        for record in records:
            if log.size == SNAPSHOT_AT:
                take_snapshot(log)
            log.append([record])
            if key is not None and log.size in checkpointed:
                notes.append(make_checkpoint(log, key, record.wall_ns))
    return notes


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    path = tmp_path_factory.mktemp("honest") / "log.sqlite"
    notes = write_log(path, RECORDS)
    return Honest(path, notes[-1], notes[-2])


@pytest.fixture
def honest(master: Honest, tmp_path: Path) -> Honest:
    path = tmp_path / "log.sqlite"
    shutil.copy(master.path, path)
    return Honest(path, master.kept, master.kept_earlier)


def audit(path: Path, *against: bytes) -> Report:
    with LogReader.open(path) as reader:
        return verify(reader, [Holders()], keys=[KEY.verifying_key], against=against, folds=[PortsSeen()])


def first_fault(path: Path, *against: bytes) -> Fault:
    report = audit(path, *against)
    assert report.first is not None, "the attack went through"
    return report.first


@contextmanager
def forging(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    guards = [text for text in expected_layout().values() if text.startswith("CREATE TRIGGER")]
    for text in guards:
        connection.execute(f"DROP TRIGGER {text.split()[2]}")
    yield connection
    for text in guards:
        connection.execute(text)
    connection.close()


def copy_checkpoints(source: Path, target: Path, up_to: int = SIZE) -> None:
    """The old checkpoints, put into a new file."""
    with LogReader.open(source) as reader, forging(target) as connection:
        for at in reader.checkpoints():
            if at.size <= up_to:
                connection.execute(
                    "INSERT INTO log_checkpoints (size, made_ns, note) VALUES (?, ?, ?)",
                    (at.size, at.made_ns, at.note),
                )


def without_snapshot(path: Path) -> list[Record]:
    with LogReader.open(path) as reader:
        records = [entry.record for entry in reader.read()]
    return [record for record in records if record is not None and record.type != SNAPSHOT_TAKEN]


OTHER_HOLDER = replace(RECORDS[VICTIM], fields=(RECORDS[VICTIM].fields[0], b"\xc0\xa8\x00\xfe"))
REWRITTEN = [*RECORDS[:VICTIM], OTHER_HOLDER, *RECORDS[VICTIM + 1 :]]


def test_the_undamaged_log_passes_with_all_that_an_auditor_has(honest: Honest) -> None:
    report = audit(honest.path, honest.kept)
    assert report.clean, report.faults
    assert report.size == SIZE
    assert report.checkpoints_checked == 4
    assert report.unprotected == 1
    assert report.keys == (KEY.verifying_key,)
    assert report.projections_checked == ("holders",)


def test_the_undamaged_log_passes_without_a_key_at_its_own_word(honest: Honest) -> None:
    with LogReader.open(honest.path) as reader:
        report = verify(reader, [Holders()])
    assert report.clean
    assert report.keys == (KEY.verifying_key,)
    assert report.unprotected == 1


def test_1_an_edited_record_is_named(honest: Honest) -> None:
    with forging(honest.path) as connection:
        connection.execute(
            "UPDATE log_records SET bytes = ? WHERE position = ?", (encode(OTHER_HOLDER), VICTIM)
        )
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (VICTIM, FaultKind.LEAF)


def test_1_a_record_edited_with_its_leaf_and_its_projection_is_found_in_the_tree(honest: Honest) -> None:
    with forging(honest.path) as connection:
        data = encode(OTHER_HOLDER)
        connection.execute(
            "UPDATE log_records SET bytes = ?, leaf = ? WHERE position = ?",
            (data, merkle.leaf_hash(data), VICTIM),
        )
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (48, FaultKind.TREE)
    assert "48 to 63" in fault.detail


def test_2_a_deleted_record_is_named(honest: Honest) -> None:
    with forging(honest.path) as connection:
        connection.execute("DELETE FROM log_records WHERE position = ?", (VICTIM,))
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (VICTIM, FaultKind.MISSING)


def test_2_a_deleted_record_whose_successors_moved_up_is_found(honest: Honest) -> None:
    with forging(honest.path) as connection:
        connection.execute("DELETE FROM log_records WHERE position = ?", (VICTIM,))
        for position in range(VICTIM + 1, SIZE):
            connection.execute(
                "UPDATE log_records SET position = position - 1 WHERE position = ?", (position,)
            )
        connection.execute("UPDATE log_head SET size = size - 1")
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (48, FaultKind.TREE)


def test_3_an_inserted_record_is_found(honest: Honest) -> None:
    added = held(1000, 7007, b"\xc0\xa8\x00\xfe")
    added = replace(added, wall_ns=RECORDS[VICTIM].wall_ns)
    data = encode(added)
    with forging(honest.path) as connection:
        for position in range(SIZE - 1, VICTIM - 1, -1):
            connection.execute(
                "UPDATE log_records SET position = position + 1 WHERE position = ?", (position,)
            )
        connection.execute(
            "INSERT INTO log_records VALUES (?, ?, ?, 0, ?, 0, ?, ?)",
            (VICTIM, added.type, added.wall_ns, added.source.sequence, merkle.leaf_hash(data), data),
        )
        connection.execute("UPDATE log_head SET size = size + 1")
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (48, FaultKind.TREE)


def test_4_a_replaced_record_is_found(honest: Honest) -> None:
    other = held(2000, 7007, b"\xc0\xa8\x00\xfe")
    other = replace(other, wall_ns=RECORDS[VICTIM].wall_ns)
    data = encode(other)
    with forging(honest.path) as connection:
        connection.execute(
            "INSERT OR REPLACE INTO log_records VALUES (?, ?, ?, 0, ?, 0, ?, ?)",
            (VICTIM, other.type, other.wall_ns, other.source.sequence, merkle.leaf_hash(data), data),
        )
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (48, FaultKind.TREE)


def test_5_records_in_another_order_are_found(honest: Honest) -> None:
    with forging(honest.path) as connection:
        for position, becomes in ((VICTIM, -1), (VICTIM + 1, VICTIM), (-1, VICTIM + 1)):
            connection.execute("UPDATE log_records SET position = ? WHERE position = ?", (becomes, position))
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (48, FaultKind.TREE)


def test_6_a_truncated_log_is_found_by_its_own_checkpoints(honest: Honest, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.sqlite"
    write_log(shorter, without_snapshot(honest.path)[:220], key=None)
    copy_checkpoints(honest.path, shorter)
    fault = first_fault(shorter)
    assert (fault.position, fault.kind) == (220, FaultKind.CHECKPOINT)
    assert "over 300 records, the log has 220" in fault.detail


def test_6_a_log_truncated_with_its_checkpoints_is_found_by_a_kept_one(
    honest: Honest, tmp_path: Path
) -> None:
    shorter = tmp_path / "shorter.sqlite"
    write_log(shorter, without_snapshot(honest.path)[:220], key=None)
    copy_checkpoints(honest.path, shorter, up_to=220)
    assert audit(shorter).clean, "nobody can see it in the file alone"
    fault = first_fault(shorter, honest.kept)
    assert (fault.position, fault.kind) == (220, FaultKind.CHECKPOINT)


def test_7_a_log_rewritten_without_the_key_contradicts_its_checkpoints(
    honest: Honest, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.sqlite"
    write_log(forged, REWRITTEN, key=None)
    copy_checkpoints(honest.path, forged)
    fault = first_fault(forged)
    assert (fault.position, fault.kind) == (0, FaultKind.CHECKPOINT)
    assert "up to 99" in fault.detail


def test_7_a_log_rewritten_without_checkpoints_is_wholly_unprotected_and_found_by_a_kept_one(
    honest: Honest, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.sqlite"
    write_log(forged, REWRITTEN, key=None)
    report = audit(forged)
    assert report.unprotected == report.size == SIZE
    fault = first_fault(forged, honest.kept)
    assert fault.kind == FaultKind.CHECKPOINT


def test_8_a_log_rewritten_with_the_key_is_found_by_a_kept_checkpoint(honest: Honest, tmp_path: Path) -> None:
    forged = tmp_path / "forged.sqlite"
    write_log(forged, REWRITTEN)
    assert audit(forged).clean, "nobody can see it in the file alone"
    fault = first_fault(forged, honest.kept)
    assert fault.kind == FaultKind.CHECKPOINT
    assert "kept checkpoint 1 was signed over other records" in fault.detail


def test_9_a_fork_is_found_and_where_it_began_is_narrowed_down(honest: Honest, tmp_path: Path) -> None:
    fork = tmp_path / "fork.sqlite"
    other_branch = [*RECORDS[:240], *(held(number, 7049, b"fork") for number in range(240, SIZE - 1))]
    kept_of_fork = write_log(fork, other_branch)[-1]
    assert audit(fork).clean, "each branch is in itself a good log"
    fault = first_fault(fork, honest.kept)
    assert (fault.position, fault.kind) == (0, FaultKind.CHECKPOINT)
    fault = first_fault(fork, honest.kept, honest.kept_earlier)
    assert (fault.position, fault.kind) == (200, FaultKind.CHECKPOINT)
    assert "up to 299" in fault.detail
    # Two auditors who were shown different branches find out by comparing: same size, same signer, two roots.
    ours, theirs = parse_checkpoint(honest.kept), parse_checkpoint(kept_of_fork)
    assert ours.size == theirs.size
    assert ours.root != theirs.root
    assert first_fault(honest.path, kept_of_fork).kind == FaultKind.CHECKPOINT


def test_10_a_log_put_back_to_an_old_file_is_found_and_gets_no_new_checkpoint(
    honest: Honest, tmp_path: Path
) -> None:
    old = tmp_path / "old.sqlite"
    write_log(old, RECORDS[:220])
    assert audit(old).clean, "it was a good log then"
    fault = first_fault(old, honest.kept)
    assert (fault.position, fault.kind) == (220, FaultKind.CHECKPOINT)
    with Log.open(old, projections=[Holders()]) as log:
        for number in range(220, SIZE):
            log.append([held(number, 7049, b"later")])
        make_checkpoint(log, KEY, 1)
    assert first_fault(old, honest.kept_earlier, honest.kept).position == 200


def test_11_a_clock_set_back_is_found_however_well_the_rest_is_made(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    backdated = make_record(5000, (7007, b"evil"), wall_ns=START_NS + SECOND_NS)
    stepped = make_record(5001, kind=CLOCK_STEPPED, wall_ns=START_NS)
    with Log.open(path, projections=[Holders()]) as log:
        log.append(RECORDS[:100])
        # The tracker of someone who took our check out of it.
        log._tail = replace(log._tail, high_wall_ns=None)
        log.append([backdated])
        log._connection.execute("UPDATE log_head SET high_wall_ns = ?", (RECORDS[99].wall_ns,))
        make_checkpoint(log, KEY, 1)
    fault = first_fault(path)
    assert (fault.position, fault.kind) == (100, FaultKind.CLOCK)
    with Log.open(path, projections=[Holders()]) as log:
        log.append([stepped])
    assert audit(path).clock_steps == (101,), "who says that he set it back is not hidden either"


def test_12_a_poisoned_snapshot_is_refused_at_the_start_and_found(honest: Honest) -> None:
    with forging(honest.path) as connection:
        connection.execute("UPDATE log_snapshots SET state = ?", (b"[6666]",))
    with (
        Log.open(honest.path, projections=[Holders()]) as log,
        pytest.raises(SnapshotDamaged, match="another state"),
    ):
        log.latest_snapshot("ports", 1)
    fault = first_fault(honest.path)
    assert (fault.position, fault.kind) == (SNAPSHOT_AT, FaultKind.SNAPSHOT)


def test_12_a_snapshot_poisoned_with_the_key_is_found_by_folding(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with Log.open(path, projections=[Holders()]) as log:
        log.append(RECORDS[:50])
        take_snapshot(log, state=b"[6666]")
        make_checkpoint(log, KEY, 1)
    fault = first_fault(path)
    assert (fault.position, fault.kind) == (50, FaultKind.SNAPSHOT)


def swap_by_rewriting(path: Path) -> None:
    """Everything again, in the name of the attacker's key from the first record on."""
    first = replace(KEY_RECORD, fields=key_change_fields(ATTACKERS_KEY.verifying_key, None))
    write_log(path, [first, *REWRITTEN[1:]], key=ATTACKERS_KEY)


def swap_in_silence(path: Path) -> None:
    """The records as they were up to a point, the checkpoints signed by another key."""
    write_log(path, REWRITTEN, key=ATTACKERS_KEY)


def swap_by_record(path: Path) -> None:
    """A key change that the old key did not vouch for, and its checkpoints."""
    change = make_record(
        5000, key_change_fields(ATTACKERS_KEY.verifying_key, ATTACKERS_KEY), kind=KEY_CHANGED
    )
    change = replace(change, wall_ns=RECORDS[99].wall_ns)
    write_log(path, [*RECORDS[:100], change, *REWRITTEN[100:]], key=ATTACKERS_KEY)


@pytest.mark.parametrize(
    ("swap", "position", "kind"),
    [
        (swap_by_rewriting, 0, FaultKind.KEY),
        (swap_in_silence, None, FaultKind.CHECKPOINT),
        (swap_by_record, 100, FaultKind.KEY),
    ],
)
def test_13_a_swapped_key_is_not_believed(
    tmp_path: Path, honest: Honest, swap: Callable[[Path], None], position: int | None, kind: FaultKind
) -> None:
    forged = tmp_path / "forged.sqlite"
    swap(forged)
    report = audit(forged)
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (position, kind)
    assert report.unprotected == report.size
    assert not audit(forged, honest.kept).clean
    with LogReader.open(forged) as reader:
        latest = reader.latest_checkpoint()
        assert latest is not None
        proof = make_proof(reader, VICTIM, latest.note)
    with pytest.raises(ProofRefused):
        verify_proof(proof, [KEY.verifying_key])


def test_13_a_key_changed_with_the_old_keys_word_is_believed_and_the_old_one_no_longer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.sqlite"
    new = ATTACKERS_KEY
    change = make_record(5000, key_change_fields(new.verifying_key, KEY), kind=KEY_CHANGED)
    change = replace(change, wall_ns=RECORDS[99].wall_ns)
    with Log.open(path, projections=[Holders()]) as log:
        log.append(RECORDS[:100])
        make_checkpoint(log, KEY, 1)
        log.append([change])
        make_checkpoint(log, new, 2)
    report = audit(path)
    assert report.clean, report.faults
    assert report.keys == (KEY.verifying_key, new.verifying_key)
    with Log.open(path, projections=[Holders()]) as log:
        log.append(RECORDS[100:110])
        make_checkpoint(log, KEY, 3)
    fault = first_fault(path)
    assert fault.kind == FaultKind.KEY
    assert "not in force over 111 records" in fault.detail


def test_13_a_key_that_is_no_longer_in_force_vouches_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    second, third = ATTACKERS_KEY, SigningKey("log.example/gateway-1", bytes(range(2, 34)))
    wall_ns = RECORDS[9].wall_ns
    changes = [
        make_record(5000, key_change_fields(second.verifying_key, KEY), kind=KEY_CHANGED, wall_ns=wall_ns),
        make_record(5001, key_change_fields(third.verifying_key, KEY), kind=KEY_CHANGED, wall_ns=wall_ns),
    ]
    write_log(path, [*RECORDS[:10], *changes], key=None)
    fault = first_fault(path)
    assert (fault.position, fault.kind) == (11, FaultKind.KEY)


def test_the_tracker_signs_nothing_over_a_forged_past(honest: Honest, tmp_path: Path) -> None:
    forged = tmp_path / "forged.sqlite"
    write_log(forged, REWRITTEN, key=None)
    copy_checkpoints(honest.path, forged)
    with Log.open(forged, projections=[Holders()]) as log, pytest.raises(CheckpointContradicted):
        make_checkpoint(log, KEY, 1)


def test_since_a_checkpoint_only_the_rest_is_read_and_an_attack_before_it_shows_in_the_tree(
    honest: Honest,
) -> None:
    with LogReader.open(honest.path) as reader:
        at_200 = reader.checkpoints()[1].note
        report = verify(reader, keys=[KEY.verifying_key], since=at_200)
    assert report.clean, report.faults
    assert (report.first_checked, report.records_checked, report.unprotected) == (200, 101, 1)
    with forging(honest.path) as connection:
        connection.execute("UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 4 AND number = 3")
        connection.execute("UPDATE log_records SET type = 17 WHERE position = 260")
    with LogReader.open(honest.path) as reader:
        report = verify(reader, keys=[KEY.verifying_key], since=at_200)
    kinds = [(fault.position, fault.kind) for fault in report.faults]
    assert kinds == [(200, FaultKind.CHECKPOINT), (260, FaultKind.COLUMNS)]


def test_since_a_checkpoint_that_the_file_has_lost_only_the_rest_is_unprotected(honest: Honest) -> None:
    with LogReader.open(honest.path) as reader:
        at_200 = reader.checkpoints()[1].note
    with forging(honest.path) as connection:
        connection.execute("DELETE FROM log_checkpoints")
    with LogReader.open(honest.path) as reader:
        assert verify(reader, keys=[KEY.verifying_key], since=at_200).unprotected == SIZE - 200
        assert verify(reader, keys=[KEY.verifying_key]).unprotected == SIZE


def test_since_a_checkpoint_an_earlier_kept_one_is_still_held_against_the_log(
    honest: Honest, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.sqlite"
    notes = write_log(forged, REWRITTEN)
    with LogReader.open(honest.path) as reader:
        earliest = reader.checkpoints()[0].note
    with LogReader.open(forged) as reader:
        believed = verify(reader, keys=[KEY.verifying_key], since=notes[-1])
        report = verify(reader, keys=[KEY.verifying_key], since=notes[-1], against=[earliest])
    assert believed.clean
    assert believed.checkpoints_checked == 3
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (0, FaultKind.CHECKPOINT)


def test_since_a_checkpoint_over_more_than_there_is_says_so(honest: Honest, tmp_path: Path) -> None:
    old = tmp_path / "old.sqlite"
    write_log(old, RECORDS[:220])
    with LogReader.open(old) as reader:
        report = verify(reader, keys=[KEY.verifying_key], since=honest.kept)
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (220, FaultKind.CHECKPOINT)
