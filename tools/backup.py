"""`porthold backup`: a copy of the log, taken while it is written, and verified before it is called one."""

import sys
from pathlib import Path

import click

from eventlog.backup import BackupFailed, backup
from eventlog.note import VerifyingKey
from eventlog.reading import LogUnreadable
from tools.options import WrongUse, believed_keys, json_option, keys_option, log_options, log_path_of
from tools.output import print_json, print_line, progress_bar
from tracker.projections import PROJECTIONS


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@log_options
@keys_option
@json_option
def command(
    file: Path,
    config: Path | None,
    log_path: Path | None,
    keys: tuple[VerifyingKey, ...],
    *,
    as_json: bool,
) -> None:
    """Copy the log to FILE, which must not exist; the tracker goes on meanwhile.

    Ends with 0 when the copy has passed `verify` and is on the disk, with 1 when there is no backup.
    """
    path = log_path_of(config, log_path)
    believed = believed_keys(config, log_path, keys)
    try:
        with progress_bar("verifying the copy") as progress:
            report = backup(path, file, PROJECTIONS, believed, progress=progress)
    except LogUnreadable as error:
        raise WrongUse(str(error)) from error
    except BackupFailed as error:
        print(f"No backup: {error}.", file=sys.stderr)
        sys.exit(1)
    octets = file.stat().st_size
    if as_json:
        found = {"records": report.size, "root": report.root, "unprotected": report.unprotected}
        print_json({"file": str(file), "octets": octets, **found})
    else:
        print_line(
            ("verified: ", "bold green"),
            f"{file} has {report.size} records in {octets} octets, root {report.root.hex()};"
            f" {report.unprotected} of them after the last checkpoint",
        )
