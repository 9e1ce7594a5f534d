"""`porthold tracker`: decides who holds which port, until SIGTERM or SIGINT."""

import logging
import sqlite3
import sys
from pathlib import Path
from typing import Final

import click

from eventlog.checkpoint import CheckpointContradicted
from eventlog.note import KeyUnusable
from eventlog.store import AppendFailed, LogBusy, LogLocked, LogUnreadable
from tools.options import log_format_option
from tracker import journal
from tracker.configuration import ConfigurationError, TrackerFile, TrackerSection, load
from tracker.doors import EndpointUnusable
from tracker.exposition import MetricsUnusable
from tracker.server import serve
from tracker.supervision import Supervision

LOGGER: Final = logging.getLogger(__name__)
WRITING: Final = (
    "tracker.log",
    "tracker.endpoint",
    "tracker.reader_endpoint",
    "tracker.operator_endpoint",
    "tracker.checkpoint_directory",
)
"""What this process makes: the directories must be there."""


@click.command("tracker")
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    default=Path("/etc/porthold/porthold.toml"),
    show_default=True,
    help="The configuration file.",
)
@log_format_option
def command(config: Path, log_format: journal.Form) -> None:
    """Decide every claim, append it to the log, then answer.

    Ends with 0 at SIGTERM or SIGINT, with 1 when the log can't be written or is not the one that was signed,
    with 2 when it can't begin.
    """
    journal.set_up("tracker", log_format)

    def read() -> TrackerSection:
        return load(config, TrackerFile, writing=WRITING).tracker

    try:
        with Supervision.of_this_process() as supervision:
            serve(read(), supervision, read)
    except (
        ConfigurationError,
        LogLocked,
        LogBusy,
        LogUnreadable,
        KeyUnusable,
        EndpointUnusable,
        MetricsUnusable,
    ) as error:
        LOGGER.error("%s", error)
        sys.exit(2)
    except CheckpointContradicted as error:
        LOGGER.error("this log is not the one that was signed: %s", error)
        sys.exit(1)
    except AppendFailed as error:
        LOGGER.critical("the log can't be written, so this ends: %s", error)
        LOGGER.critical("nothing of it was acknowledged; %s", mend_of(error))
        sys.exit(1)


def mend_of(error: AppendFailed) -> str:
    """What to do about a log that can't be written."""
    code = getattr(error.__cause__, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return "start it again when there is room"
    return "mend that, let `porthold verify` look at the log, then start it again"
