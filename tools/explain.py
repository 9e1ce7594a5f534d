"""`porthold explain`: every record that made a binding what it was."""

import sys
from pathlib import Path
from typing import Any

import click

from tools.options import json_option, log_options, opened_log
from tools.output import exact_time_text, plain, print_json, print_line, time_text, words
from tools.who import print_holding, print_outages
from tracker.explanation import Explanation, Step, explain


@click.command("explain")
@log_options
@click.argument("binding", type=click.IntRange(1, 2**63 - 1))
@json_option
def command(*, config: Path | None, log_path: Path | None, binding: int, as_json: bool) -> None:
    """Every record that made BINDING what it was, with its position, in the order of the log.

    The number of a binding is in what `porthold who` and `porthold holds` say. `porthold log show` has the
    records whole, `porthold prove POSITION` proves one to others.

    Ends with 0; with 1 if there never was such a binding.
    """
    with opened_log(config, log_path) as reader:
        found = explain(reader, binding)
    if found is None:
        if as_json:
            print_json(None)
        else:
            print_line(f"No binding {binding}.")
        sys.exit(1)
    if as_json:
        print_json(as_document(found))
    else:
        print_explanation(found)


def as_document(found: Explanation) -> dict[str, Any]:
    return {
        "holding": plain(found.holding),
        "records": [_step_document(step) for step in found.steps],
        "doubts": plain(found.doubts),
    }


def _step_document(step: Step) -> dict[str, Any]:
    record = step.record
    return {
        "position": step.position,
        "role": step.role.value,
        "time": None if record is None else exact_time_text(record.wall_ns),
        "reported": None
        if record is None or record.reported_ns is None
        else exact_time_text(record.reported_ns),
        "source": None if record is None else plain(record.source),
        "event": None if step.event is None else type(step.event).__name__,
        "fields": plain(step.event),
        "problem": step.why_not,
    }


def print_explanation(found: Explanation) -> None:
    """What is to be explained, then a line for each record."""
    holding = found.holding
    public, holder = (plain(octets) for octets in (holding.public_address, holding.holder))
    print_line((f"{holding.service} of {public} at {holding.gateway}: {holder}", "bold"))
    print_holding("held", holding)
    print_outages("although", found.doubts)
    width = max(len(step.role.value) for step in found.steps)
    for step in found.steps:
        place = f"{step.position:>8}  {step.role.value:<{width}}  "
        if step.record is None or step.event is None:
            print_line(f"{place}can't be read: {step.why_not}")
        else:
            said = " ".join(words(step.event))
            print_line(f"{place}{time_text(step.record.wall_ns)}  {type(step.event).__name__}  {said}")
