"""`who`, `holds`, `log show`, `replay`, `verify` on a log with a known story."""

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventlog.record import encode
from tests.unit.tools.sample_log import STORY, UNKNOWN_TYPE, records, write_sample_log
from tools.cli import main

READING = (
    ("who", "--port", "7648", "--at", "2026-05-04T16:02Z"),
    ("holds",),
    ("log", "show"),
    ("replay",),
    ("verify",),
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_sample_log(tmp_path / "log.sqlite")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def who(log: Path, at: str, *more: str, port: str = "7648") -> Result:
    return run("who", "--log", log, "--at", at, "--port", port, *more)


# --- who ----------------------------------------------------------------------------------------------------


def test_who_names_the_holder_and_what_it_rests_on(log: Path) -> None:
    result = who(log, "2026-05-04T16:02:00Z")
    assert result.exit_code == 0
    head, held, named, claimed = result.stdout.splitlines()
    assert head == "port 7648 (cuseeme, gateway gw1, 192.0.2.2) at 2026-05-04T16:02:00.000Z: 192.168.1.10"
    assert "from 2026-05-04T16:01:00.124Z to 2026-05-04T16:05:00.000Z (hang-up)" in held
    assert "02:00:00:00:00:0a" in named
    assert "udp 192.168.1.10:7648 → 203.0.113.10:7648" in claimed


@pytest.mark.parametrize(
    ("at", "holder"),
    [
        ("2026-05-04T16:01:00.123456788Z", None),
        ("2026-05-04T16:01:00.123456789Z", "192.168.1.10"),
        ("2026-05-04T16:01:00.124Z", "192.168.1.10"),
        ("2026-05-04T18:04:59.999999999+02:00", "192.168.1.10"),
        ("2026-05-04T16:05:00.000Z", None),
        ("2026-05-04T16:06:00.000Z", "192.168.1.11"),
        ("now", "192.168.1.11"),
    ],
)
def test_who_answers_to_the_nanosecond(log: Path, at: str, holder: str | None) -> None:
    result = who(log, at, "--json")
    (finding,) = document(result)["findings"]
    assert result.exit_code == (0 if holder else 1)
    if holder is None:
        assert finding["answer"] == "nobody"
    else:
        assert (finding["answer"], finding["holding"]["holder"]) == ("held", holder)


def test_who_says_nobody_and_who_had_it_before(log: Path) -> None:
    result = who(log, "2026-05-04T16:05:30Z")
    assert result.exit_code == 1
    head, last, *_ = result.stdout.splitlines()
    assert head.endswith(": nobody")
    assert last.startswith("  before that: 192.168.1.10 from 2026-05-04T16:01:00.124Z")


def test_who_says_unknown_and_why(log: Path) -> None:
    result = who(log, "2026-05-04T15:59:00Z")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].endswith("at 2026-05-04T15:59:00.000Z: unknown")
    assert "because before-log" in result.stdout
    (finding,) = document(who(log, "2026-05-04T15:59:00Z", "--json"))["findings"]
    assert finding["answer"] == "unknown"
    assert [outage["kind"] for outage in finding["because"]] == ["before-log"]


def test_who_says_unknown_while_the_tracker_was_down_and_nobody_known_held(log: Path) -> None:
    result = who(log, "2026-05-04T16:15:00Z", "--public-address", "192.0.2.99", "--json")
    (finding,) = document(result)["findings"]
    assert result.exit_code == 1
    assert finding["answer"] == "unknown"
    assert [(outage["kind"], outage["position"]) for outage in finding["because"]] == [("tracker-down", 11)]


def test_who_tells_the_doubts_beside_a_holder(log: Path) -> None:
    result = who(log, "2026-05-04T16:15:00Z")
    assert result.exit_code == 0
    assert "192.168.1.11" in result.stdout
    assert "although tracker-down from 2026-05-04T16:10:00.000Z to 2026-05-04T16:20:00.000Z" in result.stdout


@pytest.mark.parametrize("port", ["7649/udp", "udp/7649", "tcp/7648", "24032", "7648/TCP"])
def test_who_knows_all_ports_of_a_service(log: Path, port: str) -> None:
    assert "192.168.1.10" in who(log, "2026-05-04T16:02Z", port=port).stdout


def test_who_on_a_port_of_no_service_is_nobody_and_says_that(log: Path) -> None:
    result = who(log, "2026-05-04T16:02Z", port="24032/tcp")
    assert result.exit_code == 1
    assert "no service that the log knows of had this port" in result.stdout


