"""Times as people and scripts write them, for `--at` and its like.

Rule 1: a time without a zone is refused, never guessed: a log is read far from where and when it was written.
Rule 2: what `output` prints is read back here to the nanosecond.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import click

NS_PER_S: Final = 1_000_000_000
_UNITS_S: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_SHORT: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END_NS: Final = 2**63
_ISO: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:[.,](\d{1,9}))? ?(Z|z|UTC|[+-]\d{2}:?\d{2})?"
)
_AGO: Final = re.compile(r"(\d{1,9}) ?([a-z]+) ago")
FORMS: Final = "'2026-05-04T16:05:00Z', '2026-05-04 18:05+02:00', '5 minutes ago', 'now'"


def moment_from_text(text: str, now_ns: int) -> int:
    """Wall time in ns since 1970, UTC; ValueError says what is wrong. "ago" counts back from `now_ns`."""
    text = text.strip()
    if text.lower() == "now":
        return now_ns
    if found := _AGO.fullmatch(text.lower()):
        return _ago_ns(text, int(found[1]), found[2], now_ns)
    if found := _ISO.fullmatch(text):
        return _iso_ns(text, *found.groups())
    raise ValueError(f"{text!r} is no time; write one like {FORMS}")


def _ago_ns(text: str, count: int, word: str, now_ns: int) -> int:
    unit = _SHORT.get(word, word.removesuffix("s"))
    if unit not in _UNITS_S:
        raise ValueError(f"{text!r}: {word!r} is none of {', '.join(_UNITS_S)}")
    moment_ns = now_ns - count * _UNITS_S[unit] * NS_PER_S
    if moment_ns < 0:
        raise ValueError(f"{text!r} is before 1970")
    return moment_ns


def _iso_ns(text: str, day: str, clock: str, fraction: str | None, zone: str | None) -> int:
    if zone is None:
        raise ValueError(f"{text!r} has no time zone; add Z for UTC, or an offset like +02:00")
    offset = "+00:00" if zone in ("Z", "z", "UTC") else zone
    try:
        whole = (datetime.fromisoformat(f"{day}T{clock}{offset}") - _EPOCH) // timedelta(seconds=1)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: {error}") from error
    moment_ns = whole * NS_PER_S + int((fraction or "").ljust(9, "0"))
    if not 0 <= moment_ns < _END_NS:
        raise ValueError(f"{text!r} is not within 1970 to 2262")
    return moment_ns


class MomentType(click.ParamType[int]):
    """The type of an option that takes a time; its value is in ns since 1970."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return moment_from_text(str(value), time.time_ns())
        except ValueError as error:
            self.fail(str(error), param, ctx)


MOMENT: Final = MomentType()
