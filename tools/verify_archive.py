"""`porthold verify-archive`: what an archive shows, with the public key alone."""

import sys
from pathlib import Path

import click

from eventlog.archive import Archive, ArchiveDamaged
from eventlog.archive_check import ArchiveReport, check_archive
from eventlog.note import VerifyingKey
from tools.options import json_option, keys_option
from tools.output import print_json, print_line


@click.command("verify-archive")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@keys_option
@json_option
def command(files: tuple[Path, ...], keys: tuple[VerifyingKey, ...], *, as_json: bool) -> None:
    """Check each archive FILE: every run, every record, the tree over them, and with --key who signed it.

    No log is needed; porthold verify holds archives against theirs. Ends with 0 if all are good, else with 1.
    """
    bad = 0
    documents: list[dict[str, object]] = []
    for file in files:
        try:
            with Archive.open(file) as archive:
                report = check_archive(archive, keys)
        except ArchiveDamaged as error:
            bad += 1
            documents.append({"file": str(file), "good": False, "why": str(error)})
            if not as_json:
                print_line(("bad: ", "bold red"), str(error))
            continue
        documents.append(to_document(file, report))
        if not as_json:
            print_report(file, report)
    if as_json:
        print_json(documents)
    sys.exit(1 if bad else 0)


def to_document(file: Path, report: ArchiveReport) -> dict[str, object]:
    return {
        "file": str(file),
        "good": True,
        "first": report.span.first,
        "end": report.span.end,
        "redacted": report.redacted,
        "root": report.root,
        "checkpoint_size": None if report.checkpoint is None else report.checkpoint.size,
        "signed_by": None if report.signed_by is None else str(report.signed_by),
    }


def print_report(file: Path, report: ArchiveReport) -> None:
    count = report.span.end - report.span.first
    redacted = f", {report.redacted} of them redacted" if report.redacted else ""
    print_line(("good: ", "bold green"), f"{file}: {report.span}, {count} records{redacted}")
    print_line(f"  root {report.root.hex()} over everything up to {report.span.end}")
    if report.checkpoint is None:
        print_line(
            "  in itself: no key was given, so nobody's word is checked",
        )
    else:
        print_line(
            f"  signed by {report.signed_by} with the checkpoint over {report.checkpoint.size} records"
        )
