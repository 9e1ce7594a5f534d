"""An archive is believed for its hashes, alone or beside its log."""

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from eventlog import merkle
from eventlog.archive import RUN_RECORDS, Archive, ArchiveDamaged, Proofs, check_records, write_archive
from eventlog.archive_check import check_archive
from eventlog.checkpoint import make_checkpoint
from eventlog.columns import RUN_LIMIT, Place
from eventlog.note import SigningKey
from eventlog.record import encode
from eventlog.retention import archive_segment, close_segment
from eventlog.segments import Span
from eventlog.store import Log
from tests.unit.eventlog.samples import SECOND_NS, START_NS, make_record, many_held

KEY = SigningKey.generate("example.com/log")
LATER_NS = START_NS + 10**6 * SECOND_NS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The archive of the second hundred of a log's records, signed for by a later checkpoint."""
    with Log.open(tmp_path / "log.sqlite") as log:
        log.append(many_held(300))
        close_segment(log, 100, LATER_NS)
        close_segment(log, 200, LATER_NS)
        make_checkpoint(log, KEY, LATER_NS)
        return archive_segment(log, 1, LATER_NS)


def test_an_archive_is_checked_with_nothing_but_the_key(path: Path, tmp_path: Path) -> None:
    alone = path.rename(tmp_path / "received.archive")
    (tmp_path / "log.sqlite").unlink()
    with Archive.open(alone) as archive:
        report = check_archive(archive, [KEY.verifying_key])
    assert (report.span, report.redacted) == (Span(100, 200), 0)
    assert report.checkpoint is not None
    assert (report.checkpoint.size, report.signed_by) == (302, KEY.verifying_key)


def test_another_key_or_no_checkpoint_speaks_for_nothing(path: Path, tmp_path: Path) -> None:
    other = SigningKey.generate("example.com/log").verifying_key
    with Archive.open(path) as archive:
        with pytest.raises(ArchiveDamaged, match="checkpoint"):
            check_archive(archive, [other])
        assert check_archive(archive).signed_by is None
        unsigned = written(tmp_path / "again", archive, Proofs(archive.header.peaks, archive.header.root))
    with Archive.open(unsigned) as archive:
        assert check_archive(archive).root == archive.header.root
        with pytest.raises(ArchiveDamaged, match="no checkpoint"):
            check_archive(archive, [KEY.verifying_key])


def written(directory: Path, archive: Archive, proofs: Proofs, places: list[Place] | None = None) -> Path:
    span = archive.header.span
    old = [place for _, place in archive.read(span.first, span.end)]
    with write_archive(directory, span, old if places is None else places, proofs) as made:
        return made.path


def test_an_archive_made_up_without_the_key_does_not_pass(path: Path, tmp_path: Path) -> None:
    with Archive.open(path) as archive:
        header = archive.header
        places = [place for _, place in archive.read(100, 200)]
        data = encode(make_record(107, (7648, b"evil")))
        places[7] = Place(data, merkle.leaf_hash(data))
        honest = Proofs(header.peaks, header.root, header.note, header.path)
        with pytest.raises(ArchiveDamaged, match="do not lead to its root"):
            written(tmp_path / "forged", archive, honest, places)
        frontier = merkle.Frontier(100, header.peaks)
        for place in places:
            frontier.append(place.leaf)
        forged = written(tmp_path / "forged", archive, replace(honest, root=frontier.root()), places)
    assert not list((tmp_path / "forged").glob(".*"))
    with Archive.open(forged) as archive:
        check_archive(archive)
        with pytest.raises(ArchiveDamaged, match="checkpoint"):
            check_archive(archive, [KEY.verifying_key])


def test_every_byte_of_an_archive_counts(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    with Archive.open(path) as archive:
        digest = archive.hash
    damaged = tmp_path / "damaged.archive"
    for at in range(0, len(data), 7):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
        with pytest.raises(ArchiveDamaged), Archive.open(damaged, digest) as archive:
            check_records(archive)
    for length in range(0, len(data), 97):
        damaged.write_bytes(data[:length])
        with pytest.raises(ArchiveDamaged), Archive.open(damaged, digest) as archive:
            check_records(archive)


HEADERS: dict[str, list[object]] = {
    "nothing": [],
    "no numbers": ["x", 5, [], bytes(32), [], None, []],
    "no root": [0, 0, [], b"", [], None, []],
    "a run too early": [0, 5, [], bytes(32), [[1, 5, 19, 1, bytes(32)]], None, []],
    "a run too short": [0, 9, [], bytes(32), [[0, 5, 19, 1, bytes(32)]], None, []],
    "a run too long": [0, 9999, [], bytes(32), [[0, RUN_LIMIT + 1, 19, 1, bytes(32)]], None, []],
    "a run beyond the file": [0, 5, [], bytes(32), [[0, 5, 19, 2**40, bytes(32)]], None, []],
    "a run before the file": [0, 5, [], bytes(32), [[0, 5, -19, 1, bytes(32)]], None, []],
    "a run of no hash": [0, 5, [], bytes(32), [[0, 5, 19, 1, 5]], None, []],
    "a note that is none": [0, 0, [], bytes(32), [], 5, []],
    "runs of nothing": [0, 5, [], bytes(32), [[0, 0, 19, 0, bytes(32)]], None, []],
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    magic = b"eventlog archive 1\n"
    file = tmp_path / "made-up.archive"
    file.write_bytes(magic + msgpack.packb(HEADERS[case]) + len(magic).to_bytes(8, "big"))
    with pytest.raises(ArchiveDamaged, match="header"):
        Archive.open(file)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.archive"
    for data in (b"", b"x" * 5, bytes(100), b"\xff" * 100, b"eventlog archive 1\n" + b"\xff" * 8):
        file.write_bytes(data)
        with pytest.raises(ArchiveDamaged):
            Archive.open(file)
    with pytest.raises(ArchiveDamaged, match="No such file"):
        Archive.open(tmp_path / "nowhere.archive")


def test_peaks_that_fit_no_tree_are_refused(path: Path, tmp_path: Path) -> None:
    with Archive.open(path) as archive, pytest.raises(ArchiveDamaged, match="peaks"):
        written(tmp_path / "wrong", archive, Proofs((), archive.header.root))


def test_runs_are_cut_where_groups_of_the_tree_end(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log.sqlite") as log:
        log.append(many_held(RUN_RECORDS + 100))
        log.append([make_record(500 + at, (bytes(60_000),)) for at in range(90)])
        close_segment(log, 5, LATER_NS)
        close_segment(log, log.size, LATER_NS)
        path = archive_segment(log, 1, LATER_NS)
    with Archive.open(path) as archive:
        ends = [run.first + run.count for run in archive.header.runs]
        assert ends == [RUN_RECORDS, 432, 447]
        assert [position for position, _ in archive.read(250, 260)] == list(range(250, 260))


def test_an_archive_is_for_its_owner_only(path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]
