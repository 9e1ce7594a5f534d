"""`archive`, `verify-archive`, `prune`, `redact`: what becomes of old records, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.reading import LogReader
from eventlog.record import Source
from eventlog.store import Log
from eventlog.verify import verify
from tests.unit.tools.sample_log import EVIL_NAME, records, write_sample_log
from tools.cli import main
from tools.output import time_text
from tracker.events import TrackerStarted, to_record
from tracker.projections import PROJECTIONS

KEY = SigningKey("log.example/gateway-1", bytes(range(32)))
PUBLIC = str(KEY.verifying_key)
STRANGER = str(SigningKey("log.example/gateway-1", bytes(32)).verifying_key)
AT = ("--at", "2026-05-04T16:02:00Z")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The sample log without what no tracker knows, signed."""
    path = tmp_path / "log.sqlite"
    with Log.open(path, projections=PROJECTIONS) as log:
        log.append(records()[:-1])
        make_checkpoint(log, KEY, records()[-1].wall_ns)
    return path


def run(path: Path, *words: str | Path) -> Result:
    return CliRunner().invoke(main, [*(str(word) for word in words), "--log", str(path)])


def told(path: Path, *words: str | Path) -> Any:
    result = run(path, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def archives(path: Path) -> list[Path]:
    return sorted(path.with_name(path.name + ".archives").iterdir())


def test_old_months_go_into_archives_and_everything_reads_through_them(path: Path) -> None:
    before = told(path, "log", "show")
    answer = told(path, "who", "--port", "7648", *AT)
    told_of = told(path, "archive", "--before", "2026-06")
    (segment,) = told_of["segments"]
    assert (segment["span"], segment["number"]) == ({"first": 0, "end": 12}, 0)
    with LogReader.open(path) as reader:
        assert reader.query("SELECT count(*) FROM log_records WHERE bytes IS NULL") == [(12,)]
    assert told(path, "log", "show", "--to", "11") == before
    assert told(path, "who", "--port", "7648", *AT) == answer
    assert told(path, "replay")["equal"]
    assert told(path, "verify", "--key", PUBLIC)["clean"]
    assert told(path, "archive")["segments"] == []
    shown = run(path, "archive", "--list").stdout
    assert "archived" in shown
    assert time_text(records()[0].wall_ns) in shown


ASKED: dict[str, tuple[str, ...]] = {
    "who": ("who", "--port", "7648", *AT),
    "holds": ("holds", "--since", "2026-05-04T16:00:00Z", "--json"),
    "explain": ("explain", "1", "--json"),
    "replay at": ("replay", *AT, "--json"),
    "replay diff": ("replay", "--diff", "3", "2026-05-04T16:05:30Z"),
    "export": ("export", "--format", "jsonl", "--until", "2026-06-01T00:00:00Z"),
    "prove": ("prove", "3", "-o", "-"),
}


def exclusive(path: Path) -> Any:
    times = ("--from", "2026-05-04T16:00:00Z", "--to", "2026-05-04T16:05:30Z")
    return json.loads(run(path, "verify", "--exclusive", *times, "--json").stdout)["exclusive"]


@pytest.mark.parametrize("question", ASKED)
def test_every_question_has_the_same_answer_when_its_records_are_archived(path: Path, question: str) -> None:
    before = run(path, *ASKED[question])
    assert before.stdout
    told(path, "archive")
    after = run(path, *ASKED[question])
    assert (after.stdout, after.exit_code) == (before.stdout, before.exit_code)


@pytest.mark.parametrize("question", ["who", "holds", "export"])
def test_who_held_what_is_answered_alike_when_the_records_are_pruned(path: Path, question: str) -> None:
    before = run(path, *ASKED[question])
    told(path, "prune", "--before", "2026-06", "--reason", "too old")
    assert run(path, *ASKED[question]).stdout == before.stdout


def test_what_needs_the_records_says_which_are_gone(path: Path) -> None:
    assert exclusive(path)["shown"]
    told(path, "redact", "5", "--reason", "a name, asked for by the person")
    assert exclusive(path)["shown"]
    steps = told(path, "explain", "1")["records"]
    assert [(it["position"], it["role"]) for it in steps if it["event"] is None] == [(5, "the user's name")]
    told(path, "archive")
    assert exclusive(path)["shown"]
    told(path, "prune", "--before", "2026-06", "--reason", "too old")
    found = exclusive(path)
    assert not found["shown"]
    assert {it["because"] for it in found["unobserved"]} == {"records-gone"}
    assert all("pruned" in it["problem"] for it in told(path, "explain", "1")["records"])
    result = run(path, "replay", *AT)
    assert (result.exit_code, "pruned" in result.stderr) == (1, True)


def test_a_file_that_was_not_made_smaller_is_when_archive_is_asked_again(path: Path) -> None:
    with Log.open(path, projections=PROJECTIONS) as log:
        wall_ns = log.last_wall_ns or 0
        filling = [
            to_record(
                TrackerStarted(9, "x" * 200, "y", None),
                wall_ns=wall_ns,
                source=Source("w", 1, n, 0),
                nonce=bytes(16),
            )
            for n in range(600)
        ]
        log.append(filling)
    told(path, "archive", "--no-compact")
    before = path.stat().st_size
    assert told(path, "archive", "--no-compact")["segments"] == []
    assert path.stat().st_size == before
    assert told(path, "archive")["segments"] == []
    assert path.stat().st_size < before * 2 / 3
    assert told(path, "verify", "--key", PUBLIC)["clean"]


def test_nothing_newer_than_was_asked_for_is_archived(path: Path) -> None:
    assert told(path, "archive", "--before", "2026-05")["segments"] == []
    assert "in the log" in run(path, "archive", "--list").stdout
    assert [it["number"] for it in told(path, "archive", "--segment", "0")["segments"]] == [0]
    result = run(path, "archive", "--segment", "0")
    assert (result.exit_code, "archived already" in result.stderr) == (1, True)
    assert run(path, "archive", "--segment", "7").exit_code == 2
    assert run(path, "archive", "--before", "May").exit_code == 2


def test_an_archive_is_verified_alone(path: Path, tmp_path: Path) -> None:
    told(path, "archive")
    (file,) = archives(path)
    runner = CliRunner()
    good = runner.invoke(main, ["verify-archive", str(file), "--key", PUBLIC])
    assert (good.exit_code, PUBLIC in good.stdout) == (0, True)
    assert runner.invoke(main, ["verify-archive", str(file), "--key", STRANGER]).exit_code == 1
    damaged = tmp_path / "damaged.archive"
    damaged.write_bytes(file.read_bytes().replace(b"eventlog", b"eventgol"))
    result = runner.invoke(main, ["verify-archive", str(file), str(damaged), "--json"])
    assert result.exit_code == 1
    assert [it["good"] for it in json.loads(result.stdout)] == [True, False]


def test_pruned_records_are_gone_and_the_answers_stay(path: Path) -> None:
    answer = told(path, "who", "--port", "7648", *AT)
    told(path, "archive")
    assert run(path, "prune", "--before", "2026-06").exit_code == 2
    assert run(path, "prune", "--reason", "why").exit_code == 2
    (segment,) = told(path, "prune", "--before", "2026-06", "--reason", "kept for six months")["segments"]
    assert segment["pruned_at"] is not None
    assert archives(path) == []
    assert EVIL_NAME.encode() not in b"".join(
        file.read_bytes() for file in path.parent.iterdir() if file.is_file() and file.suffix != ".sqlite"
    )
    assert told(path, "who", "--port", "7648", *AT) == answer
    report = told(path, "verify", "--key", PUBLIC)
    assert report["clean"]
    assert report["checkpoints_checked"] == 1
    assert report["gone"][0]["span"] == {"first": 0, "end": 12}
    assert told(path, "replay")["equal"]
    shown = run(path, "log", "show")
    assert shown.exit_code == 0
    assert "positions 0 to 11: pruned" in shown.stdout
    result = run(path, "replay", "--to", "5")
    assert (result.exit_code, "pruned" in result.stderr) == (1, True)
    result = run(path, "prove", "3")
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert told(path, "prune", "--before", "2026-06", "--reason", "again")["segments"] == []


def test_a_redacted_record_says_no_more_and_the_rest_goes_on(path: Path) -> None:
    said = told(path, "redact", "5", "--reason", "asked for by the person")
    assert said["traceless"]
    shown = told(path, "log", "show")
    assert "redacted" in shown[5]["problem"]
    (order,) = [it for it in shown if it.get("name") == "RecordRedacted"]
    assert (order["position"], order["fields"]) == (
        said["said_at"],
        {"position": 5, "reason": "asked for by the person"},
    )
    assert told(path, "verify", "--key", PUBLIC)["clean"]
    again = run(path, "redact", "5", "--reason", "twice")
    assert (again.exit_code, "redacted already" in again.stderr) == (1, True)
    assert run(path, "redact", "5", "--reason", " ").exit_code == 2
    assert run(path, "redact", "5", "--reason", "x" * 257).exit_code == 2
    result = run(path, "replay", "--to", "8", "--no-snapshot")
    assert (result.exit_code, "position 5 is redacted" in result.stderr) == (1, True)


def test_a_log_with_records_that_only_a_newer_version_knows_loses_none(tmp_path: Path) -> None:
    path = write_sample_log(tmp_path / "log.sqlite")
    result = run(path, "redact", "5", "--reason", "asked for")
    assert (result.exit_code, "newer version" in result.stderr) == (1, True)
    assert "redacted" not in run(path, "log", "show", "--from", "5", "--to", "5").stdout


@pytest.mark.parametrize(
    "more", [(), ("--exclusive", "--from", "2026-05-04T16:00Z", "--to", "2026-05-04T16:05Z")]
)
def test_what_is_redacted_while_it_is_verified_is_no_fault(
    path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    told(path, "archive")
    redacted: list[Any] = []

    def verify_slowly(reader: LogReader, projections: Any, **options: Any) -> Any:
        assert reader.size  # From here on the reader sees this state, whose archive is about to go.
        if not redacted:
            redacted.append(told(path, "redact", "5", "--reason", "asked for"))
        return verify(reader, projections, **options)

    monkeypatch.setattr("tools.verify.verify", verify_slowly)
    found = told(path, "verify", "--key", PUBLIC, *more)
    assert found["clean"]
    assert len(redacted) == 1
    assert found["size"] > redacted[0]["said_at"]


def test_an_archive_that_somebody_took_away_stays_a_fault_after_a_later_redaction(path: Path) -> None:
    told(path, "archive")
    (archive,) = archives(path)
    kept = archive.read_bytes()
    told(path, "redact", "5", "--reason", "asked for")
    (archive,) = archives(path)
    archive.write_bytes(kept)
    assert run(path, "verify").exit_code == 1
