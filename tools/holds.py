"""`porthold holds`: the bindings, newest first."""

import sys
from pathlib import Path

import click

from tools.moment import MOMENT
from tools.options import check_period, held_options, json_option, log_options, opened_log, period_options
from tools.output import octets_text, print_json, print_line, print_table, time_text
from tracker.audit import Holding, holds


@click.command("holds")
@log_options
@held_options
@click.option("--at", "at_ns", type=MOMENT, help="Only what was held at this time.")
@period_options
@click.option("--open", "open_only", is_flag=True, help="Only what has not ended.")
@click.option("--limit", type=click.IntRange(1, 2**63 - 1), help="The newest so many.")
@json_option
def command(
    *,
    config: Path | None,
    log_path: Path | None,
    holder: bytes | None,
    gateway: str | None,
    public_address: bytes | None,
    service: str | None,
    at_ns: int | None,
    since_ns: int | None,
    until_ns: int | None,
    limit: int | None,
    open_only: bool,
    as_json: bool,
) -> None:
    """Who held what, from when to when, newest first.

    A TIME is like 2026-05-04T16:05:00Z, "2026-05-04 18:05+02:00", "5 minutes ago" or now.

    Ends with 0 if there are any, with 1 if there are none.
    """
    if at_ns is not None and (since_ns, until_ns) != (None, None):
        raise click.UsageError("--at is one moment; it does not go with --since or --until.")
    check_period(since_ns, until_ns)
    with opened_log(config, log_path) as reader:
        found = holds(
            reader,
            at_ns=at_ns,
            since_ns=since_ns,
            until_ns=until_ns,
            holder=holder,
            gateway=gateway,
            public_address=public_address,
            service=service,
            open_only=open_only,
            limit=limit,
        )
    if as_json:
        print_json(found)
    elif found:
        print_holdings(found)
    else:
        print_line("No such bindings.")
    sys.exit(0 if found else 1)


def print_holdings(found: list[Holding]) -> None:
    columns = ("binding", "gateway", "public address", "service", "peer", "holder", "mac", "user")
    print_table(
        f"{len(found)} binding{'s' if len(found) != 1 else ''}",
        (*columns, "since", "until", "ended by", "packets", "refused"),
        [
            (
                holding.binding,
                holding.gateway,
                octets_text(holding.public_address),
                holding.service,
                None if holding.peer is None else octets_text(holding.peer),
                octets_text(holding.holder),
                None if holding.mac is None else octets_text(holding.mac),
                holding.user_name,
                time_text(holding.since_ns),
                "open" if holding.ended_ns is None else time_text(holding.ended_ns),
                None if holding.reason is None else holding.reason.value,
                holding.packets,
                holding.refusals,
            )
            for holding in found
        ],
    )
