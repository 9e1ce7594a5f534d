"""`porthold status`: how the tracker stands, asked over the endpoint for readers."""

import os
import sys
from pathlib import Path

import click

from tools.options import WrongUse, calling, config_option, json_option, read_configuration
from tools.output import octets_text, print_json, print_line, print_table, time_text
from tools.standing import Standing, standing
from tracker.client import ask
from tracker.configuration import IPC
from tracker.messages import GetStatus, NotAllowed, Status
from tracker.roles import Role
from tracker.shapes import ProtocolError


@click.command("status")
@config_option
@click.option("--endpoint", help="The tracker's endpoint for readers, instead of the configuration's.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.05, 60), default=2.0, show_default=True)
@json_option
def command(config: Path | None, endpoint: str | None, timeout_s: float, *, as_json: bool) -> None:
    """Sessions, bindings and counters of the running tracker.

    Ends with 0 if it answers, with 1 if none does.
    """
    if endpoint is not None and config is not None:
        raise click.UsageError("--config and --endpoint both say whom to ask; give one of them.")
    file, credentials = None, None
    if endpoint is None:
        file = read_configuration(config)
        endpoint, credentials = calling(file, Role.READER)
    elif not endpoint.startswith(IPC + "/"):
        raise WrongUse(f"{endpoint!r} is no endpoint on this machine; write ipc:///PATH")
    try:
        answer = ask(endpoint, "reader", GetStatus(), timeout_s, credentials)
    except ProtocolError as error:
        print_silence(endpoint, f"what answers is no tracker of this version ({error})", as_json=as_json)
        sys.exit(1)
    if not isinstance(answer, Status):
        why = answer.reason if isinstance(answer, NotAllowed) else why_silent(endpoint, timeout_s)
        print_silence(endpoint, why, as_json=as_json)
        sys.exit(1)
    kernel = None if file is None else standing(file)
    if as_json:
        print_json({"endpoint": endpoint, "answers": True, "status": answer, "kernel": kernel})
    else:
        print_status(answer)
        print_standing(kernel)


def why_silent(endpoint: str, timeout_s: float) -> str:
    """The likeliest reason, and what to do."""
    if not endpoint.startswith(IPC):
        return f"no answer in {timeout_s:g} s; the tracker is not reached, stopped or busy"
    path = Path(endpoint.removeprefix(IPC))
    try:
        there = path.exists()
    except PermissionError:
        there = True
    if not there:
        return "there is no such socket; start `porthold tracker`"
    if not os.access(path, os.R_OK | os.W_OK):
        return "this user may not use the socket; try again with sudo"
    return f"no answer in {timeout_s:g} s; the tracker has ended, is stopped or busy"


def print_silence(endpoint: str, why: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"endpoint": endpoint, "answers": False, "status": None})
    print(f"No tracker answers at {endpoint}: {why}.", file=sys.stderr)


def print_status(status: Status) -> None:
    started = time_text(status.started_ns)
    print_line(
        ("tracker ", "bold"),
        f"{status.version}, run {status.run} since {started}, {status.records} records in the log",
    )
    print_protection(status)
    print_sessions(status)
    print_bindings(status)
    print_restrictions(status)
    counters = [(counter.name, counter.value) for counter in status.counters]
    if counters:
        print_table("Counters", ("what", "count"), counters)


def print_protection(status: Status) -> None:
    """How much of the log a checkpoint speaks for."""
    protection = status.protection
    if protection is None:
        print_line("no signing key: none of these records is protected by a checkpoint")
    elif protection.made_ns is None:
        print_line(f"no checkpoint yet: none of these records is protected; signing key {protection.key}")
    else:
        behind = status.records - protection.size
        made = time_text(protection.made_ns)
        print_line(f"checkpoint over {protection.size} records at {made}, {behind} behind it are unprotected")


def print_standing(kernel: Standing | None) -> None:
    """What this machine's own kernel has of it; nothing where it is no gateway."""
    if kernel is not None:
        print_line(
            f"this machine's kernel: epoch {kernel.epoch}, datapath {kernel.datapath} ({kernel.why}),"
            f" queue by {kernel.queue}"
        )


def print_restrictions(status: Status) -> None:
    """Who may not claim, by an operator's word."""
    if not status.restrictions:
        return
    print_table(
        "Restrictions",
        ("what", "gateway", "service", "host", "since", "until", "by", "why"),
        [
            (
                it.restraint.value,
                it.gateway or "all",
                it.service or "all",
                None if it.host is None else octets_text(it.host),
                time_text(it.since_ns),
                None if it.until_ns is None else time_text(it.until_ns),
                it.by,
                it.why,
            )
            for it in status.restrictions
        ],
    )


def print_sessions(status: Status) -> None:
    if not status.sessions:
        print_line("No session: no worker has come yet.")
        return
    print_table(
        "Sessions",
        ("gateway", "epoch", "worker", "host", "state", "bindings"),
        [
            (
                session.gateway,
                session.epoch,
                session.worker,
                session.host,
                "lost" if session.lost else f"lease for {session.lease_left_ms / 1000:.1f} s",
                session.bindings,
            )
            for session in status.sessions
        ],
    )


def print_bindings(status: Status) -> None:
    if not status.bindings:
        print_line("No bindings: nobody holds a port.")
        return
    ordered = {it.binding: f"{it.ending.value}, waits for the worker" for it in status.withdrawals}
    print_table(
        "Bindings",
        (
            "binding",
            "gateway",
            "public address",
            "service",
            "peer",
            "holder",
            "mac",
            "user",
            "since",
            "ordered",
        ),
        [
            (
                view.binding,
                view.resource.gateway,
                octets_text(view.resource.public_address),
                view.resource.service,
                None if view.resource.peer is None else octets_text(view.resource.peer),
                octets_text(view.holder),
                None if view.mac is None else octets_text(view.mac),
                view.user_name,
                time_text(view.since_ns),
                ordered.get(view.binding),
            )
            for view in status.bindings
        ],
    )
    if status.bindings_omitted:
        print_line(f"{status.bindings_omitted} more bindings: porthold holds --open")
