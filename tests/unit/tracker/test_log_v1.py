"""A log that an older version wrote is read, and goes on.

tests/data/log-v1.sqlite was written on 2026-11-22 by the version before segments, archives and schema 2: the
story of tests/unit/tools/sample_log.py behind a KeyChanged, and one checkpoint.
"""

import shutil
from pathlib import Path

import pytest

from eventlog.archive import archives_of
from eventlog.note import VerifyingKey
from eventlog.reading import LogReader, LogUnreadable
from eventlog.schema import expected_layout, found_layout
from eventlog.store import Log
from eventlog.verify import verify
from tests.unit.tools.sample_log import BOUND_NS, NS, STORY, host
from tracker.audit import Holder, who
from tracker.events import SCHEMA, from_record, upcast
from tracker.image import Fold
from tracker.projections import PROJECTIONS

OLD = Path(__file__).parents[2] / "data" / "log-v1.sqlite"
KEY = VerifyingKey.parse("example.com/log-v1+76dc9d20+AZTHxzWXkllF/U1d9lCTwVUk6VHF21ytH/cWt1lKQamG")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(OLD, tmp_path / "log.sqlite"))


def test_its_records_are_of_schema_1_and_say_what_they_said(path: Path) -> None:
    with Log.open(path, projections=PROJECTIONS) as log:
        records = [record for entry in log.read(1) if (record := entry.record) is not None]
    assert {record.schema for record in records} == {1}
    assert {upcast(record).schema for record in records} == {SCHEMA}
    assert [(record.wall_ns, from_record(record)) for record in records] == list(STORY)


def test_its_tables_are_migrated_and_its_checkpoint_still_speaks_for_it(path: Path) -> None:
    with pytest.raises(LogUnreadable, match="older version"):
        LogReader.open(path)
    with Log.open(path, projections=PROJECTIONS) as log:
        assert found_layout(log.connection_for_checks()) == expected_layout()
        report = verify(log, PROJECTIONS, keys=[KEY], folds=[Fold()])
        assert report.clean, report.faults
        assert (report.checkpoints_checked, report.unprotected) == (1, 0)
        (finding,) = who(log, at_ns=BOUND_NS + NS, protocol=17, port=7648)
        assert isinstance(finding.answer, Holder)
        assert finding.answer.holding.holder == host(10)


def test_the_file_that_is_kept_stays_as_it_is() -> None:
    assert not archives_of(OLD).exists()
    assert [file.name for file in OLD.parent.iterdir() if file.name.startswith(OLD.name)] == [OLD.name]
