"""A worker's kept checkpoint is replaced only by one that continues it; everything else is evidence."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.checkpoint import Checkpoint, parse_checkpoint
from eventlog.merkle import Frontier, consistency_proof, leaf_hash
from eventlog.note import SigningKey
from tracker.keeper import DAMAGED, EVIDENCE, Keeper
from tracker.messages import CheckpointMade, GetCheckpoint

KEY = SigningKey("log.example/gateway-1", bytes(range(32)))
OTHER = SigningKey("log.example/gateway-2", bytes(range(32)))


class Tree:
    """A log that is nothing but leaves."""

    def __init__(self, leaves: Sequence[bytes], key: SigningKey = KEY) -> None:
        self.key = key
        self._frontier = Frontier()
        self._levels: dict[int, dict[int, bytes]] = {0: {}}
        self._roots = [self._frontier.root()]
        for number, leaf in enumerate(leaves):
            self._levels[0][number] = leaf_hash(leaf)
            for level, index, node in self._frontier.append(leaf_hash(leaf)):
                self._levels.setdefault(level, {})[index] = node
            self._roots.append(self._frontier.root())

    def nodes(self, level: int, first: int, count: int) -> list[bytes]:
        return [self._levels[level][number] for number in range(first, first + count)]

    def made(self, size: int, since: int = 0) -> CheckpointMade:
        note = self.key.sign(Checkpoint(self.key.name, size, self._roots[size]).text())
        return CheckpointMade(note, since, tuple(consistency_proof(self, since, size)) if since else ())


HONEST = Tree([bytes([number]) for number in range(100)])
FORKED = Tree([bytes([number if number < 20 else 255 - number]) for number in range(100)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w1.checkpoint"


def evidence(path: Path) -> Path:
    return path.with_name(path.name + EVIDENCE)


def test_the_first_one_is_kept_and_is_there_for_the_next_process(path: Path) -> None:
    keeper = Keeper(path, [KEY.verifying_key])
    assert keeper.kept is None
    made = HONEST.made(30)
    assert keeper.receive(made) is None
    assert path.read_bytes() == made.note
    assert Keeper(path).kept == parse_checkpoint(made.note)
    assert [it.name for it in path.parent.iterdir()] == [path.name]


@given(st.integers(1, 100), st.integers(1, 100))
@settings(max_examples=50)
def test_what_is_shown_to_continue_it_is_kept_and_what_is_not_shown_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, first: int, second: int
) -> None:
    path = tmp_path_factory.mktemp("keeper") / "w1.checkpoint"
    keeper = Keeper(path, [KEY.verifying_key])
    keeper.receive(HONEST.made(min(first, second)))
    question = keeper.receive(HONEST.made(max(first, second)))
    if first == second:
        assert question is None
        return
    assert question == GetCheckpoint(min(first, second))
    assert keeper.receive(HONEST.made(max(first, second), question.size)) is None
    assert keeper.kept is not None
    assert keeper.kept.size == max(first, second)
    assert not evidence(path).exists()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (HONEST.made(29), "is over 29 records, ours over 30"),
        (FORKED.made(30), "is over 30 records like ours, but over others"),
        (FORKED.made(40, 30), "its 40 records do not begin with the 30 of ours"),
        (CheckpointMade(HONEST.made(40).note, 30, ()), "do not begin with the 30 of ours"),
        (Tree([b"a"] * 40, OTHER).made(40), "of the log log.example/gateway-2, ours is of"),
        (CheckpointMade(b"garbage", 30, ()), "not to be believed"),
    ],
    ids=["older", "another root", "a fork", "no proof", "another log", "garbage"],
)
def test_what_does_not_continue_it_is_refused_loudly_and_kept_beside(
    path: Path, made: CheckpointMade, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(path)
    kept = HONEST.made(30)
    keeper.receive(kept)
    with caplog.at_level(logging.ERROR):
        assert keeper.receive(made) is None
    assert reason in caplog.text
    assert "evidence against that log" in caplog.text
    assert (path.read_bytes(), evidence(path).read_bytes()) == (kept.note, made.note)
    keeper.receive(HONEST.made(10))
    assert evidence(path).read_bytes() == made.note, "the first is the evidence"


def test_with_a_public_key_another_s_signature_is_refused(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Tree([b"a"], SigningKey(KEY.name, bytes(32)))
    keeper = Keeper(path, [KEY.verifying_key])
    assert keeper.receive(stranger.made(1)) is None
    assert keeper.kept is None
    assert "no key that is known here" in caplog.text
    assert not path.exists()


def test_a_disk_that_takes_nothing_leaves_the_old_one_to_be_continued(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(path)
    keeper.receive(HONEST.made(30))
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir()
    assert keeper.receive(HONEST.made(40, 30)) is None
    assert "could not be kept" in caplog.text
    assert keeper.kept is not None
    assert keeper.kept.size == 30
    partial.rmdir()
    assert keeper.receive(HONEST.made(50, 40)) == GetCheckpoint(30)
    keeper.receive(HONEST.made(50, 30))
    assert Keeper(path).kept == keeper.kept
    assert keeper.kept.size == 50


def test_a_kept_file_that_is_no_checkpoint_is_put_aside_and_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("nonsense")
    assert Keeper(path).kept is None
    assert "is no checkpoint" in caplog.text
    assert path.with_name(path.name + DAMAGED).read_text() == "nonsense"
    assert not path.exists()
