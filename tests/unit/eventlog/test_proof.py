"""A proof file convinces whoever has the public key, of one record, and of nothing else."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import merkle
from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.proof import ProofRefused, make_proof, verify_proof
from eventlog.record import encode
from eventlog.store import Log, LogReader
from tests.unit.eventlog.samples import many_held

KEY = SigningKey("log.example", bytes(range(32)))
STRANGER = SigningKey("log.example", bytes(32))
RECORDS = many_held(60)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    path = tmp_path_factory.mktemp("proofs") / "log.sqlite"
    with Log.open(path) as log:
        log.append(RECORDS[:53])
        note = make_checkpoint(log, KEY, 1)
        log.append(RECORDS[53:])
        return {position: make_proof(log, position, note) for position in range(53)}


def test_every_record_before_the_checkpoint_is_proven(proofs: dict[int, bytes]) -> None:
    for position, proof in proofs.items():
        proven = verify_proof(proof, [KEY.verifying_key])
        assert (proven.position, proven.record) == (position, RECORDS[position])
        assert proven.checkpoint.size == 53
        assert proven.signed_by == KEY.verifying_key
        assert len(proof) < 1500


def test_the_file_is_as_the_format_says(proofs: dict[int, bytes]) -> None:
    lines = proofs[5].decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert base64.b64decode(lines[1].removeprefix("extra ")) == b"\x00" + encode(RECORDS[5])
    assert lines[2] == "index 5"
    assert base64.b64decode(lines[3]) == merkle.leaf_hash(encode(RECORDS[4]))
    assert lines[lines.index("") + 1 :][:2] == ["log.example", "53"]


def test_a_record_after_the_checkpoint_or_of_another_log_has_no_proof(tmp_path: Path) -> None:
    with Log.open(tmp_path / "one.sqlite") as log, Log.open(tmp_path / "two.sqlite") as other:
        log.append(RECORDS[:10])
        note = make_checkpoint(log, KEY, 1)
        log.append(RECORDS[10:20])
        for position in (10, -1):
            with pytest.raises(ProofRefused, match="not among"):
                make_proof(log, position, note)
        with pytest.raises(ProofRefused, match="not of this log"):
            make_proof(other, 3, note)
        other.append(many_held(20))
        with pytest.raises(ProofRefused, match="not of this log"):
            make_proof(other, 3, note)


def test_a_redacted_record_is_still_proven_to_have_been_there(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with Log.open(path) as log:
        log.append(RECORDS)
        note = make_checkpoint(log, KEY, 1)
        log._connection.execute("DROP TRIGGER log_records_never_change")
        log._connection.execute("UPDATE log_records SET bytes = NULL WHERE position = 7")
    with LogReader.open(path) as reader:
        proven = verify_proof(make_proof(reader, 7, note), [KEY.verifying_key])
    assert proven.record is None
    assert proven.leaf == merkle.leaf_hash(encode(RECORDS[7]))


@given(st.data())
def test_no_flipped_bit_is_believed(proofs: dict[int, bytes], data: st.DataObject) -> None:
    position = data.draw(st.sampled_from(sorted(proofs)))
    bit = data.draw(st.integers(0, len(proofs[position]) * 8 - 1))
    altered = bytearray(proofs[position])
    altered[bit // 8] ^= 1 << bit % 8
    try:
        proven = verify_proof(bytes(altered), [KEY.verifying_key])
    except ProofRefused:
        return
    assert (proven.position, proven.record, proven.checkpoint.size) == (position, RECORDS[position], 53)


def replaced(proof: bytes, line: int, by: str) -> bytes:
    lines = proof.decode().split("\n")
    lines[line] = by
    return "\n".join(lines).encode()


def test_an_altered_proof_is_refused(proofs: dict[int, bytes]) -> None:
    good = proofs[5]
    other = proofs[6].decode().split("\n")
    encoded = base64.b64encode
    for altered in (
        b"",
        good[:-1],
        replaced(good, 0, "c2sp.org/tlog-proof@v2"),
        replaced(good, 1, other[1]),
        replaced(good, 1, "extra"),
        replaced(good, 1, "extra AA=="),
        replaced(good, 1, "extra " + encoded(b"\x01" + bytes(32)).decode()),
        replaced(good, 1, "extra " + encoded(b"\x02" + encode(RECORDS[5])).decode()),
        replaced(good, 2, "index 6"),
        replaced(good, 2, "index 05"),
        replaced(good, 2, "index -1"),
        replaced(good, 2, "index x"),
        replaced(good, 3, other[3]),
        replaced(good, 3, "AAAA"),
        replaced(good, 3, ""),
        good.partition(b"\n\n")[0],
        good + b"x" * 10**6,
    ):
        with pytest.raises(ProofRefused):
            verify_proof(altered, [KEY.verifying_key])


def test_a_proof_signed_by_another_key_of_the_same_name_is_refused(proofs: dict[int, bytes]) -> None:
    with pytest.raises(ProofRefused, match="no key that is known"):
        verify_proof(proofs[5], [STRANGER.verifying_key])


def test_a_log_that_lost_its_hashes_says_so(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log.sqlite") as log:
        log.append(RECORDS)
        note = make_checkpoint(log, KEY, 1)
        log._connection.execute("DROP TRIGGER log_nodes_never_go")
        log._connection.execute("DELETE FROM log_nodes")
        with pytest.raises(ProofRefused, match="the log is damaged"):
            make_proof(log, 3, note)


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log.sqlite") as log:
        log.append(RECORDS)
        with pytest.raises(ProofRefused, match="checkpoint is none"):
            make_proof(log, 3, b"garbage")
