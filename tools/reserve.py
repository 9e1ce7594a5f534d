"""`porthold reserve`: only one host may claim a port, also while nobody holds it."""

from dataclasses import replace
from pathlib import Path

import click

from tools.options import ADDRESS
from tools.ordering import ANYTHING, Operator, PlaceType, operator, order_options, report
from tools.output import octets_text, print_line
from tracker.messages import BindingView, FindPort
from tracker.orders import EndReservation, ReleaseBinding, ReservePort


@click.command("reserve")
@click.argument("place", type=PlaceType())
@click.argument("host", type=ADDRESS, required=False)
@click.option("--end", "is_end", is_flag=True, help="Let everybody claim it again.")
@click.option("--end-calls", is_flag=True, help="Release who else holds it now.")
@order_options
def command(
    place: FindPort,
    host: bytes | None,
    *,
    is_end: bool,
    end_calls: bool,
    why: str,
    gateway: str | None,
    config: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Let only HOST claim PLACE, a port like 7648/udp or a service, until `--end`.

    All ports of the service are reserved with it. Who holds it now keeps it until he ends, if not
    --end-calls. A reservation for another host ends the one before. `porthold status` lists it.

    Ends with 0 if it is so, with 1 if not.
    """
    if is_end == (host is not None):
        raise click.UsageError("say for which HOST, or --end.")
    if is_end and end_calls:
        raise click.UsageError("--end-calls makes room for a HOST; it does not go with --end.")
    with operator(config, timeout_s, as_json=as_json) as tracker:
        where, service = tracker.place(place, gateway)
        if host is None:
            news = tracker.change(EndReservation(where, service, why))
            said = "is anybody's again" if news else "was not reserved"
            others: list[BindingView] = []
        else:
            news = tracker.change(ReservePort(where, service, host, why))
            said = f"{'is' if news else 'was already'} reserved for {octets_text(host)}"
            others = _others(tracker, where, service, host)
        ending = others if end_calls else []
        if not as_json:
            print_line(f"{service} at {where} {said}")
            for view in [] if end_calls else others:
                print_line(f"  {octets_text(view.holder)} holds it (binding {view.binding}) and keeps it")
        results = tracker.end_bindings(ending, lambda binding: ReleaseBinding(binding, why))
    facts = {"gateway": where, "service": service, "reserved_for": host, "news": news}
    report(results, as_json=as_json, facts=facts)


def _others(tracker: Operator, gateway: str, service: str, host: bytes) -> list[BindingView]:
    """The bindings of the service that are not the host's."""
    found = tracker.find([replace(ANYTHING, service=service)], gateway)
    return [view for view in found if view.holder != host]