def test_who_keeps_to_gateway_service_and_address(log: Path) -> None:
    same = who(log, "2026-05-04T16:02Z", "--gateway", "gw1", "--service", "cuseeme", "--protocol", "udp")
    assert same.exit_code == 0
    assert same.stdout.startswith("udp/7648 (cuseeme")
    assert who(log, "2026-05-04T16:02Z", "--gateway", "gw2").exit_code == 1
    assert who(log, "2026-05-04T16:02Z", "--public-address", "192.0.2.3").exit_code == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--port", "70000"), "is no port"),
        (("--port", "0"), "is no port"),
        (("--port", "udp/7648/tcp"), "is no port"),
        (("--port", "7648/udp", "--protocol", "tcp"), "--port says udp, --protocol tcp"),
        (("--port", "7648", "--public-address", "gateway"), "is no IPv4 address"),
        (("--port", "7648", "--service", "www"), "'www' at that time, but to: cuseeme"),
    ],
)
def test_who_refuses_what_it_does_not_understand(log: Path, more: tuple[str, ...], said: str) -> None:
    result = run("who", "--log", log, *more)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_who_without_a_port_answers_for_every_service(log: Path) -> None:
    result = run("who", "--log", log, "--at", "2026-05-04T16:02Z")
    assert result.exit_code == 0
    head = result.stdout.splitlines()[0]
    assert head == "any port (cuseeme, gateway gw1, 192.0.2.2) at 2026-05-04T16:02:00.000Z: 192.168.1.10"
    asked = run("who", "--log", log, "--at", "2026-05-04T16:02Z", "--service", "cuseeme", "--protocol", "tcp")
    assert asked.stdout.startswith("any tcp port (cuseeme")


# --- holds --------------------------------------------------------------------------------------------------


def test_holds_lists_the_newest_first_with_its_facts(log: Path) -> None:
    result = run("holds", "--log", log)
    assert result.exit_code == 0
    title, head, second, first = result.stdout.splitlines()
    assert title == "2 bindings"
    columns = "binding gateway public address service holder mac user since until ended by packets refused"
    assert " ".join(head.split()) == columns
    row = "2 gw1 192.0.2.2 cuseeme 192.168.1.11 02:00:00:00:00:0b - 2026-05-04T16:06:00.000Z open - - 0"
    assert " ".join(second.split()) == row
    for fact in ("192.168.1.10", "2026-05-04T16:05:00.000Z", "hang-up", "4711", "\\x1b"):
        assert fact in first
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("more", "bindings"),
    [
        (("--holder", "192.168.1.10"), [1]),
        (("--open",), [2]),
        (("--at", "2026-05-04T16:02Z"), [1]),
        (("--since", "2026-05-04T16:05:30Z"), [2]),
        (("--since", "2026-05-04T16:04Z"), [2, 1]),
        (("--until", "2026-05-04T16:06Z"), [1]),
        (("--service", "cuseeme", "--gateway", "gw1", "--limit", "1"), [2]),
        (("--service", "www"), []),
        (("--public-address", "192.0.2.2"), [2, 1]),
        (("--public-address", "192.0.2.3"), []),
        (("--holder", "192.168.1.99"), []),
    ],
)
def test_holds_keeps_to_what_is_asked(log: Path, more: tuple[str, ...], bindings: list[int]) -> None:
    result = run("holds", "--log", log, *more, "--json")
    assert [holding["binding"] for holding in document(result)] == bindings
    assert result.exit_code == (0 if bindings else 1)


@pytest.mark.parametrize(
    "more",
    [
        ("--holder", "bob"),
        ("--at", "now", "--since", "now"),
        ("--since", "1 hour ago", "--until", "2 hours ago"),
        ("--limit", "0"),
    ],
)
def test_holds_refuses_questions_without_sense(log: Path, more: tuple[str, ...]) -> None:
    assert run("holds", "--log", log, *more).exit_code == 2


# --- log show -----------------------------------------------------------------------------------------------


def test_log_show_has_a_line_for_each_record_with_its_fields(log: Path) -> None:
    result = run("log", "show", "--log", log)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(len(STORY) + 1)]
    assert [line.split()[2] for line in lines[:-1]] == [type(event).__name__ for _, event in STORY]
    assert "holder=192.168.1.10 mac=02:00:00:00:00:0a" in lines[3]
    assert lines[3].split()[1] == "2026-05-04T16:01:00.124Z"
    assert "service.forward=udp/7648-7649,tcp/7648-7649,udp/24032" in lines[1]
    assert "reason=hang-up withdrawn=2026-05-04T16:05:00.000Z" in lines[7]
    assert f"type {UNKNOWN_TYPE}" in lines[-1]
    assert "not known to this version" in lines[-1]


