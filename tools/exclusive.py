"""What `porthold verify --exclusive` says: were there ever two holders at once?"""

from typing import Any

import click

from eventlog.reading import LogReader, Progress
from tools.output import octets_text, plain, print_line, time_text
from tracker.events import Resource
from tracker.examining import examine
from tracker.exclusivity import Overlap, Unobserved, Verdict
from tracker.outages import logged_time


def examined(reader: LogReader, from_ns: int | None, to_ns: int | None, progress: Progress) -> Verdict:
    """The verdict on that time; on all that the log tells of, where an end is not given."""
    first_ns, last_ns = logged_time(reader) or (0, 1)
    since_ns = first_ns if from_ns is None else from_ns
    until_ns = last_ns if to_ns is None else to_ns
    if until_ns <= since_ns:
        raise click.UsageError(f"--to is not later than --from ({time_text(since_ns)}).")
    return examine(reader, since_ns, until_ns, progress=progress)


def as_document(found: Verdict) -> dict[str, Any]:
    document = plain(found)
    gap_ns = found.shortest_gap_ns
    return {**document, "shown": found.shown, "shortest_gap": None if gap_ns is None else gap_ns / 1e9}


def print_verdict(found: Verdict) -> None:
    span = f"from {time_text(found.since_ns)} to {time_text(found.until_ns)}"
    seen = f"{found.bindings} bindings of {found.resources} resources, {found.handovers} times handed over"
    if found.shortest_gap_ns is not None:
        seen += f", at the shortest with {found.shortest_gap_ns / 1e6:.3f} ms between"
    if found.overlaps:
        print_line(("two holders at once: ", "bold red"), f"{len(found.overlaps)} times {span}")
    elif found.unobserved:
        print_line(("unknown: ", "bold yellow"), f"nobody looked for some of the time {span}")
    else:
        print_line(("exclusive: ", "bold green"), f"never two holders at once {span}")
    print_line(f"  seen in the kernels: {seen}")
    for overlap in found.overlaps:
        print_overlap(overlap)
    for gap in found.unobserved:
        print_gap(gap)


def print_overlap(overlap: Overlap) -> None:
    one, other = (
        f"{octets_text(holder)} (binding {binding})"
        for holder, binding in (
            (overlap.first_holder, overlap.first),
            (overlap.second_holder, overlap.second),
        )
    )
    times = f"from {time_text(overlap.since_ns)} to {time_text(overlap.until_ns)}"
    evidence = f"by the {overlap.by} of records {', '.join(map(str, overlap.positions))}"
    print_line(f"  {resource_text(overlap.resource)}: {one} and {other} {times}, {evidence}")
    if overlap.by == "times":
        print_line("    their order keeps the two apart: a worker whose clock was set would look the same")


def print_gap(gap: Unobserved) -> None:
    whose = "every gateway" if gap.gateway is None else f"gateway {gap.gateway}"
    place = whose if gap.resource is None else resource_text(gap.resource)
    since, until = (time_text(ns) for ns in (gap.since_ns or 0, gap.until_ns or 0))
    detail = f" ({gap.detail})" if gap.detail else ""
    record = "" if gap.position is None else f", record {gap.position}"
    print_line(f"  unknown, because {gap.because}: {place} from {since} to {until}{detail}{record}")


def resource_text(resource: Resource) -> str:
    peer = "" if resource.peer is None else f", peer {octets_text(resource.peer)}"
    return f"{resource.service} of {octets_text(resource.public_address)} at {resource.gateway}{peer}"
