"""Values as people and programs get them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tools.sample_log import BOUND_NS, EVIL_NAME, SERVICE, bound
from tools.output import (
    exact_time_text,
    octets_text,
    plain,
    print_json_lines,
    print_line,
    print_table,
    printable,
    time_text,
    words,
)


def test_times_are_utc_and_say_so() -> None:
    assert time_text(0) == "1970-01-01T00:00:00.000Z"
    assert exact_time_text(BOUND_NS) == "2026-05-04T16:01:00.123456789Z"
    assert time_text(BOUND_NS) == "2026-05-04T16:01:00.124Z"
    assert time_text(999_000_001) == "1970-01-01T00:00:01.000Z"


def test_octets_are_named_by_their_number() -> None:
    assert octets_text(b"\xc0\xa8\x01\x0a") == "192.168.1.10"
    assert octets_text(bytes(range(6))) == "00:01:02:03:04:05"
    assert octets_text(b"\xde\xad\xbe") == "deadbe"


def test_an_event_becomes_plain_values_with_its_field_names() -> None:
    assert plain(bound(1, 10)) == {
        "binding": 1,
        "resource": {
            "gateway": "gw1",
            "public_address": "192.0.2.2",
            "service": "cuseeme",
            "peer": None,
        },
        "holder": "192.168.1.10",
        "mac": "02:00:00:00:00:0a",
        "epoch": 1,
        "protocol": "udp",
        "source_port": 7648,
        "destination": "203.0.113.10",
        "destination_port": 7648,
    }


def test_ports_and_times_have_their_own_form() -> None:
    assert plain(SERVICE)["forward"] == ["udp/7648-7649", "tcp/7648-7649", "udp/24032"]
    assert plain({"since_ns": 1, "until_ns": None, "protocol": 6}) == {
        "since": "1970-01-01T00:00:00.000000001Z",
        "until": None,
        "protocol": "tcp",
    }


def test_words_are_names_and_values_and_leave_out_what_is_not_there() -> None:
    value = {"name": "Bob B", "none": None, "nested": {"a": 1}, "many": ("x", "y"), "empty": ""}
    assert list(words(value)) == ['name="Bob B"', "nested.a=1", "many=x,y", 'empty=""']


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert printable(text).isprintable()


def test_names_from_the_network_reach_people_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(EVIL_NAME, (EVIL_NAME, "bold"))
    print_table("users", ("name", "nothing"), [(EVIL_NAME, None)])
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert output.count('Bob\\x1b[2J "x" [red]') == 3
    assert "nothing" not in output


def test_json_lines_are_one_document_with_a_line_for_each_item(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_lines([{"a": 1}, {"a": b"\xc0\x00\x02\x01"}])
    output = capsys.readouterr().out
    assert json.loads(output) == [{"a": 1}, {"a": "192.0.2.1"}]
    assert output.splitlines()[1:3] == ['{"a": 1},', '{"a": "192.0.2.1"}']


def test_no_items_are_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_lines([])
    assert json.loads(capsys.readouterr().out) == []
