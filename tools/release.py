"""`porthold release`: end bindings; whoever sends first has the port then."""

from pathlib import Path

import click

from tools.ordering import TargetType, operator, order_options, report
from tools.output import print_line
from tracker.messages import FindPort
from tracker.orders import ReleaseBinding


@click.command("release")
@click.argument("targets", type=TargetType(), nargs=-1, required=True)
@order_options
def command(
    targets: tuple[FindPort, ...],
    *,
    why: str,
    gateway: str | None,
    config: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """End bindings, and wait until the kernel has let go of them.

    A TARGET is the number of a binding (`porthold holds --open`), a port like 7648/udp, or the address of a
    host, which means all it holds.

    The port is free then: whoever sends first has it, the same host included. `porthold revoke` keeps that
    host off.

    Ends with 0 if all are over, with 1 if there is none or a worker has not yet carried it out.
    """
    with operator(config, timeout_s, as_json=as_json) as tracker:
        found = tracker.find(targets, gateway)
        if not found and not as_json:
            print_line("No such binding is open.")
        results = tracker.end_bindings(found, lambda binding: ReleaseBinding(binding, why))
    report(results, as_json=as_json, done=bool(found))
