"""An operator's commands against a running tracker: what they say, how they end, what the log has then."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.unit.tools.sample_log import host
from tests.unit.tools.test_status import directory, hold_a_port, running_tracker
from tools.cli import main
from tracker.configuration import TrackerSection

__all__ = ["directory"]


class Desk:
    """Where an operator sits: a tracker, a configuration, and a port that host 10 holds."""

    def __init__(self, directory: Path, section: TrackerSection) -> None:
        self.config = directory / "porthold.toml"
        names = ("endpoint", "reader_endpoint", "operator_endpoint", "log")
        lines = "".join(f'{name} = "{getattr(section, name)}"\n' for name in names)
        self.config.write_text(f"[tracker]\n{lines}")

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--config", str(self.config)])

    def order(self, *words: str) -> Result:
        return self(*words, "--reason", "noise", "--timeout", "1")


@pytest.fixture
def desk(directory: Path) -> Iterator[Desk]:
    with running_tracker(directory) as section:
        hold_a_port(section, directory / "outbox")
        yield Desk(directory, section)


def test_an_order_that_no_worker_has_carried_out_ends_with_1_and_is_shown_everywhere(desk: Desk) -> None:
    first = desk.order("release", "7648/udp")
    assert first.exit_code == 1
    assert "binding 1 (cuseeme at gw1, 192.168.1.10): logged, and worker gw1 is told" in first.stdout
    again = desk.order("revoke", "1", "192.168.1.10", "--for", "90s", "--json")
    assert again.exit_code == 1
    (binding,) = json.loads(again.stdout)["bindings"]
    assert (binding["binding"], binding["outcome"], binding["worker"]) == (1, "waiting", "gw1")
    status = desk("status").stdout
    assert "revoke, waits for the worker" in status
    assert "revoked" in status
    explained = desk("explain", "1").stdout
    assert explained.count("an operator ended it") == 2
    assert "192.168.1.10 barred until" in desk("who", "--port", "7648").stdout
    state = desk("replay", "--to", "-1").stdout
    assert "ordered" in state
    changes = desk("replay", "--diff", "3", "-1").stdout
    assert "+ restriction revoked gw1 cuseeme 192.168.1.10" in changes


def test_what_is_reserved_frozen_and_allowed_again_is_said_and_given_twice_is_no_news(desk: Desk) -> None:
    told = [
        desk.order(*words).stdout.splitlines()[0]
        for words in (
            ("reserve", "7648/udp", "192.168.1.11"),
            ("reserve", "cuseeme", "192.168.1.11", "--gateway", "gw1"),
            ("reserve", "cuseeme", "--end"),
            ("reserve", "cuseeme", "--end"),
            ("freeze",),
            ("freeze",),
            ("freeze", "--gateway", "gw1"),
            ("freeze", "--end"),
            ("freeze", "--end"),
            ("revoke", "--end", "192.168.1.10"),
        )
    ]
    assert told == [
        "cuseeme at gw1 is reserved for 192.168.1.11",
        "cuseeme at gw1 was already reserved for 192.168.1.11",
        "cuseeme at gw1 is anybody's again",
        "cuseeme at gw1 was not reserved",
        "nobody may claim at any gateway",
        "nobody may claim at any gateway: it was so already",
        "nobody may claim at gw1",
        "claims at any gateway are decided again",
        "there was no freeze at any gateway",
        "192.168.1.10 was not barred",
    ]
    restriction = json.loads(desk("who", "--port", "7648", "--json").stdout)["findings"][0]["restrictions"]
    assert [it["restraint"] for it in restriction] == ["frozen"]
    names = [it["name"] for it in json.loads(desk("log", "show", "--json").stdout)]
    assert names[-5:] == ["PortReserved", "ReservationEnded", "ClaimsFrozen", "ClaimsFrozen", "FreezeEnded"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("release", "80/udp"), 1, "No such binding is open."),
        (("release", "99"), 1, "No such binding is open."),
        (("release", "x"), 2, "no binding like 17"),
        (("release",), 2, "Missing argument"),
        (("revoke", "1", "--for", "1"), 2, "no time like 90s"),
        (("revoke", "1", "--end"), 2, "the address of a host"),
        (("revoke", "192.168.1.10", "--end", "--for", "1h"), 2, "choose one"),
        (("reserve", "7648", "192.168.1.11"), 2, "like 7648/udp"),
        (("reserve", "80/udp", "192.168.1.11"), 2, "belongs to no service"),
        (("reserve", "cuseeme"), 2, "for which HOST"),
        (("freeze", "--gateway", "gw9"), 1, "no gateway 'gw9' is known"),
        (("freeze", "--end", "--end-calls"), 2, "not with its --end"),
    ],
)
def test_what_cannot_be_done_is_said(desk: Desk, words: tuple[str, ...], code: int, said: str) -> None:
    result = desk.order(*words)
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_a_reason_is_wanted_and_a_tracker(desk: Desk, directory: Path) -> None:
    assert desk("release", "1").exit_code == 2
    assert "--reason" in desk("release", "1").stderr
    desk.config.write_text(f'[tracker]\noperator_endpoint = "ipc://{directory}/nobody.ipc"\n')
    result = desk.order("release", "1")
    assert result.exit_code == 1
    assert "No tracker answers" in result.stderr


def test_a_log_names_whose_word_it_was(desk: Desk) -> None:
    desk.order("reserve", "cuseeme", "192.168.1.11")
    shown = desk("log", "show", "--type", "PortReserved", "--json").stdout
    (record,) = json.loads(shown)
    fields = record["fields"]
    assert (fields["why"], fields["by"].endswith("(unix:0)")) == ("noise", True)
    assert fields["host"] == ".".join(map(str, host(11)))
