"""`porthold rewriter`: the worker of one gateway, until SIGTERM. Calls in progress outlive it."""

import logging
import os
import sys
from pathlib import Path

import click

from rewriter.configuration import GatewayFile
from rewriter.kernel import KernelRefused
from rewriter.service import WorkerStopped, serve
from tracker.client import OutboxLocked, OutboxOutdated, OutboxUnreadable
from tracker.configuration import ConfigurationError, Problem, load


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
def command(config_path: Path, *, take_over: bool) -> None:
    """Work for this machine's gateway: claims, rewriting, bindings in the kernel."""
    logging.basicConfig(
        level=os.environ.get("PORTHOLD_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        file = load(config_path, GatewayFile)
        problems = list(file.worker_problems())
        if problems:
            raise ConfigurationError(
                [Problem(file=config_path, key=key, reason=reason) for key, reason in problems]
            )
    except ConfigurationError as error:
        click.echo(error, err=True)
        sys.exit(2)
    if os.geteuid() != 0:
        click.echo(
            "porthold rewriter needs root: it loads nftables rules and reads packet queues;"
            " start it with sudo or as a system service",
            err=True,
        )
        sys.exit(2)
    try:
        serve(file, take_over=take_over)
    except (WorkerStopped, KernelRefused, OutboxLocked, OutboxOutdated, OutboxUnreadable) as stopped:
        click.echo(f"porthold rewriter: {stopped}", err=True)
        sys.exit(1)