def test_log_show_as_json_has_the_exact_record(log: Path) -> None:
    found = document(run("log", "show", "--log", log, "--json"))
    assert [item["position"] for item in found] == list(range(len(STORY) + 1))
    bound = found[3]
    assert (bound["type"], bound["name"]) == (32, "PortBound")
    assert bound["time"] == "2026-05-04T16:01:00.123456789Z"
    assert bound["fields"]["holder"] == "192.168.1.10"
    assert bound["source"] == {"name": "tracker", "incarnation": 1, "sequence": 4, "part": 0}
    assert found[4]["reported"] == "2026-05-04T16:01:01.000000000Z"
    assert (found[-1]["name"], found[-1]["fields"]) == (None, ["what"])


@pytest.mark.parametrize(
    ("more", "positions"),
    [
        (("--from", "11"), [11, 12]),
        (("--from", "3", "--to", "3"), [3]),
        (("--to", "1"), [0, 1]),
        (("--from", "-2"), [11, 12]),
        (("--from", "-100", "--to", "0"), [0]),
        (("--from", "-3", "--to", "-2"), [10, 11]),
        (("--to", "100", "--from", "12"), [12]),
        (("--type", "PortBound"), [3, 10]),
        (("--type", "port-bound", "--type", "35"), [3, 9, 10]),
        (("--type", "9999"), [12]),
        (("--type", "WorkerLost"), []),
    ],
)
def test_log_show_keeps_to_what_is_asked(log: Path, more: tuple[str, ...], positions: list[int]) -> None:
    result = run("log", "show", "--log", log, *more, "--json")
    assert result.exit_code == 0
    assert [item["position"] for item in document(result)] == positions


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--type", "Foo"), "PortBound"),
        (("--from", "13"), "13 records"),
        (("--from", "5", "--to", "3"), "--to 3 is before --from 5"),
        (("--from", "x"), "not a valid integer"),
    ],
)
def test_log_show_refuses_what_is_not_there(log: Path, more: tuple[str, ...], said: str) -> None:
    result = run("log", "show", "--log", log, *more)
    assert result.exit_code == 2
    assert said in result.stderr


def test_log_show_goes_on_past_a_damaged_record_and_ends_with_1(log: Path) -> None:
    damage(log, "UPDATE log_records SET bytes = x'c1' WHERE position = 3")
    result = run("log", "show", "--log", log)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == len(STORY) + 1
    assert "no record" in lines[3]
    assert "porthold verify" in result.stderr
    shown = run("log", "show", "--log", log, "--json")
    assert shown.exit_code == 1
    assert "no record" in document(shown)[3]["problem"]


# --- replay and verify --------------------------------------------------------------------------------------


def damage(log: Path, statement: str, *values: object) -> None:
    """What somebody with the file in his hands can do: he takes the triggers away and puts them back."""
    connection = sqlite3.connect(log, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement, values)
    for _, trigger in triggers:
        connection.execute(trigger)
    connection.close()


def test_replay_of_an_undamaged_log_is_equal(log: Path) -> None:
    result = run("replay", "--log", log)
    assert (result.exit_code, result.stdout) == (0, "bindings: equal, folded from 13 records\n")
    found = document(run("replay", "--log", log, "--json"))
    assert (found["equal"], found["records"], found["projections"]) == (True, 13, {"bindings": []})


def test_replay_names_the_table_that_differs(log: Path) -> None:
    damage(log, "UPDATE bindings SET user_name = 'Eve' WHERE binding = 1")
    result = run("replay", "--log", log)
    assert result.exit_code == 1
    assert result.stdout.startswith("bindings: different")
    assert "Eve" in result.stdout
    found = document(run("replay", "--log", log, "--json"))
    assert found["equal"] is False
    assert [difference["table"] for difference in found["projections"]["bindings"]] == ["bindings"]


def test_replay_of_records_that_cannot_be_folded_says_so(log: Path) -> None:
    damage(log, "UPDATE log_records SET bytes = x'c1' WHERE position = 3")
    result = run("replay", "--log", log)
    assert result.exit_code == 1
    assert "can't be folded" in result.stdout
    assert document(run("replay", "--log", log, "--json"))["equal"] is False


def test_verify_of_an_undamaged_log_is_clean(log: Path) -> None:
    result = run("verify", "--log", log)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"clean: 13 records in {log}\n")
    found = document(run("verify", "--log", log, "--json"))
    assert (found["clean"], found["first"], found["size"]) == (True, None, 13)
    assert found["projections_checked"] == ["bindings"]
    assert len(found["root"]) == 64


