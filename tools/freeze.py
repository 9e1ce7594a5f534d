"""`porthold freeze`: no new claims; calls go on."""

from pathlib import Path

import click

from tools.ordering import ANYTHING, operator, order_options, report
from tools.output import print_line
from tracker.orders import EndFreeze, FreezeClaims, ReleaseBinding


@click.command("freeze")
@click.option("--end", "is_end", is_flag=True, help="Let hosts claim again.")
@click.option("--end-calls", is_flag=True, help="Release everything that is held.")
@order_options
def command(
    *,
    is_end: bool,
    end_calls: bool,
    why: str,
    gateway: str | None,
    config: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Let nobody claim anything, at all gateways or at --gateway, until `--end`.

    Who holds something keeps it, if not --end-calls. A freeze of all gateways and one of a single gateway are
    two: each has its own end. `porthold status` lists them.

    Ends with 0 if it is so, with 1 if not.
    """
    if is_end and end_calls:
        raise click.UsageError("--end-calls goes with a freeze, not with its --end.")
    with operator(config, timeout_s, as_json=as_json) as tracker:
        news = tracker.change(EndFreeze(gateway, why) if is_end else FreezeClaims(gateway, why))
        if not as_json:
            print_line(_said(gateway, is_end=is_end, news=news))
        views = tracker.find([ANYTHING], gateway) if end_calls else []
        results = tracker.end_bindings(views, lambda binding: ReleaseBinding(binding, why))
    report(results, as_json=as_json, facts={"gateway": gateway, "frozen": not is_end, "news": news})


def _said(gateway: str | None, *, is_end: bool, news: bool) -> str:
    where = "at any gateway" if gateway is None else f"at {gateway}"
    if is_end:
        return f"claims {where} are decided again" if news else f"there was no freeze {where}"
    return f"nobody may claim {where}" if news else f"nobody may claim {where}: it was so already"
