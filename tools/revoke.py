"""`porthold revoke`: end bindings, and keep their holders from claiming again."""

from pathlib import Path

import click

from tools.ordering import DurationType, TargetType, operator, order_options, report, target_text
from tools.output import print_json, print_line
from tracker.messages import FindPort
from tracker.orders import LiftBar, RevokeBinding


@click.command("revoke")
@click.argument("targets", type=TargetType(), nargs=-1, required=True)
@click.option("--for", "barred_ms", type=DurationType(), help="Bar the host for 90s, 15m, 1h or 2d.")
@click.option(
    "--end", "is_end", is_flag=True, help="Let the hosts claim again, at every gateway or --gateway."
)
@order_options
def command(
    targets: tuple[FindPort, ...],
    *,
    barred_ms: int | None,
    is_end: bool,
    why: str,
    gateway: str | None,
    config: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """End bindings, and bar their holders from the service: for a time, or until `--end`.

    A TARGET is the number of a binding (`porthold holds --open`), a port like 7648/udp, or the address of a
    host, which means all it holds. With --end it is the address of a host that was barred.

    The bar is of the address, at that gateway, for that service; the others may claim at once.
    `porthold status` lists it.

    Ends with 0 if all are over, with 1 if there is none or a worker has not yet carried it out.
    """
    if is_end:
        if barred_ms is not None:
            raise click.UsageError("--for says how long a bar is to last, --end ends it; choose one.")
        allow(targets, why, gateway, config, timeout_s, as_json=as_json)
        return
    with operator(config, timeout_s, as_json=as_json) as tracker:
        found = tracker.find(targets, gateway)
        if not found and not as_json:
            print_line("No such binding is open.")
        results = tracker.end_bindings(found, lambda binding: RevokeBinding(binding, barred_ms, why))
    report(results, as_json=as_json, done=bool(found))


def allow(
    targets: tuple[FindPort, ...],
    why: str,
    gateway: str | None,
    config: Path | None,
    timeout_s: float,
    *,
    as_json: bool,
) -> None:
    """Lift the bars of hosts."""
    hosts = [target.holder for target in targets if target.holder is not None]
    if len(hosts) != len(targets):
        raise click.UsageError("with --end each TARGET is the address of a host that was barred.")
    with operator(config, timeout_s, as_json=as_json) as tracker:
        news = [tracker.change(LiftBar(host, gateway, None, why)) for host in hosts]
    if as_json:
        print_json({"lifted": sum(news)})
    else:
        for target, lifted in zip(targets, news, strict=True):
            print_line(f"{target_text(target)} {'may claim again' if lifted else 'was not barred'}")
