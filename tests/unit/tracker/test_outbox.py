"""The worker's disk: what was put is there, in order, and only one process has it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tracker.outbox import Outbox, OutboxFull, OutboxLocked, OutboxUnreadable


def opened(path: Path, *, worker: str = "w1", limit: int = 10) -> Outbox:
    return Outbox.open(path, worker=worker, now_ns=77, limit=limit)


def test_messages_sequence_and_incarnation_outlive_the_process(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    assert outbox.put([b"one", b"two"], 5) == 1
    assert outbox.put([b"three"], 6) == 3
    outbox.remove([1])
    outbox.close()
    again = Outbox.open(tmp_path / "outbox", worker="w1", now_ns=99)
    assert again.messages() == [(2, 5, b"two"), (3, 6, b"three")]
    assert (again.incarnation, again.next_sequence, again.size) == (77, 4, 2)
    again.close()


def test_a_sequence_is_not_given_again_when_all_is_answered(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    outbox.put([b"one"], 5)
    outbox.remove([1])
    outbox.close()
    again = opened(tmp_path / "outbox")
    assert again.put([b"two"], 5) == 2
    again.close()


def test_a_full_outbox_takes_all_of_a_batch_or_nothing(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    outbox.put([b"m"] * 8, 5)
    assert outbox.room_for_claims
    outbox.put([b"m"], 5)
    assert not outbox.room_for_claims
    with pytest.raises(OutboxFull, match="limit is 10"):
        outbox.put([b"m"] * 2, 5)
    assert (outbox.size, outbox.next_sequence) == (9, 10)
    assert outbox.put([b"last"], 5) == 10
    outbox.close()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    code = (
        "import sys; from pathlib import Path; from tracker.outbox import Outbox\n"
        "Outbox.open(Path(sys.argv[1]), worker='w1', now_ns=1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "outbox")]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "OutboxLocked" in second.stderr
    with pytest.raises(OutboxLocked, match="process"):
        opened(tmp_path / "outbox")
    outbox.close()
    opened(tmp_path / "outbox").close()


def test_another_worker_s_outbox_and_no_outbox_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "outbox").close()
    with pytest.raises(OutboxUnreadable, match="worker 'w1', not of 'w2'"):
        opened(tmp_path / "outbox", worker="w2")
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 9)
    with pytest.raises(OutboxUnreadable, match="text"):
        opened(tmp_path / "text")
    with pytest.raises(OutboxUnreadable, match="No such file"):
        opened(tmp_path / "missing" / "outbox")


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    opened(tmp_path / "outbox").close()
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o600


def test_a_renamed_outbox_stays_renamed(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    outbox.rename(99)
    outbox.close()
    again = opened(tmp_path / "outbox")
    assert again.incarnation == 99
    again.close()


def test_each_message_is_synced_to_the_disk_before_it_counts_as_kept(tmp_path: Path) -> None:
    outbox = opened(tmp_path / "outbox")
    pragmas = [
        outbox._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert pragmas == ["wal", 2]
    outbox.close()
