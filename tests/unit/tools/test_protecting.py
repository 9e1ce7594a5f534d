"""`keys log`, `prove`, `verify-proof`, `backup`, `log stats`, and `verify` with keys and kept checkpoints."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventlog.checkpoint import key_change_fields, make_checkpoint
from eventlog.note import SigningKey, read_key_file
from eventlog.record import KEY_CHANGED, Record, Source
from eventlog.store import Log, LogReader
from tests.unit.tools.sample_log import at, records, write_sample_log
from tools.cli import main
from tracker.projections import PROJECTIONS

KEY = SigningKey("log.example/gateway-1", bytes(range(32)))
PUBLIC = str(KEY.verifying_key)
STRANGER = str(SigningKey("log.example/gateway-1", bytes(32)).verifying_key)
SIZE = 14


@dataclass(frozen=True)
class Signed:
    """A log with a key, and two of its checkpoints in files elsewhere."""

    log: Path
    earlier: Path
    latest: Path


def write_signed_log(path: Path, story: Sequence[Record]) -> list[bytes]:
    """Its checkpoints: over the first 6 records and over all but the last."""
    fields = key_change_fields(KEY.verifying_key, None)
    first = Record(1, KEY_CHANGED, at(0), None, Source("tracker", 0, 1, 0), bytes(16), fields)
    notes = []
    with Log.open(path, projections=PROJECTIONS) as log:
        for record in (first, *story):
            log.append([record])
            if log.size in (6, len(story)):
                notes.append(make_checkpoint(log, KEY, record.wall_ns))
    return notes


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = Signed(tmp_path / "log.sqlite", elsewhere / "earlier", elsewhere / "latest")
    for path, note in zip((made.earlier, made.latest), write_signed_log(made.log, records()), strict=True):
        path.write_bytes(note)
    return made


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def document(result: Result) -> Any:
    return json.loads(result.stdout)


# --- keys ---------------------------------------------------------------------------------------------------


def test_keys_log_makes_a_key_that_its_owner_alone_can_read_and_prints_the_public_half(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.key"
    result = run("keys", "log", path, "--name", "log.example/1")
    assert result.exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    public = str(read_key_file(path).verifying_key)
    assert public.startswith("log.example/1+")
    assert (result.stdout, (tmp_path / "log.key.pub").read_text()) == (f"{public}\n", f"{public}\n")
    assert (tmp_path / "log.key.pub").stat().st_mode & 0o777 == 0o644
    assert "PRIVATE" not in result.output
    before = path.read_bytes()
    again = run("keys", "log", path)
    assert (again.exit_code, again.stdout, path.read_bytes()) == (0, f"{public}\n", before)


def test_keys_log_takes_the_file_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "porthold.toml"
    config.write_text(f'[tracker]\nsigning_key = "{tmp_path}/configured.key"\n')
    made = document(run("keys", "log", "--config", config, "--json"))
    assert (made["made"], made["file"]) == (True, f"{tmp_path}/configured.key")
    assert made["public"] == str(read_key_file(tmp_path / "configured.key").verifying_key)
    assert document(run("keys", "log", "--config", config, "--json"))["made"] is False
    config.write_text("")
    assert "Say which file" in run("keys", "log", "--config", config).stderr


def test_keys_log_refuses_a_place_where_others_could_exchange_it(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    result = run("keys", "log", place / "log.key")
    assert (result.exit_code, "others may write there" in result.stderr) == (2, True)
    assert list(place.iterdir()) == []
    place.chmod(0o700)
    assert run("keys", "log", place / "log.key", "--name", "a b").exit_code == 2
    assert run("keys", "log", place / "log.key", "--name", "a").exit_code == 0
    other_name = run("keys", "log", place / "log.key", "--name", "b")
    assert (other_name.exit_code, "its name is a, not b" in other_name.stderr) == (2, True)


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_says_what_the_checkpoints_protect_and_whose_word_that_is(signed: Signed) -> None:
    result = run("verify", "--log", signed.log)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"  key {PUBLIC} (on the word of the log itself: check it with --key)" in lines
    assert lines[-2:] == ["  checkpoints checked: 2", "  unprotected: 1 records after the last checkpoint"]
    brought = run("verify", "--log", signed.log, "--key", PUBLIC, "--against", signed.latest)
    assert f"  key {PUBLIC}" in brought.stdout.splitlines()
    assert "checkpoints checked: 3" in brought.stdout
    found = document(run("verify", "--log", signed.log, "--json"))
    assert (found["clean"], found["unprotected"], found["keys"]) == (True, 1, [PUBLIC])


def test_verify_says_that_a_log_without_a_key_is_wholly_unprotected(tmp_path: Path) -> None:
    result = run("verify", "--log", write_sample_log(tmp_path / "log.sqlite"))
    assert result.exit_code == 0
    assert "unprotected: all 13 records; there is no checkpoint and no key has ever signed this log" in (
        result.stdout
    )


def test_verify_takes_its_keys_from_the_configuration_or_from_a_file(signed: Signed, tmp_path: Path) -> None:
    config = tmp_path / "porthold.toml"
    for key, code in ((PUBLIC, 0), (STRANGER, 1)):
        config.write_text(f'[tracker]\nlog = "{signed.log}"\nverifying_keys = ["{key}"]\n')
        assert run("verify", "--config", config).exit_code == code
        (tmp_path / "key.pub").write_text(f"{key}\n")
        assert run("verify", "--log", signed.log, "--key", tmp_path / "key.pub").exit_code == code


def test_verify_since_a_checkpoint_reads_only_what_comes_after_it(signed: Signed) -> None:
    result = run("verify", "--log", signed.log, "--since", signed.earlier, "--key", PUBLIC)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"clean: {SIZE - 6} records in ")
    assert "read from position 6 on" in result.stdout
    refused = run("verify", "--log", signed.log, "--since", signed.earlier, "--key", STRANGER)
    assert (refused.exit_code, "--since is not to be believed" in refused.stderr) == (2, True)


def test_verify_against_a_kept_checkpoint_finds_what_the_file_alone_hides(
    signed: Signed, tmp_path: Path
) -> None:
    shorter = tmp_path / "shorter.sqlite"
    write_signed_log(shorter, records()[:9])
    assert run("verify", "--log", shorter, "--key", PUBLIC).exit_code == 0
    result = run("verify", "--log", shorter, "--key", PUBLIC, "--against", signed.latest)
    assert result.exit_code == 1
    assert result.stdout.startswith("bad: first at position 10; 1 faults")
    assert "kept checkpoint 1 is over 13 records, the log has 10: cut off, or put back" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--key", "nonsense"), "is no public key"),
        (("--key", "a+b+c"), "no key: name+id+base64"),
        (("--against", "/nowhere"), "No such file"),
        (("--since", __file__), "no signature line"),
    ],
)
def test_what_is_no_key_or_no_checkpoint_is_wrong_use(
    signed: Signed, words: tuple[str, ...], said: str
) -> None:
    result = run("verify", "--log", signed.log, *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


# --- proofs -------------------------------------------------------------------------------------------------


def test_a_proof_is_one_small_file_that_shows_the_record_to_whoever_has_the_public_key(
    signed: Signed, tmp_path: Path
) -> None:
    proof = tmp_path / "4.proof"
    made = run("prove", "4", "--log", signed.log, "-o", proof)
    assert made.exit_code == 0
    assert made.stdout == f"{proof}: {proof.stat().st_size} octets prove the record at position 4\n"
    signed.log.unlink()
    shown = run("verify-proof", proof, "--key", PUBLIC)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("proven: the log log.example/gateway-1 has this record at position 4\n")
    assert "PortBound" in shown.stdout
    assert f"under its checkpoint over 13 records, signed by {PUBLIC}" in shown.stdout
    found = document(run("verify-proof", proof, "--key", PUBLIC, "--json"))
    assert (found["proven"], found["size"], found["record"]["fields"]["holder"]) == (True, 13, "192.168.1.10")


def test_a_proof_goes_to_stdout_or_beside_and_under_the_checkpoint_that_is_wanted(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("prove", "3", "--log", signed.log, "--checkpoint", signed.earlier).exit_code == 0
    assert run("prove", "3", "--log", signed.log, "--checkpoint", signed.earlier, "-o", "-").stdout == (
        (tmp_path / "3.tlog-proof").read_text()
    )
    assert document(run("verify-proof", "3.tlog-proof", "--key", PUBLIC, "--json"))["size"] == 6


@pytest.mark.parametrize("key", [STRANGER, str(SigningKey("other", bytes(32)).verifying_key)])
def test_a_proof_of_a_stranger_s_or_a_damaged_one_shows_nothing(
    signed: Signed, tmp_path: Path, key: str
) -> None:
    proof = tmp_path / "proof"
    run("prove", "4", "--log", signed.log, "-o", proof)
    refused = run("verify-proof", proof, "--key", key)
    assert (refused.exit_code, refused.stdout.startswith("not proven: ")) == (1, True)
    proof.write_text(proof.read_text().replace("index 4", "index 5"))
    refused = run("verify-proof", proof, "--key", PUBLIC, "--json")
    assert (refused.exit_code, document(refused)["proven"]) == (1, False)


def test_what_no_checkpoint_covers_has_no_proof_yet(signed: Signed, tmp_path: Path) -> None:
    uncovered = run("prove", "13", "--log", signed.log)
    assert uncovered.exit_code == 1
    assert "porthold checkpoint has one made over all records" in uncovered.stderr
    beyond = run("prove", "99", "--log", signed.log)
    assert (beyond.exit_code, "porthold checkpoint" in beyond.stderr) == (1, False)
    unsigned = run("prove", "3", "--log", write_sample_log(tmp_path / "unsigned.sqlite"))
    assert (unsigned.exit_code, "The log has no checkpoint" in unsigned.stderr) == (1, True)
    other = run("prove", "3", "--log", tmp_path / "unsigned.sqlite", "--checkpoint", signed.latest)
    assert (other.exit_code, "not of this log" in other.stderr) == (1, True)
    assert "porthold checkpoint" not in other.stderr


# --- backup and stats ---------------------------------------------------------------------------------------


def test_a_backup_says_verified_and_is_never_overwritten(signed: Signed, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    result = run("backup", copy, "--log", signed.log, "--key", PUBLIC)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"verified: {copy} has 14 records in ")
    assert result.stdout.endswith("; 1 of them after the last checkpoint\n")
    with LogReader.open(signed.log) as log, LogReader.open(copy) as copied:
        assert copied.head() == log.head()
    again = run("backup", copy, "--log", signed.log)
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)


def test_a_log_that_the_key_did_not_sign_has_no_backup(signed: Signed, tmp_path: Path) -> None:
    result = run("backup", tmp_path / "copy.sqlite", "--log", signed.log, "--key", STRANGER)
    assert (result.exit_code, "the copy is not clean" in result.stderr) == (1, True)
    assert not (tmp_path / "copy.sqlite").exists()


def test_log_stats_says_sizes_rate_and_what_is_unprotected(signed: Signed) -> None:
    result = run("log", "stats", "--log", signed.log)
    assert result.exit_code == 0
    head, many, size, each, rate, checkpoint, unprotected = result.stdout.splitlines()
    assert head == str(signed.log)
    assert many == "  records: 14, from 2026-05-04T16:00:00.000Z to 2026-05-04T16:30:00.000Z"
    assert size.startswith("  database: ")
    assert "its own (the newest 14 measured)" in each
    assert rate == "  rate: 0 in the last minute, 0 in the last hour, 0 in the last day"
    assert checkpoint == "  checkpoint: the last of 2 is over 13 records, 2026-05-04T16:20:00.000Z"
    assert unprotected == "  unprotected: 1 records after it"
    found = document(run("log", "stats", "--log", signed.log, "--json"))
    assert (found["records"], found["checkpoint_size"], found["unprotected"]) == (14, 13, 1)
    assert found["database_octets"] == signed.log.stat().st_size
    with LogReader.open(signed.log) as log:
        own = [len(entry.data) for entry in log.read() if entry.data is not None]
    assert found["record_octets"] == pytest.approx(sum(own) / 14)


def test_log_stats_counts_the_wal_and_what_came_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sample_log(tmp_path / "log.sqlite")
    monkeypatch.setattr(time, "time_ns", lambda: at(100))
    with Log.open(path, projections=PROJECTIONS) as log:
        for sequence in range(50, 60):
            wall_ns = at(60) if sequence == 50 else at(99, sequence * 10**9)
            log.append([Record(1, 9999, wall_ns, None, Source("tracker", 1, sequence, 0), bytes(16), ())])
        found = document(run("log", "stats", "--log", path, "--json"))
    assert found["appended"] == {"minute": 9, "hour": 10, "day": 23}
    assert found["wal_octets"] > 0
    assert (found["checkpoints"], found["unprotected"]) == (0, 23)


def test_log_stats_of_an_empty_log_divides_nothing_by_nothing(tmp_path: Path) -> None:
    Log.open(tmp_path / "log.sqlite").close()
    result = run("log", "stats", "--log", tmp_path / "log.sqlite")
    assert result.exit_code == 0
    assert "records: 0\n" in result.stdout
    assert "so all 0 records are unprotected" in result.stdout
