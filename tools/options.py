"""Options that the reading commands share, and what they open.

Rule 1: what the user got wrong is one message that says what to do, and exit code 2. Rule 2: nothing here
imports a netfilter library.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from eventlog.checkpoint import parse_checkpoint
from eventlog.note import KeyUnusable, NoteError, VerifyingKey
from eventlog.reading import DAMAGE, LogReader, LogUnreadable, RecordsGone
from eventlog.record import RecordError
from rewriter.configuration import GatewayFile
from tools.moment import MOMENT
from tracker.client import Credentials
from tracker.configuration import ConfigurationError, address_from_text, load
from tracker.roles import Role

DEFAULT_CONFIG: Final = Path("/etc/porthold/porthold.toml")
_SMALL_FILE_LIMIT: Final = 1024 * 1024
"""More than any of them is: the reader of such a file then says that it is none."""
Function = TypeVar("Function", bound=Callable[..., Any])


class WrongUse(click.ClickException):
    """What was asked for can't be had like this; the message says what to do."""

    exit_code = 2


def small_file(path: Path) -> bytes:
    """What is in a key's, a checkpoint's or a proof's file, however long that is. Raises OSError."""
    with path.open("rb") as file:
        return file.read(_SMALL_FILE_LIMIT)


def write_file(path: Path, data: bytes) -> None:
    """Put it there; ends with 2 where that can't be."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise WrongUse(f"{path} can't be written: {error.strerror}") from error


class AddressType(click.ParamType[bytes]):
    """An IPv4 address; its value is four octets."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return address_from_text(value)
        except ValueError as error:
            self.fail(f"{value!r} is no IPv4 address like 192.0.2.1: {error}", param, ctx)


ADDRESS: Final = AddressType()


class PublicKeyType(click.ParamType[VerifyingKey]):
    """A public key as `porthold keys log` prints it, or the file that has it."""

    name = "key"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> VerifyingKey:
        if isinstance(value, VerifyingKey):
            return value
        text = str(value)
        try:
            return VerifyingKey.parse(text if "+" in text else small_file(Path(text)).decode().strip())
        except OSError as error:
            self.fail(
                f"{text!r} is no public key (name+id+base64), and no file: {error.strerror}", param, ctx
            )
        except (KeyUnusable, UnicodeDecodeError) as error:
            self.fail(f"{text!r}: {error}", param, ctx)


class CheckpointType(click.ParamType[bytes]):
    """A file that has a checkpoint; its value is the signed note, not yet believed."""

    name = "file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            note = small_file(Path(str(value)))
            parse_checkpoint(note)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        except NoteError as error:
            self.fail(f"{value}: {error}", param, ctx)
        return note


CHECKPOINT: Final = CheckpointType()


def config_option(function: Function) -> Function:
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        show_default=str(DEFAULT_CONFIG),
        help="The configuration file.",
    )(function)


def log_options(function: Function) -> Function:
    """`--config` and `--log`: where the log is."""
    option = click.option(
        "--log",
        "log_path",
        type=click.Path(path_type=Path),
        help="The log itself, for a copy or where there is no configuration.",
    )
    return config_option(option(function))


def place_options(function: Function) -> Function:
    """`--gateway`, `--public-address`, `--service`: where the ports are that a question is about."""
    for option in (
        click.option("--service", help="Only of this service."),
        click.option("--public-address", type=ADDRESS, help="Only on this address."),
        click.option("--gateway", help="Only at this gateway."),
    ):
        function = option(function)
    return function


def held_options(function: Function) -> Function:
    """`--holder` too."""
    return click.option("--holder", type=ADDRESS, help="Only what this host held.")(place_options(function))


def period_options(function: Function) -> Function:
    """`--since` and `--until`; `check_period` says whether they go together."""
    for option in (
        click.option("--until", "until_ns", type=MOMENT, help="Only what was held before this time."),
        click.option("--since", "since_ns", type=MOMENT, help="Only what was held at this time or later."),
    ):
        function = option(function)
    return function


def check_period(since_ns: int | None, until_ns: int | None) -> None:
    """Wrong use, if it ends before it begins."""
    if since_ns is not None and until_ns is not None and until_ns <= since_ns:
        raise click.UsageError("--until must be later than --since.")


def keys_option(function: Function) -> Function:
    """`--key`: whose signatures are believed."""
    return click.option(
        "--key",
        "keys",
        type=PublicKeyType(),
        multiple=True,
        help="A public key to believe, or its file; else the configuration's tracker.verifying_keys.",
    )(function)


def believed_keys(
    config: Path | None, log_path: Path | None, keys: tuple[VerifyingKey, ...]
) -> tuple[VerifyingKey, ...]:
    """The keys of the options, or those of the configuration where that says where the log is."""
    if keys or log_path is not None:
        return keys
    return read_configuration(config).tracker.verifying_keys


def json_option(function: Function) -> Function:
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")(function)


def log_format_option(function: Function) -> Function:
    """`--log-format`: what a daemon's lines on stderr look like."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Lines on stderr for people, or JSON for programs; PORTHOLD_LOG_LEVEL says from which level on.",
    )(function)


def read_configuration(config: Path | None) -> GatewayFile:
    """The configuration file; ends with 2 where it can't be used."""
    path = config or DEFAULT_CONFIG
    try:
        return load(path, GatewayFile)
    except ConfigurationError as error:
        hint = "" if os.access(path, os.F_OK) else "\nSay where it is with --config FILE."
        raise WrongUse(f"{error}{hint}") from error


def calling(file: GatewayFile, role: Role) -> tuple[str, Credentials | None]:
    """Where and how this machine's commands call the tracker in this role; ends with 2 without a good key."""
    if file.remote is None:
        return file.tracker.local_socket(role).endpoint, None
    try:
        credentials = Credentials.read(file.remote.key, file.remote.tracker_key)
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    return file.remote.tracker, credentials


def log_path_of(config: Path | None, log_path: Path | None) -> Path:
    """The log that the options mean; its file exists."""
    if config is not None and log_path is not None:
        raise click.UsageError("--config and --log both say where the log is; give one of them.")
    if log_path is None and config is None and not os.access(DEFAULT_CONFIG, os.F_OK):
        raise WrongUse(f"There is no {DEFAULT_CONFIG}; say where the log is: --config FILE or --log FILE.")
    path = log_path or read_configuration(config).tracker.log
    try:
        there = path.is_file()
    except PermissionError:
        raise WrongUse(f"{path} may not be read by this user; try again with sudo.") from None
    if not there:
        raise WrongUse(f"There is no log {path}; a tracker makes it when it first starts.")
    if not os.access(path, os.R_OK):
        raise WrongUse(f"{path} may not be read by this user; try again with sudo.")
    return path


@contextmanager
def opened_log(config: Path | None, log_path: Path | None) -> Iterator[LogReader]:
    """The log, for reading; whatever makes it unreadable ends with 2."""
    path = log_path_of(config, log_path)
    try:
        with LogReader.open(path) as reader:
            yield reader
    except (LogUnreadable, RecordsGone) as error:
        raise WrongUse(str(error)) from error
    except (*DAMAGE, RecordError) as error:
        reason = f"{path} can't be read as a tracker's log: {error}. See porthold verify."
        raise WrongUse(reason) from error
