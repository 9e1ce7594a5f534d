"""`porthold verify-proof`: what a proof shows, with the public key and nothing else."""

import sys
from pathlib import Path

import click

from eventlog.note import VerifyingKey
from eventlog.proof import ProofRefused, Proven, verify_proof
from eventlog.reading import Entry
from eventlog.record import encode
from tools.log import print_shown, to_document, to_shown
from tools.options import PublicKeyType, WrongUse, json_option, small_file
from tools.output import print_json, print_line


@click.command("verify-proof")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "keys",
    type=PublicKeyType(),
    multiple=True,
    required=True,
    help="A public key to believe, or its file; the log's owner has published it.",
)
@json_option
def command(file: Path, keys: tuple[VerifyingKey, ...], *, as_json: bool) -> None:
    """Check the proof in FILE, offline.

    Ends with 0 and the record if a log that one of the keys signed has it there; with 1 if the proof shows
    nothing.
    """
    try:
        data = small_file(file)
    except OSError as error:
        raise WrongUse(f"{file}: {error.strerror}") from error
    try:
        proven = verify_proof(data, keys)
    except ProofRefused as error:
        if as_json:
            print_json({"proven": False, "why": str(error)})
        else:
            print_line(("not proven: ", "bold red"), str(error))
        sys.exit(1)
    if as_json:
        print_json(to_answer(proven))
    else:
        print_proven(proven)


def to_answer(proven: Proven) -> dict[str, object]:
    checkpoint = proven.checkpoint
    return {
        "proven": True,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root,
        "key": str(proven.signed_by),
        "record": to_document(to_shown(_entry(proven))),
    }


def print_proven(proven: Proven) -> None:
    checkpoint = proven.checkpoint
    print_line(
        ("proven: ", "bold green"),
        f"the log {checkpoint.origin} has this record at position {proven.position}",
    )
    print_shown(to_shown(_entry(proven)))
    print_line(f"  under its checkpoint over {checkpoint.size} records, signed by {proven.signed_by}")


def _entry(proven: Proven) -> Entry:
    return Entry(proven.position, None if proven.record is None else encode(proven.record), proven.leaf)
