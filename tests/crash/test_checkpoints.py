"""Trackers that sign, and workers that keep what was signed: all real processes."""

import json
import logging
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eventlog.checkpoint import LATEST, parse_checkpoint
from eventlog.note import SigningKey, VerifyingKey, read_key_file, write_key_file
from eventlog.store import LogReader
from eventlog.verify import FaultKind, Report, verify
from tests.crash.place import Place, answers, claim, fill, hole, opening, settle
from tools.cli import main
from tracker.client import Keeper, TrackerClient, ask
from tracker.clock import read_clock
from tracker.events import KeyChanged, SnapshotTaken, TrackerStarted, TrackerStopped
from tracker.image import Fold
from tracker.keeper import EVIDENCE
from tracker.messages import (
    CheckpointMade,
    GetCheckpoint,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    Protection,
)
from tracker.projections import PROJECTIONS

NAME = "log.example/gateway-1"
NEVER = {"checkpoint_every_records": 10**6, "checkpoint_every_s": 3600.0}


@pytest.fixture
def key(place: Place) -> VerifyingKey:
    return made_key(place, "key")


def made_key(place: Place, file: str, name: str = NAME) -> VerifyingKey:
    key = SigningKey.generate(name)
    write_key_file(place.directory / file, key)
    return key.verifying_key


def configure(place: Place, key: str = "key", /, **settings: object) -> Path:
    directory = place.directory / "checkpoints"
    directory.mkdir(exist_ok=True)
    wanted = {"signing_key": place.directory / key, "checkpoint_directory": directory, **settings}
    place.write_configuration(**wanted)
    return directory


