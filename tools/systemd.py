"""`porthold systemd`: the units with which systemd runs tracker and rewriter, made for this installation.

Rule: the units are in `units/`, text with this machine's paths left out; they are filled in here, no more.
"""

import re
import shutil
import stat
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from tools.options import DEFAULT_CONFIG, WrongUse
from tools.output import print_line

_HOMES: Final = ("/home", "/root", "/run/user")
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 - named in order to be refused
UNITS: Final = ("porthold-tracker.service", "porthold-rewriter.service")
NOTIFY_RELOAD_SINCE: Final = 253
"""systemd's version that knows Type=notify-reload; older ones are told how to send SIGHUP."""


@click.command("systemd")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/etc/systemd/system"),
    show_default=True,
    help="Where the units go.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration that they run by.",
)
@click.option("--user", default="porthold", show_default=True, help="Whom both run as; not root.")
def command(directory: Path, config: Path, user: str) -> None:
    """Write the systemd units of tracker and rewriter, and say what comes next.

    The tracker runs without any privilege, the rewriter with CAP_NET_ADMIN alone.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", user) or user == "root":
        raise WrongUse(f"{user!r} is no user for a daemon: a small-letter name other than root.")
    executable = program()
    for path in (executable, Path(sys.executable).resolve(), config.absolute()):
        if (why := unreachable(path)) is not None:
            raise WrongUse(f"{path}: {why}; it has to be where a daemon may read, like /opt/porthold.")
    filled = {name: unit(name, executable, config.absolute(), user, systemd_version()) for name in UNITS}
    try:
        for name, text in filled.items():
            (directory / name).write_text(text)
    except OSError as error:
        raise WrongUse(
            f"{error.filename}: {error.strerror}; say where the units go with --directory."
        ) from error
    for name in UNITS:
        print_line(f"written: {directory / name}")
    print_line("Next, as root:")
    print_line(f"  useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {user}")
    if not config.exists():
        print_line(f"  write {config}; it stays root's, and so does its directory")
    print_line(f"  chown {user} FILE for each secret key that the configuration names, if any")
    print_line("  systemctl daemon-reload")
    print_line("  systemctl enable --now porthold-tracker porthold-rewriter")


def unit(name: str, executable: Path, config: Path, user: str, version: int) -> str:
    """A unit's text for a systemd of this version."""
    knows_reload = version >= NOTIFY_RELOAD_SINCE
    values = {
        "program": str(executable),
        "config": str(config),
        "user": user,
        "type": "notify-reload" if knows_reload else "notify",
        "reload": "ReloadSignal=SIGHUP" if knows_reload else "ExecReload=/bin/kill -HUP $MAINPID",
    }
    text = files("tools").joinpath("units", name).read_text("utf-8")
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], text)


def unreachable(path: Path) -> str | None:
    """Why a unit's process can't get there: not root, it sees neither homes nor /tmp; None: it can."""
    for home in _HOMES:
        if path.is_relative_to(home):
            return f"what is in {home} the units don't see (ProtectHome)"
    for directory in path.parents:
        if directory.exists() and not directory.stat().st_mode & stat.S_IXOTH:
            return f"only its owner may go into {directory}"
    for directory in map(Path, _TEMPORARY):
        if path.is_relative_to(directory):
            return f"the units have a {directory} of their own (PrivateTmp)"
    return None


def program() -> Path:
    """The `porthold` of this installation."""
    beside = Path(sys.executable).with_name("porthold")
    if beside.exists():
        return beside
    found = shutil.which("porthold")
    if found is None:
        raise WrongUse("There is no porthold beside this Python, nor in PATH: install it first.")
    return Path(found)


def systemd_version() -> int:
    """This machine's; 0 where there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return 0
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else 0