def test_verify_names_the_first_bad_position_and_what_is_wrong(log: Path) -> None:
    damage(log, "UPDATE log_records SET wall_ns = wall_ns + 1 WHERE position IN (5, 7)")
    result = run("verify", "--log", log)
    assert result.exit_code == 1
    assert result.stdout.startswith("bad: first at position 5; ")
    assert "position 7: columns" in result.stdout
    found = document(run("verify", "--log", log, "--json"))
    assert (found["clean"], found["first"]["position"], found["first"]["kind"]) == (False, 5, "columns")


def test_a_forged_record_with_impossible_fields_is_found_and_no_crash(log: Path) -> None:
    forged = encode(replace(records()[3], fields=("nonsense",)))
    damage(log, "UPDATE log_records SET bytes = ? WHERE position = 3", forged)
    replayed = run("replay", "--log", log)
    assert replayed.exit_code == 1
    assert (
        "can't be folded: bindings cannot take in the record at 3: PortBound: 9 values expected, 1 found"
        in (replayed.stdout)
    )
    verified = run("verify", "--log", log)
    assert verified.exit_code == 1
    assert "bad: first at position 3; " in verified.stdout
    found = document(run("verify", "--log", log, "--json"))
    assert (found["clean"], found["first"]["position"], found["first"]["kind"]) == (False, 3, "leaf")


def test_verify_of_a_file_that_is_no_log_is_no_and_not_wrong_use(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    path.write_text("no database " * 1000)
    result = run("verify", "--log", path)
    assert result.exit_code == 1
    assert result.stdout.startswith("bad: ")
    assert document(run("verify", "--log", path, "--json"))["clean"] is False


# --- where the log is, for all of them ----------------------------------------------------------------------


def configuration(directory: Path, log: Path) -> Path:
    path = directory / "porthold.toml"
    path.write_text(f'[tracker]\nlog = "{log}"\n[services.cuseeme]\nprofile = "cuseeme"\n')
    return path


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_the_log_is_where_the_configuration_says(log: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "--config", configuration(log.parent, log), "--json")
    assert result.exit_code == 0
    assert document(result)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_log_that_is_not_there_is_wrong_use(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "--log", tmp_path / "none.sqlite")
    assert result.exit_code == 2
    assert f"There is no log {tmp_path / 'none.sqlite'}" in result.stderr
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_bad_configuration_is_named_with_file_and_key(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "porthold.toml"
    path.write_text("[tracker]\nlogg = 1\n")
    result = run(*words, "--config", path)
    assert result.exit_code == 2
    assert f"{path}: tracker.logg: is not known" in result.stderr


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_config_and_log_together_are_wrong_use(log: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "--log", log, "--config", configuration(log.parent, log))
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


@pytest.mark.parametrize("words", READING[:4], ids=" ".join)
def test_a_file_that_is_no_log_is_wrong_use(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "log.sqlite"
    path.write_text("no database " * 1000)
    result = run(*words, "--log", path)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_changes_nothing(log: Path, words: tuple[str, ...]) -> None:
    before = log.read_bytes()
    assert run(*words, "--log", log).exit_code == 0
    assert log.read_bytes() == before


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_needs_no_netfilter_library(log: Path, words: tuple[str, ...]) -> None:
    program = """
import sys
from tools.cli import main
try:
    main(sys.argv[1:])
finally:
    wanted = ("nftables", "netfilterqueue", "rewriter.kernel")
    print(*(name for name in wanted if name in sys.modules), file=sys.stderr)
"""
    argv = [sys.executable, "-c", program, *words, "--log", str(log)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_log_of_another_user_is_wrong_use_and_says_sudo(log: Path, words: tuple[str, ...]) -> None:
    program = "import os, sys; from tools import options; from tools.cli import main; import tools.{};"
    program = program.format(words[0]) + "os.setgid(65534); os.setuid(65534); main(sys.argv[1:])"
    argv = [sys.executable, "-c", program, *words, "--log", str(log)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{log} may not be read by this user; try again with sudo." in done.stderr


# --- log tail -----------------------------------------------------------------------------------------------


def test_log_tail_shows_the_last_records_or_those_from_a_position_on(log: Path) -> None:
    shown = run("log", "show", "--log", log).stdout.splitlines()
    assert run("log", "tail", "--log", log).stdout.splitlines() == shown[-10:]
    assert run("log", "tail", "--log", log, "--from", "3").stdout.splitlines() == shown[3:]
    lines = run("log", "tail", "--log", log, "--from", "-2", "--json").stdout.splitlines()
    assert [json.loads(line)["position"] for line in lines] == [len(shown) - 2, len(shown) - 1]


def test_log_tail_follows_a_tracker_and_no_file(log: Path) -> None:
    result = run("log", "tail", "--follow", "--log", log)
    assert result.exit_code == 2
    assert "--log is a file" in result.stderr
