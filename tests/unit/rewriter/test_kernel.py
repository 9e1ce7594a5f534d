"""What the kernel's tools print is read as they print it; what they refuse is said in their words."""

from ipaddress import IPv4Address

import pytest

from rewriter import belonging, connections, probing, tables
from rewriter.command import KernelRefused, run
from rewriter.connections import Connection

OPENED_INSIDE = (
    "udp      17 119 src=192.168.1.10 dst=203.0.113.10 sport=7648 dport=7648 "
    "src=203.0.113.10 dst=192.0.2.2 sport=7648 dport=7648 [ASSURED] mark=83886080 use=1"
)
UNANSWERED = (
    "tcp      6 110 SYN_SENT src=198.51.100.20 dst=192.0.2.2 sport=40000 dport=7648 "
    "[UNREPLIED] src=192.168.1.10 dst=198.51.100.20 sport=7648 dport=40000 mark=0 use=1"
)


def test_a_conntrack_entry_is_read_with_both_directions_and_its_mark() -> None:
    assert connections.parse_connection(OPENED_INSIDE) == Connection(
        protocol="udp",
        original=(IPv4Address("192.168.1.10"), IPv4Address("203.0.113.10"), 7648, 7648),
        reply=(IPv4Address("203.0.113.10"), IPv4Address("192.0.2.2"), 7648, 7648),
        replied=True,
        mark=0x05000000,
    )


def test_an_entry_that_nobody_answered_says_so() -> None:
    found = connections.parse_connection(UNANSWERED)
    assert found is not None
    assert (found.protocol, found.replied, found.mark) == ("tcp", False, 0)


def test_an_entry_without_ports_is_none() -> None:
    line = "icmp     1 29 src=192.168.1.10 dst=203.0.113.10 type=8 code=0 id=7 src=203.0.113.10 dst=192.0.2.2"
    assert connections.parse_connection(line) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4m59s956ms", 299.956),
        ("2s", 2.0),
        ("12ms", 0.012),
        ("1d2h3m4s5ms", 93784.005),
        ("364d23h59m59s", 31535999.0),
    ],
)
def test_times_are_read_as_nft_writes_them(text: str, seconds: float) -> None:
    assert tables.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("element", "key"),
    [
        ("192.168.1.10", ["192.168.1.10"]),
        ({"elem": {"val": "192.168.1.10", "expires": 299}}, ["192.168.1.10"]),
        ({"concat": ["192.168.1.10", "192.0.2.1"]}, ["192.168.1.10", "192.0.2.1"]),
        ({"elem": {"val": {"concat": ["10.0.0.1", "10.0.0.2"]}, "expires": 9}}, ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_the_key_of_an_element_is_found_with_and_without_a_timeout(element: object, key: list[str]) -> None:
    assert tables.key_words(element) == key


def test_both_ends_that_can_be_the_host_inside_are_considered() -> None:
    found = connections.parse_connection(UNANSWERED)
    assert found is not None
    assert IPv4Address("192.168.1.10") in belonging.inside(found)


def test_a_rule_that_nft_cannot_parse_is_refused_in_its_words() -> None:
    assert "syntax error" in (probing.try_in_vain(probing.probe("forward", "no such words")) or "")


def test_a_probe_is_no_syntax_error() -> None:
    """A probe on one line once was: every kernel looked too old."""
    assert probing.try_in_vain(probing.probe("postrouting", "@ih,96,32 set @nh,96,32")) is None


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(KernelRefused, match=r"conntrack.*unknown option|bad parameter|invalid"):
        run(["conntrack", "--no-such-option"])


def test_a_tool_that_is_missing_is_named() -> None:
    with pytest.raises(KernelRefused, match="no-such-tool is not installed"):
        run(["no-such-tool"])
