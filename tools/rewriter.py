"""`porthold rewriter`: the worker of one gateway, until SIGTERM. Calls in progress outlive it."""

import logging
import sys
from pathlib import Path
from typing import Final

import click

from rewriter.command import KernelRefused
from rewriter.configuration import GatewayFile
from rewriter.probing import CAP_NET_ADMIN, has_capability
from rewriter.service import WorkerStopped, serve
from tools.options import log_format_option
from tracker import journal
from tracker.client import OutboxLocked, OutboxOutdated, OutboxUnreadable
from tracker.configuration import ConfigurationError, Problem, load
from tracker.exposition import MetricsUnusable
from tracker.supervision import Supervision

LOGGER: Final = logging.getLogger(__name__)


@click.command("rewriter")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=Path("/etc/porthold/porthold.toml"),
    show_default=True,
    help="The configuration file.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the gateway from the worker that has it now; from a fenced one on another host when its lease"
    " has ended.",
)
@log_format_option
def command(config_path: Path, *, take_over: bool, log_format: journal.Form) -> None:
    """Work for this machine's gateway: claims, rewriting, bindings in the kernel.

    Ends with 0 at SIGTERM or SIGINT, calls going on in the kernel; with 1 when it can't go on, with 2 when it
    can't begin. SIGHUP reads the configuration again: services and rules change while calls go on.
    """
    journal.set_up("rewriter", log_format)
    try:
        file = read(config_path)
    except ConfigurationError as error:
        LOGGER.error("%s", error)
        sys.exit(2)
    if not has_capability(CAP_NET_ADMIN):
        LOGGER.error(
            "the rewriter needs CAP_NET_ADMIN: it loads nftables rules and reads packet queues;"
            " start it with sudo or as a system service (porthold systemd)"
        )
        sys.exit(2)
    try:
        with Supervision.of_this_process() as supervision:
            serve(file, supervision, lambda: read(config_path), take_over=take_over)
    except MetricsUnusable as error:
        LOGGER.error("%s", error)
        sys.exit(2)
    except (WorkerStopped, KernelRefused, OutboxLocked, OutboxOutdated, OutboxUnreadable) as stopped:
        LOGGER.error("%s", stopped)
        sys.exit(1)


def read(path: Path) -> GatewayFile:
    """The configuration, fit for a rewriter. ConfigurationError."""
    file = load(path, GatewayFile)
    if problems := list(file.worker_problems()):
        raise ConfigurationError([Problem(file=path, key=key, reason=reason) for key, reason in problems])
    return file
