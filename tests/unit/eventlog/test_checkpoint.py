"""Checkpoints say the committed head, continue each other, and are written whole."""

from pathlib import Path

import pytest

from eventlog.checkpoint import (
    LATEST,
    Checkpoint,
    CheckpointContradicted,
    CheckpointPolicy,
    check_continued,
    checkpoint_due,
    key_change,
    key_change_fields,
    make_checkpoint,
    parse_checkpoint,
    verify_checkpoint,
    write_to_directory,
)
from eventlog.note import NoteError, SigningKey
from eventlog.store import AppendFailed, Log
from tests.unit.eventlog.samples import held, many_held

KEY = SigningKey("log.example/gateway-1", bytes(range(32)))
OTHER = SigningKey("log.example/gateway-2", bytes(range(1, 33)))
SECOND_NS = 10**9
# The example in c2sp.org/tlog-checkpoint.
EXAMPLE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa"
    " Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def test_the_formats_own_example_is_read() -> None:
    checkpoint = parse_checkpoint(EXAMPLE.encode())
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex().startswith("0ac5186a")
    assert checkpoint.text().decode() == EXAMPLE.partition("\n\n")[0] + "\n"


def test_a_checkpoint_says_the_head_and_stays_in_the_file(path: Path) -> None:
    with Log.open(path) as log:
        empty = make_checkpoint(log, KEY, 5)
        log.append(many_held(20))
        note = make_checkpoint(log, KEY, 6)
        head = log.head()
        log.append(many_held(20, 20))
    with Log.open(path) as log:
        assert [(at.size, at.made_ns, at.note) for at in log.checkpoints()] == [(0, 5, empty), (20, 6, note)]
    checkpoint, signer = verify_checkpoint(note, [OTHER.verifying_key, KEY.verifying_key])
    assert checkpoint == Checkpoint(KEY.name, 20, head.root)
    assert signer == KEY.verifying_key


def test_extension_lines_are_allowed_and_covered() -> None:
    text = Checkpoint(KEY.name, 3, bytes(32)).text()
    note = KEY.sign(text + b"more\n")
    assert verify_checkpoint(note, [KEY.verifying_key])[0].size == 3
    with pytest.raises(NoteError):
        verify_checkpoint(note.replace(b"more", b"less"), [KEY.verifying_key])


def test_a_checkpoint_in_the_name_of_another_log_is_refused() -> None:
    note = KEY.sign(Checkpoint(OTHER.name, 3, bytes(32)).text())
    with pytest.raises(NoteError, match="gateway-2 is signed by"):
        verify_checkpoint(note, [KEY.verifying_key, OTHER.verifying_key])


@pytest.mark.parametrize(
    "text",
    [
        "origin\n3\n",
        "\n3\nAAAA\n",
        "origin\n-3\n{root}\n",
        "origin\n03\n{root}\n",
        "origin\n3.0\n{root}\n",
        "origin\n٣\n{root}\n",
        "origin\n" + "9" * 5000 + "\n{root}\n",
        "origin\n3\nAAAA\n",
        "origin\n3\n!{root}\n",
        "origin\n3\n{root}\n\nextension after nothing\n",
    ],
)
def test_what_is_no_checkpoint_is_refused_though_it_is_signed(text: str) -> None:
    note = KEY.sign(text.format(root="A" * 43 + "=").encode())
    with pytest.raises(NoteError, match="no checkpoint"):
        parse_checkpoint(note)
    with pytest.raises(NoteError):
        verify_checkpoint(note, [KEY.verifying_key])


def test_a_log_that_is_not_its_own_past_gets_no_checkpoint(path: Path) -> None:
    with Log.open(path) as log:
        log.append(many_held(20))
        for size, root in ((20, bytes(32)), (21, log.head().root)):
            log._connection.execute(
                "INSERT INTO log_checkpoints (size, made_ns, note) VALUES (?, 0, ?)",
                (size, KEY.sign(Checkpoint(KEY.name, size, root).text())),
            )
            with pytest.raises(CheckpointContradicted):
                make_checkpoint(log, KEY, 7)


def test_whether_a_log_continues_a_checkpoint_is_said_with_what_is_wrong(path: Path) -> None:
    with Log.open(path) as log:
        log.append(many_held(20))
        note = make_checkpoint(log, KEY, 6)
        log.append(many_held(20, 20))
        check_continued(log, note, "the kept one")
        for size, root, said in (
            (41, log.head().root, "it has 40 records, the kept one is over 41: it was cut off, or put back"),
            (40, bytes(32), "its first 40 records are not those of the kept one"),
        ):
            with pytest.raises(CheckpointContradicted, match=said):
                check_continued(log, KEY.sign(Checkpoint(KEY.name, size, root).text()), "the kept one")
        with pytest.raises(CheckpointContradicted, match="the kept one is none"):
            check_continued(log, b"garbage", "the kept one")


def test_a_checkpoint_over_more_than_is_committed_is_not_kept(path: Path) -> None:
    with Log.open(path) as log, pytest.raises(AppendFailed, match="fewer"):
        log.write_checkpoint(b"", 1, 0)


@pytest.mark.parametrize(
    ("size", "waited_s", "due"),
    [
        (100, 3600, False),
        (101, 59.9, False),
        (101, 60, True),
        (1099, 0, False),
        (1100, 0, True),
        (5000, 0, True),
    ],
)
def test_a_checkpoint_is_due_by_records_or_by_time_and_never_over_nothing_new(
    size: int, waited_s: float, due: bool
) -> None:
    policy = CheckpointPolicy(every_records=1000, every_s=60)
    assert checkpoint_due(policy, 100, 5 * SECOND_NS, size, int((5 + waited_s) * SECOND_NS)) is due


def test_a_directory_gets_each_checkpoint_and_the_latest_and_nothing_half(path: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    notes = []
    with Log.open(path) as log:
        for first in (0, 5):
            log.append(many_held(5, first))
            notes.append(make_checkpoint(log, KEY, 1))
            written = write_to_directory(directory, notes[-1])
            assert written.read_bytes() == notes[-1]
    assert (directory / LATEST).read_bytes() == notes[-1]
    assert sorted(file.name for file in directory.iterdir()) == [
        "00000000000000000005.checkpoint",
        "00000000000000000010.checkpoint",
        LATEST,
    ]
    with pytest.raises(OSError, match="missing"):
        write_to_directory(tmp_path / "missing", notes[0])


def test_a_new_key_is_vouched_for_by_the_old_one_only() -> None:
    new = OTHER.verifying_key
    stranger = SigningKey("stranger.example", bytes(32))
    assert key_change(key_change_fields(new, KEY), [KEY.verifying_key]) == (new, True)
    assert key_change(key_change_fields(new, stranger), [KEY.verifying_key]) == (new, False)
    assert key_change(key_change_fields(new, None), [KEY.verifying_key]) == (new, False)
    for another_words in (key_change_fields(KEY.verifying_key, KEY)[1], b"nothing"):
        assert key_change((str(new), another_words), [KEY.verifying_key]) == (new, False)


@pytest.mark.parametrize(
    "fields", [(), ("key",), ("no key", None), (str(KEY.verifying_key), 1), (None, None)]
)
def test_fields_that_change_no_key_are_refused(fields: tuple[str | int | None, ...]) -> None:
    with pytest.raises(ValueError, match="key"):
        key_change(fields, [KEY.verifying_key])


def test_appending_goes_on_after_a_checkpoint(path: Path) -> None:
    with Log.open(path) as log:
        make_checkpoint(log, KEY, 1)
        assert log.append([held(1)]) == range(1)
