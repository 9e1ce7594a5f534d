"""`replay` shows the state at any position or time, and what differs between two, by the records alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eventlog.record import SNAPSHOT_TAKEN, Record, Source
from eventlog.snapshot import Snapshot, snapshot_fields
from eventlog.store import Log, LogReader
from tests.unit.tools.sample_log import STORY, at, records, write_sample_log
from tools.cli import main
from tools.past import Past, state_at
from tracker import image
from tracker.image import Fold
from tracker.projections import PROJECTIONS

HANG_UP = 9
"""The position of the record that frees the port."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_sample_log(tmp_path / "log.sqlite")


def replay(log: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["replay", "--log", str(log), *words])


def state(log: Path, *words: str) -> Any:
    result = replay(log, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["state"]


def holders(found: Any) -> list[str]:
    return [binding["holder"] for binding in found["bindings"]]


@pytest.mark.parametrize(
    ("words", "size", "held"),
    [
        (("--to", "0"), 1, []),
        (("--to", "2"), 3, []),
        (("--to", "3"), 4, ["192.168.1.10"]),
        (("--to", str(HANG_UP - 1)), 9, ["192.168.1.10"]),
        (("--to", str(HANG_UP)), 10, []),
        (("--to", "-1"), 13, ["192.168.1.11"]),
        (("--at", "2026-05-04T16:02Z"), 6, ["192.168.1.10"]),
        (("--at", "2026-05-04T16:05:30Z"), 10, []),
        (("--to", "2026-05-04T16:06:00Z"), 11, ["192.168.1.11"]),
        (("--at", "2020-01-01T00:00Z"), 0, []),
        (("--at", "now"), 13, ["192.168.1.11"]),
    ],
)
def test_the_state_is_that_of_the_position_or_the_moment(
    log: Path, words: tuple[str, ...], size: int, held: list[str]
) -> None:
    found = state(log, *words)
    assert (found["size"], holders(found)) == (size, held)


def test_a_state_has_bindings_and_sessions_with_all_that_the_records_say(log: Path) -> None:
    found = state(log, "--to", "6")
    (binding,), (session,) = found["bindings"], found["sessions"]
    assert binding["since"] == "2026-05-04T16:01:00.123456789Z"
    assert (binding["mac"], binding["refused"], binding["epoch"]) == (
        "02:00:00:00:00:0a",
        ["192.168.1.11"],
        1,
    )
    assert (session["gateway"], session["state"], session["services"]) == ("gw1", "open", ["cuseeme"])
    assert (session["public_addresses"], session["opened"]) == (
        ["192.0.2.2"],
        "2026-05-04T16:00:00.000000000Z",
    )
    shown = replay(log, "--to", "6")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("state after 7 records, the last of them of 2026-05-04T16:03:00.000Z")
    for fact in ("gw1", "open", "192.168.1.10", "192.168.1.11", 'Bob\\x1b[2J "x" [red]'):
        assert fact in shown.stdout


def test_from_a_position_on_the_records_are_shown_and_then_the_state(log: Path) -> None:
    shown = replay(log, "--from", "3", "--to", str(HANG_UP)).stdout.splitlines()
    assert [line.split()[2] for line in shown[:7]] == [type(event).__name__ for _, event in STORY[3:10]]
    assert shown[7].startswith("state after 10 records")
    assert shown[-1] == "No bindings: nobody holds a port."
    result = replay(log, "--from", "2026-05-04T16:05:30Z", "--json")
    found = json.loads(result.stdout)
    assert [record["position"] for record in found["log"]] == [10, 11, 12]
    assert holders(found["state"]) == ["192.168.1.11"]


def test_a_record_of_an_unknown_type_is_left_out_and_that_is_said(log: Path) -> None:
    assert (
        "1 records of types that this version does not know are left out" in replay(log, "--to", "-1").stdout
    )
    assert state(log, "--to", "11")["unknown"] == 0


def test_what_differs_between_two_states_is_said_and_ends_with_1(log: Path) -> None:
    result = replay(log, "--diff", "4", "-1")
    head, went, came = result.stdout.splitlines()
    assert (result.exit_code, head) == (1, "from 5 records to 13: 2 differences")
    assert went.startswith("- binding 1  ")
    assert came.startswith("+ binding 2  ")
    named = replay(log, "--diff", "4", "2026-05-04T16:03Z")
    assert named.exit_code == 1
    line = named.stdout.splitlines()[1]
    assert line.startswith('~ binding 1  user_name - → Bob\\x1b[2J "x" [red], refused - → 192.168.1.11')
    document = json.loads(replay(log, "--diff", "4", "5", "--json").stdout)
    assert document["equal"] is False
    (difference,) = document["differences"]
    assert difference["before"] == {"user_name": None}


def test_states_that_are_the_same_are_0(log: Path) -> None:
    result = replay(log, "--diff", "9", "9")
    assert (result.exit_code, result.stdout) == (0, "from 10 records to 10: no differences\n")
    assert json.loads(replay(log, "--diff", "3", "4", "--json").stdout)["equal"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "13"), "There is no position 13: the log has 13 records, from 0"),
        (("--to", "-14"), "There is no position -14"),
        (("--to", "yesterday"), "nor is it a position"),
        (("--at", "3"), "is no time"),
        (("--at", "now", "--to", "3"), "choose one"),
        (("--diff", "1", "2", "--from", "3"), "choose one"),
        (("--from", "7", "--to", "3"), "before --from"),
        (("--diff", "1"), "requires 2 arguments"),
    ],
)
def test_wrong_use_is_2_and_says_what_is_wrong(log: Path, words: tuple[str, ...], said: str) -> None:
    result = replay(log, *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def with_snapshot(path: Path, state: bytes | None = None) -> int:
    """The sample log, its state kept after the tenth record; returns over how many records."""
    with Log.open(path, projections=PROJECTIONS) as log:
        log.append(records()[:10])
        fold = Fold()
        for position, record in enumerate(records()[:10]):
            fold.apply(position, record)
        snapshot = Snapshot(image.NAME, image.VERSION, 10, fold.state() if state is None else state)
        said = Record(
            1, SNAPSHOT_TAKEN, at(5), None, Source("tracker", 1, 99, 0), bytes(16),
            snapshot_fields(snapshot, log.head().root),
        )  # fmt: skip
        log.append([said], snapshot=snapshot)
        log.append(records()[10:])
    return snapshot.size


def test_a_snapshot_saves_folding_what_is_before_it_and_gives_the_same(tmp_path: Path) -> None:
    size = with_snapshot(tmp_path / "log.sqlite")

    def past(at_size: int, *, snapshots: bool) -> Past:
        with LogReader.open(tmp_path / "log.sqlite") as reader:
            return state_at(reader, at_size, lambda *_: None, snapshots=snapshots)

    for at_size in (size, 11, 14):
        saved, folded = past(at_size, snapshots=True), past(at_size, snapshots=False)
        assert (saved.folded_from, folded.folded_from) == (size, 0)
        assert (saved.bindings, saved.sessions, saved.run) == (folded.bindings, folded.sessions, folded.run)
    assert past(size - 1, snapshots=True).folded_from == 0
    assert state(tmp_path / "log.sqlite", "--to", "-1", "--no-snapshot")["folded_from"] == 0


def test_a_snapshot_that_is_no_state_is_not_believed_and_the_records_are_folded(tmp_path: Path) -> None:
    with_snapshot(tmp_path / "log.sqlite", state=b"nonsense")
    result = replay(tmp_path / "log.sqlite", "--to", "-1", "--json")
    assert "A snapshot is not believed" in result.stderr
    assert holders(json.loads(result.stdout)["state"]) == ["192.168.1.11"]
