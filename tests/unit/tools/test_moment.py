"""A time in text is read to the nanosecond, or refused with what is wrong."""

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tools.cli import main
from tools.moment import NS_PER_S, moment_from_text
from tools.output import exact_time_text, time_text

NOW_NS = 1_777_910_700_000_000_007  # 2026-05-04T16:05:00.000000007Z
WHOLE_NS = 1_777_910_700_000_000_000


@pytest.mark.parametrize(
    ("text", "moment_ns"),
    [
        ("now", NOW_NS),
        (" NOW ", NOW_NS),
        ("5 minutes ago", NOW_NS - 300 * NS_PER_S),
        ("1 minute ago", NOW_NS - 60 * NS_PER_S),
        ("90s ago", NOW_NS - 90 * NS_PER_S),
        ("2 Hours ago", NOW_NS - 7200 * NS_PER_S),
        ("3 d ago", NOW_NS - 3 * 86_400 * NS_PER_S),
        ("1 week ago", NOW_NS - 604_800 * NS_PER_S),
        ("2026-05-04T16:05:00Z", WHOLE_NS),
        ("2026-05-04T16:05Z", WHOLE_NS),
        ("2026-05-04 16:05:00 UTC", WHOLE_NS),
        ("2026-05-04 18:05+02:00", WHOLE_NS),
        ("2026-05-04 18:05 +0200", WHOLE_NS),
        ("2026-05-04T11:35:00-04:30", WHOLE_NS),
        ("2026-05-04T16:05:00.000000007Z", WHOLE_NS + 7),
        ("2026-05-04T16:05:00,25Z", WHOLE_NS + 250_000_000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_a_time_is_read(text: str, moment_ns: int) -> None:
    assert moment_from_text(text, NOW_NS) == moment_ns


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no time"),
        ("noon", "is no time"),
        ("16:05Z", "is no time"),
        ("2026-05-04", "is no time"),
        ("1777910700", "is no time"),
        ("2026-05-04T16:05:00", "has no time zone"),
        ("2026-05-04 16:05", "has no time zone"),
        ("2026-13-04T16:05:00Z", "month"),
        ("2026-05-04T25:05:00Z", "hour"),
        ("2026-05-04T16:05:00.0000000001Z", "is no time"),
        ("5 fortnights ago", "fortnights"),
        ("-5 minutes ago", "is no time"),
        ("999999999 weeks ago", "before 1970"),
        ("1969-12-31T23:59:59Z", "1970"),
        ("9999-12-31T23:59:59Z", "2262"),
        ("in 5 minutes", "is no time"),
    ],
)
def test_what_is_no_time_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        moment_from_text(text, NOW_NS)


@given(st.integers(0, 2**63 - 1))
def test_an_exact_time_is_read_back_to_the_nanosecond(wall_ns: int) -> None:
    assert moment_from_text(exact_time_text(wall_ns), NOW_NS) == wall_ns


@given(st.integers(0, 2**62))
def test_a_time_for_people_is_at_most_a_millisecond_later_never_earlier(wall_ns: int) -> None:
    assert 0 <= moment_from_text(time_text(wall_ns), NOW_NS) - wall_ns < 1_000_000


@given(st.text())
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    said = None
    try:
        assert moment_from_text(text, NOW_NS) >= 0
    except ValueError as error:
        said = str(error)
    assert said is None or repr(text.strip()) in said


def test_a_time_without_zone_is_wrong_use() -> None:
    result = CliRunner().invoke(main, ["who", "--log", "x", "--port", "7648", "--at", "2026-05-04T16:05"])
    assert result.exit_code == 2
    assert "no time zone" in result.stderr
