"""`explain`, `export` and `verify --exclusive` on a log with a known story."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventlog.record import Record
from eventlog.store import Log
from tests.unit.tools.sample_log import EVIL_NAME, at, records, write_sample_log
from tools.cli import main
from tracker.events import TYPES, BindingInstalled, BindingWithdrawn, PortBound, from_record, to_record
from tracker.projections import PROJECTIONS


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_sample_log(tmp_path / "log.sqlite")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# --- explain ------------------------------------------------------------------------------------------------


def test_explain_has_a_line_for_each_record_with_its_position(log: Path) -> None:
    result = run("explain", "1", "--log", log)
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head == "cuseeme of 192.0.2.2 at gw1: 192.168.1.10"
    told = [line.split() for line in lines[3:]]
    assert [int(words[0]) for words in told] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert "PortBound" in lines[3 + 2]
    assert "2026-05-04T16:01:00.124Z" in lines[3 + 2]
    assert "\x1b" not in result.stdout


def test_explain_as_json_has_the_records_whole(log: Path) -> None:
    found = json.loads(run("explain", "2", "--log", log, "--json").stdout)
    assert found["holding"]["holder"] == "192.168.1.11"
    assert [(it["position"], it["event"]) for it in found["records"]] == [
        (1, "ServiceDefined"),
        (2, "SessionOpened"),
        (9, "PortUnbound"),
        (10, "PortBound"),
        (11, "TrackerStarted"),
    ]
    bound = found["records"][3]
    assert (bound["role"], bound["fields"]["holder"]) == ("bound", "192.168.1.11")
    assert bound["source"]["sequence"] == 11
    assert [doubt["kind"] for doubt in found["doubts"]] == ["tracker-down"]


def test_explain_of_no_binding_ends_with_1(log: Path) -> None:
    assert (run("explain", "3", "--log", log).exit_code, run("explain", "0", "--log", log).exit_code) == (
        1,
        2,
    )
    assert run("explain", "3", "--log", log, "--json").stdout == "null\n"


# --- export -------------------------------------------------------------------------------------------------

RFC_6888_FIELDS = {"protocol", "holder", "mac", "public_address", "first_port", "last_port", "since", "until"}


def test_export_as_json_lines_has_outages_and_translations(log: Path) -> None:
    result = run("export", "--log", log)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["record"] for line in lines] == ["outage"] + ["translation"] * 6
    assert (lines[0]["kind"], lines[0]["since"]) == ("tracker-down", "2026-05-04T16:10:00.000000000Z")
    assert lines[1].keys() >= RFC_6888_FIELDS
    assert (lines[1]["since"], lines[1]["until"]) == (
        "2026-05-04T16:01:00.123456789Z",
        "2026-05-04T16:05:00.000000000Z",
    )
    assert [line["doubts"] for line in lines[1:]] == [[]] * 3 + [["tracker-down"]] * 3
    assert "destination" not in lines[1]
    assert lines[1]["user_name"] == EVIL_NAME


def test_export_as_csv_has_the_same_rows(log: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("export", "--log", log, "--format", "csv").stdout)))
    assert rows[0].keys() >= RFC_6888_FIELDS
    assert [(row["binding"], row["protocol"], row["first_port"], row["last_port"]) for row in rows] == [
        (binding, protocol, first, last)
        for binding in ("1", "2")
        for protocol, first, last in (
            ("udp", "7648", "7649"),
            ("tcp", "7648", "7649"),
            ("udp", "24032", "24032"),
        )
    ]
    assert rows[3]["until"] == ""
    assert rows[3]["doubts"] == "tracker-down"
    assert "\x1b" not in rows[0]["user_name"]


def test_export_keeps_to_what_is_asked(log: Path) -> None:
    def bindings(*more: str) -> set[int]:
        lines = run("export", "--log", log, *more).stdout.splitlines()
        return {json.loads(line)["binding"] for line in lines if '"translation"' in line}

    assert bindings("--since", "2026-05-04T16:05:30Z") == {2}
    assert bindings("--until", "2026-05-04T16:06Z") == {1}
    assert bindings("--holder", "192.168.1.10", "--gateway", "gw1", "--service", "cuseeme") == {1}
    assert bindings("--public-address", "192.0.2.9") == set()


def test_export_tells_destinations_only_when_asked(log: Path) -> None:
    told = run("export", "--log", log, "--destinations").stdout.splitlines()[-1]
    assert (json.loads(told)["destination"], json.loads(told)["destination_port"]) == ("203.0.113.10", 7648)
    assert "203.0.113.10" not in run("export", "--log", log).stdout


def test_export_to_a_file_is_the_same_as_to_stdout(log: Path, tmp_path: Path) -> None:
    for form in ("jsonl", "csv"):
        shown = run("export", "--log", log, "--format", form)
        assert run("export", "--log", log, "--format", form, "--output", tmp_path / form).stdout == ""
        assert (tmp_path / form).read_bytes() == shown.stdout_bytes
    assert run("export", "--log", log, "--format", "ipfix", "--output", tmp_path / "f").exit_code == 0
    assert (tmp_path / "f").read_bytes()[:2] == b"\0\x0a"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x"])
def test_a_name_that_is_a_formula_is_none_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.sqlite"
    told = list(records())
    told[5] = changed(told[5], user_name=name)
    write(path, told)
    rows = list(csv.DictReader(io.StringIO(run("export", "--log", path, "--format", "csv").stdout)))
    assert rows[0]["user_name"] == f"'{name}"


@pytest.mark.parametrize(
    "more",
    [
        ("--collector", "127.0.0.1:4739"),
        ("--format", "ipfix", "--collector", "127.0.0.1"),
        ("--format", "ipfix", "--collector", "127.0.0.1:0"),
        ("--format", "ipfix", "--destinations"),
        ("--since", "now", "--until", "1 hour ago"),
        ("--output", "/nowhere/at/all"),
    ],
)
def test_export_refuses_what_makes_no_sense(log: Path, more: tuple[str, ...]) -> None:
    assert run("export", "--log", log, *more).exit_code == 2


# --- verify --exclusive -------------------------------------------------------------------------------------


def changed(record: Record, **fields: object) -> Record:
    """The same record, saying something else."""
    event = from_record(record)
    words: dict[str, Any] = {name: getattr(event, name) for name in event.__dataclass_fields__}
    said = type(event)(**{**words, **fields})
    return to_record(said, wall_ns=record.wall_ns, source=record.source, nonce=record.nonce)


def write(path: Path, told: list[Record]) -> Path:
    with Log.open(path, projections=PROJECTIONS) as log:
        log.append(told)
    return path


def of_type(told: list[Record], shape: type) -> int:
    return next(number for number, record in enumerate(told) if TYPES.get(record.type) is shape)


def test_verify_exclusive_shows_the_time_that_was_observed(log: Path) -> None:
    span = ("--from", "2026-05-04T16:00:30Z", "--to", "2026-05-04T16:05:30Z")
    result = run("verify", "--log", log, "--exclusive", *span)
    assert result.exit_code == 0
    assert "exclusive: never two holders at once from 2026-05-04T16:00:30.000Z" in result.stdout
    assert "1 bindings of 1 resources" in result.stdout


def test_verify_exclusive_says_what_is_unknown_and_why(log: Path) -> None:
    result = run("verify", "--log", log, "--exclusive")
    assert result.exit_code == 1
    assert "clean: 13 records" in result.stdout
    assert (
        "unknown, because never-seen-there: cuseeme of 192.0.2.2 at gw1 from 2026-05-04T16:06"
        in result.stdout
    )
    assert "binding 2 was granted" in result.stdout
    before = run(
        "verify", "--log", log, "--exclusive", "--from", "2026-05-04T15:00Z", "--to", "2026-05-04T16:05Z"
    )
    assert "because before-log: every gateway from 2026-05-04T15:00:00.000Z to" in before.stdout


def test_verify_exclusive_finds_two_holders_in_a_log_that_agrees_with_itself(tmp_path: Path) -> None:
    told = records()[:11]
    came = BindingInstalled("gw1", 1, 2, at(6))
    source = told[-1].source
    told.append(to_record(came, wall_ns=at(6), source=source.__class__("gw1", 1, 1, 0), nonce=bytes(16)))
    late = of_type(told, BindingWithdrawn)
    told[late] = changed(told[late], withdrawn_ns=at(7))
    log = write(tmp_path / "forged.sqlite", told)
    result = run("verify", "--log", log, "--exclusive")
    assert result.exit_code == 1
    assert "clean: 12 records" in result.stdout
    assert "two holders at once: 1 times" in result.stdout
    assert "192.168.1.10 (binding 1) and 192.168.1.11 (binding 2)" in result.stdout
    assert "a worker whose clock was set would look the same" in result.stdout
    found = json.loads(run("verify", "--log", log, "--exclusive", "--json").stdout)["exclusive"]
    assert found["shown"] is False
    assert [(it["first"], it["second"], it["by"]) for it in found["overlaps"]] == [(1, 2, "times")]
    assert of_type(told, PortBound) == 3


def test_verify_exclusive_refuses_times_without_sense(log: Path) -> None:
    assert run("verify", "--log", log, "--from", "now").exit_code == 2
    backwards = ("--exclusive", "--from", "2026-05-04T16:05Z", "--to", "2026-05-04T16:05Z")
    assert run("verify", "--log", log, *backwards).exit_code == 2