def porthold(place: Place, *words: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--config", str(place.configuration)])


def audit(place: Place, *keys: VerifyingKey, against: tuple[bytes, ...] = ()) -> Report:
    with LogReader.open(place.log) as log:
        return verify(log, PROJECTIONS, keys=keys, against=against, folds=[Fold()])


def sizes(place: Place) -> list[int]:
    with LogReader.open(place.log) as log:
        return [it.size for it in log.checkpoints()]


def wait(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- signing ---------------------------------------------------------------------------------------------


def test_a_log_with_a_key_begins_with_it_and_without_one_nothing_is_protected(
    place: Place, key: VerifyingKey
) -> None:
    place.start()
    assert place.status().protection is None
    assert ask(place.operator_endpoint, "operator", MakeCheckpoint(), 5) == NoCheckpoint(
        "no key signs this log"
    )
    code, said = place.kill(signal.SIGTERM)
    assert (code, "nothing protects this log" in said) == (0, True)
    assert audit(place).unprotected == audit(place).size
    place.log.unlink()
    configure(place, **NEVER)
    place.start()
    assert place.status().protection == Protection(str(key), 0, None)
    assert place.events()[0] == KeyChanged(str(key), None)
    assert isinstance(place.events()[1], TrackerStarted)


def test_checkpoints_come_every_so_many_records_and_go_into_the_directory(
    place: Place, key: VerifyingKey
) -> None:
    directory = configure(place, checkpoint_every_records=5, checkpoint_every_s=3600.0)
    place.start()
    client = place.client()
    settle(client, opening())
    fill(client, 12)
    client.close()
    place.kill()
    assert len(sizes(place)) >= 2
    assert all(
        5 <= later - earlier <= 7 for earlier, later in zip(sizes(place), sizes(place)[1:], strict=False)
    )
    report = audit(place, key)
    assert report.clean, report.faults
    assert report.unprotected < 5
    assert report.checkpoints_checked == len(sizes(place))
    with LogReader.open(place.log) as log:
        kept = {f"{it.size:020}.checkpoint": it.note for it in log.checkpoints()}
        kept[LATEST] = log.checkpoints()[-1].note
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == kept


def test_checkpoints_come_after_so_many_seconds_if_there_is_something_new(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, checkpoint_every_s=0.2)
    place.start()
    wait(lambda: sizes(place) == [2])
    time.sleep(0.8)
    assert sizes(place) == [2]
    client = place.client()
    settle(client, hole(1))
    client.close()
    wait(lambda: sizes(place) == [2, 3])
    protection = place.status().protection
    assert protection is not None
    assert (protection.size, place.status().records) == (3, 3)
    assert audit(place, key).unprotected == 0


def test_an_operator_has_one_made_now_and_nothing_new_gives_the_same_again(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    first, second = (porthold(place, "checkpoint", "--json") for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    said = json.loads(first.stdout)
    assert (said["origin"], said["size"], sizes(place)) == (NAME, 2, [2])
    kept = place.directory / "kept"
    assert "over 2 records" in porthold(place, "checkpoint", "-o", kept).stdout
    assert kept.read_text() == said["note"]
    assert audit(place, key, against=(kept.read_bytes(),)).checkpoints_checked == 2


def test_no_tracker_or_no_key_is_1(place: Place) -> None:
    result = porthold(place, "checkpoint", "--timeout", "0.1")
    assert (result.exit_code, "start `porthold tracker`" in result.stderr) == (1, True)
    place.start()
    result = porthold(place, "checkpoint")
    assert (result.exit_code, "no key signs this log" in result.stderr) == (1, True)


def test_a_reader_may_have_the_checkpoint_and_not_order_one(place: Place, key: VerifyingKey) -> None:
    configure(place, **NEVER)
    place.start()
    assert ask(place.reader_endpoint, "reader", GetCheckpoint(0), 5) == NoCheckpoint("none is made yet")
    assert isinstance(ask(place.reader_endpoint, "reader", MakeCheckpoint(), 5), NotAllowed)
    made = ask(place.operator_endpoint, "operator", MakeCheckpoint(), 5)
    assert ask(place.reader_endpoint, "reader", GetCheckpoint(0), 5) == made
    counters = {it.name: it.value for it in place.status().counters}
    assert {name: counters[name] for name in counters if name.startswith("refused")} == {"refused: role": 1}


def test_a_clean_stop_leaves_nothing_unprotected(place: Place, key: VerifyingKey) -> None:
    directory = configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    report = audit(place, key)
    assert (report.clean, report.unprotected, report.size) == (True, 0, 4)
    assert parse_checkpoint((directory / LATEST).read_bytes()).size == 4
    assert [type(event) for event in place.events()[2:]] == [TrackerStopped, SnapshotTaken]


def test_a_directory_that_cannot_be_written_stops_nobody(place: Place, key: VerifyingKey) -> None:
    directory = configure(place, **NEVER)
    place.start()
    directory.rmdir()
    assert porthold(place, "checkpoint").exit_code == 0
    client = place.client()
    settle(client, hole(1))
    client.close()
    directory.mkdir()
    assert porthold(place, "checkpoint").exit_code == 0
    assert parse_checkpoint((directory / LATEST).read_bytes()).size == 3
    code, said = place.kill(signal.SIGTERM)
    assert (code, "it is tried again" in said) == (0, True)


# ---- keys ------------------------------------------------------------------------------------------------


def test_a_new_key_that_the_old_one_vouches_for_is_believed(place: Place, key: VerifyingKey) -> None:
    configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    new = made_key(place, "new")
    configure(place, "new", previous_signing_key=place.directory / "key", **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    changes = [event for event in place.events() if isinstance(event, KeyChanged)]
    assert [change.key for change in changes] == [str(key), str(new)]
    report = audit(place, key)
    assert report.clean, report.faults
    assert (report.keys, report.unprotected) == ((key, new), 0)
    place.start()  # the same key again: no change
    place.kill(signal.SIGTERM)
    assert sum(isinstance(event, KeyChanged) for event in place.events()) == 2


def test_a_swapped_key_is_a_record_and_not_believed_unless_it_is_brought(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    new = made_key(place, "new")
    configure(place, "new", **NEVER)
    place.start()
    _, said = place.kill(signal.SIGTERM)
    assert "auditors have to be told of it" in said
    report = audit(place, key)
    assert report.first is not None
    assert (report.first.kind, report.first.position) == (FaultKind.KEY, 4)
    assert audit(place, key, new).clean


def test_a_key_that_others_could_read_or_exchange_or_of_another_log_is_refused_at_start(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    made_key(place, "other", "log.example/gateway-2")
    configure(place, "other", **NEVER)
    assert refused(place, 2) == f"this log is called {NAME}, and the signing key is log.example/gateway-2's"
    configure(place, **NEVER)
    (place.directory / "key").chmod(0o640)
    assert "others may read it" in refused(place, 2)
    (place.directory / "key").chmod(0o600)
    place.directory.chmod(0o777)
    assert "others may write there and exchange the key" in refused(place, 2)
    place.directory.chmod(0o700)
    (place.directory / "key").unlink()
    assert "No such file" in refused(place, 2)


def refused(place: Place, code: int) -> str:
    """What a tracker says that does not start."""
    process = place.begin()
    _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said.splitlines()[-1].partition("porthold tracker: ")[2]


# ---- a log that is not its own past ----------------------------------------------------------------------


def test_a_log_put_back_from_an_older_copy_is_refused_while_the_checkpoints_know_better(
    place: Place, key: VerifyingKey
) -> None:
    directory = configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    shutil.copy(place.log, place.directory / "old")
    place.start()
    place.kill(signal.SIGTERM)
    shutil.copy(place.directory / "old", place.log)
    said = refused(place, 1)
    assert f"it has 4 records, {directory / LATEST} is over 7: it was cut off, or put back" in said
    assert f"move {directory} aside" in said
    directory.rename(place.directory / "aside")
    directory.mkdir()
    place.start()


def test_a_log_that_contradicts_its_own_last_checkpoint_is_not_gone_on_with(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    other = SigningKey.generate(NAME).sign(f"{NAME}\n3\n{'A' * 43}=\n".encode())
    with sqlite3.connect(place.log) as connection:
        connection.execute("INSERT INTO log_checkpoints (size, made_ns, note) VALUES (3, 0, ?)", (other,))
    connection.close()
    for write in (lambda: configure(place, **NEVER), place.write_configuration):
        write()
        assert "its first 3 records are not those of its last checkpoint" in refused(place, 1)


# ---- workers keep them -----------------------------------------------------------------------------------


def keeping(place: Place, *keys: VerifyingKey) -> tuple[TrackerClient, Keeper]:
    keeper = Keeper(place.directory / "w1.checkpoint", keys)
    return place.client(keeper=keeper), keeper


def kept_size(keeper: Keeper) -> int:
    return 0 if keeper.kept is None else keeper.kept.size


def hear(client: TrackerClient, keeper: Keeper, size: int) -> None:
    answers(client, lambda: kept_size(keeper) == size)


def farewell(place: Place, client: TrackerClient, keeper: Keeper, size: int) -> None:
    """The tracker stops, and its last checkpoint is over so many records."""
    assert place.process is not None
    place.process.send_signal(signal.SIGTERM)
    hear(client, keeper, size)
    place.ended()


def test_a_worker_keeps_each_checkpoint_and_catches_up_after_it_was_away(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    client, keeper = keeping(place, key)
    settle(client, hole(1))
    assert porthold(place, "checkpoint").exit_code == 0
    hear(client, keeper, 3)
    client.close()
    stranger = place.client("w2")
    for number in range(2, 5):
        settle(stranger, hole(number))
        assert porthold(place, "checkpoint").exit_code == 0
    stranger.close()
    client, keeper = keeping(place, key)
    assert kept_size(keeper) == 3
    settle(client, hole(5))
    hear(client, keeper, 6)
    place.kill()
    place.start()
    settle(client, hole(6))
    assert porthold(place, "checkpoint").exit_code == 0
    hear(client, keeper, 9)
    farewell(place, client, keeper, 11)
    client.close()
    kept = (place.directory / "w1.checkpoint").read_bytes()
    report = audit(place, key, against=(kept,))
    assert (report.clean, report.unprotected) == (True, 0)
    assert not list(place.directory.glob(f"*{EVIDENCE}"))


def test_a_worker_keeps_its_checkpoint_and_the_evidence_when_the_log_was_put_back(
    place: Place, key: VerifyingKey, caplog: pytest.LogCaptureFixture
) -> None:
    configure(place, **NEVER)
    place.start()
    place.kill(signal.SIGTERM)
    shutil.copy(place.log, place.directory / "old")
    place.start()
    client, keeper = keeping(place, key)
    settle(client, *(hole(number) for number in range(5)))
    farewell(place, client, keeper, 12)
    shutil.copy(place.directory / "old", place.log)
    shutil.rmtree(place.directory / "checkpoints")
    configure(place, **NEVER)
    place.start()
    evidence = place.directory / f"w1.checkpoint{EVIDENCE}"
    with caplog.at_level(logging.ERROR):
        settle(client, hole(9))
        answers(client, evidence.exists)
    assert "is over 4 records, ours over 12" in caplog.text
    assert "this is evidence against that log" in caplog.text
    first = evidence.read_bytes()
    settle(client, *(hole(number) for number in range(10, 30)))
    caplog.clear()
    assert porthold(place, "checkpoint").exit_code == 0
    answers(client, lambda: "evidence" in caplog.text)
    assert "do not begin with the 12 of ours" in caplog.text
    client.close()
    assert (kept_size(keeper), evidence.read_bytes()) == (12, first)
    kept = (place.directory / "w1.checkpoint").read_bytes()
    assert audit(place, key).clean, "nobody can see it in the file alone"
    report = audit(place, key, against=(kept,))
    assert report.first is not None
    assert report.first.kind == FaultKind.CHECKPOINT


# ---- under load ----------------------------------------------------------------------------------------


def test_killed_under_load_with_checkpoints_and_snapshots_every_few_records_it_stays_sound(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, checkpoint_every_records=7, snapshot_every_records=11)
    place.start()
    client, keeper = keeping(place, key)
    settle(client, opening())
    sent = 0
    for _ in range(4):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            if client.pending < 100:
                client.submit_all([hole(sent), claim(1, sent)], read_clock())
                sent += 1
            client.receive(read_clock())
        place.kill()
        place.start()
    answers(client, lambda: client.pending == 0)
    client.close()
    place.kill(signal.SIGTERM)
    place.check()
    report = audit(place, key)
    assert report.clean, report.faults
    assert report.checkpoints_checked > 4
    assert kept_size(keeper) > 0
    assert not list(place.directory.glob(f"*{EVIDENCE}"))


# ---- the rest of the command line, on a log that is being written ----------------------------------------


def test_a_proof_is_made_while_the_tracker_runs_and_checked_with_the_public_key_alone(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, **NEVER)
    place.start()
    proof = place.directory / "proof"
    too_early = porthold(place, "prove", "1", "-o", proof)
    assert (too_early.exit_code, "no checkpoint" in too_early.stderr) == (1, True)
    assert porthold(place, "checkpoint").exit_code == 0
    assert porthold(place, "prove", "1", "-o", proof).exit_code == 0
    assert proof.stat().st_size < 1000
    shown = CliRunner().invoke(main, ["verify-proof", str(proof), "--key", str(key)])
    assert shown.exit_code == 0
    assert "TrackerStarted" in shown.stdout
    stranger = SigningKey.generate(NAME).verifying_key
    refusal = CliRunner().invoke(main, ["verify-proof", str(proof), "--key", str(stranger)])
    assert (refusal.exit_code, "no key that is known here" in refusal.stdout) == (1, True)
    beyond = porthold(place, "prove", "2", "-o", proof)
    assert (beyond.exit_code, "not among the checkpoint's 2 records" in beyond.stderr) == (1, True)


def test_a_backup_is_taken_under_load_and_is_a_log_that_another_tracker_goes_on_with(
    place: Place, key: VerifyingKey
) -> None:
    configure(place, checkpoint_every_records=10)
    place.start()
    client = place.client()
    settle(client, opening())
    client.submit_all([hole(number) for number in range(2000)], read_clock())
    copy = place.directory / "copy.sqlite"
    result = porthold(place, "backup", copy, "--key", str(key), "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)["records"]
    answers(client, lambda: client.pending == 0)
    client.close()
    place.kill()
    assert porthold(place, "backup", copy).exit_code == 1
    with LogReader.open(place.log) as log, LogReader.open(copy) as copied:
        assert copied.size == records < log.size
        assert copied.head().root == log.root_at(records)


def test_the_private_key_file_is_what_keys_log_makes(place: Place) -> None:
    made = porthold(place, "keys", "log", place.directory / "made", "--name", NAME)
    assert made.exit_code == 0
    assert str(read_key_file(place.directory / "made").verifying_key) == made.stdout.strip()
    configure(place, "made", **NEVER)
    place.start()
    ordered = ask(place.operator_endpoint, "operator", MakeCheckpoint(), 5)
    assert isinstance(ordered, CheckpointMade)
    report = audit(place, VerifyingKey.parse(made.stdout.strip()), against=(ordered.note,))
    assert (report.clean, report.unprotected) == (True, 0)
