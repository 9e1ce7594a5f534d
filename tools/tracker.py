"""`porthold tracker`: decides who holds which port, until SIGTERM or SIGINT."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from eventlog.checkpoint import CheckpointContradicted
from eventlog.note import KeyUnusable
from eventlog.store import AppendFailed, LogBusy, LogLocked, LogUnreadable
from tracker.configuration import ConfigurationError, TrackerFile, load
from tracker.doors import EndpointUnusable
from tracker.server import serve


@click.command("tracker")
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    default=Path("/etc/porthold/porthold.toml"),
    show_default=True,
    help="The configuration file.",
)
def command(config: Path) -> None:
    """Decide every claim, append it to the log, then answer.

    Ends with 0 at SIGTERM or SIGINT, with 1 when the log can't be written or is not the one that was signed,
    with 2 when it can't begin.
    """
    logging.basicConfig(format="porthold tracker: %(message)s", level=logging.INFO)
    try:
        writing = (
            "tracker.log",
            "tracker.endpoint",
            "tracker.reader_endpoint",
            "tracker.operator_endpoint",
            "tracker.checkpoint_directory",
        )
        section = load(config, TrackerFile, writing=writing).tracker
        with _stop_signals() as stop:
            serve(section, stop)
    except (ConfigurationError, LogLocked, LogBusy, LogUnreadable, KeyUnusable, EndpointUnusable) as error:
        print(f"porthold tracker: {error}", file=sys.stderr)
        sys.exit(2)
    except CheckpointContradicted as error:
        print(f"porthold tracker: this log is not the one that was signed: {error}", file=sys.stderr)
        sys.exit(1)
    except AppendFailed as error:
        print(f"porthold tracker: the log can't be written, so this ends: {error}", file=sys.stderr)
        print("Nothing acknowledged is lost; start it again when there is room.", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _stop_signals() -> Iterator[int]:
    """A file descriptor that is readable once SIGTERM or SIGINT has come."""
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            yield reading.fileno()
        finally:
            signal.set_wakeup_fd(-1)
