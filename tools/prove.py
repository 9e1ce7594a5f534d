"""`porthold prove`: one small file that shows one record to be in the log, to whoever has the public key."""

import sys
from pathlib import Path

import click

from eventlog.proof import NotCovered, ProofRefused, make_proof
from eventlog.reading import LogReader
from tools.options import CHECKPOINT, log_options, opened_log, write_file
from tools.output import print_line

SUFFIX = ".tlog-proof"


@click.command("prove")
@click.argument("position", type=click.IntRange(min=0))
@log_options
@click.option("--checkpoint", "note", type=CHECKPOINT, help="Prove it under this one, not under the last.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help=f"POSITION{SUFFIX} by default; - for stdout."
)
def command(
    position: int, config: Path | None, log_path: Path | None, note: bytes | None, out: Path | None
) -> None:
    """Write the proof that the record at POSITION is in the log.

    Ends with 0 if it is written; with 1 if no checkpoint covers the record yet, or if the checkpoint is of
    another log. `porthold verify-proof` reads it, without the log.
    """
    with opened_log(config, log_path) as reader:
        note = note or latest_note(reader)
        if note is None:
            print("The log has no checkpoint: only with a signing_key there is proof.", file=sys.stderr)
            sys.exit(1)
        try:
            proof = make_proof(reader, position, note)
        except ProofRefused as error:
            hint = ""
            if isinstance(error, NotCovered) and position < reader.size:
                hint = "\nporthold checkpoint has one made over all records."
            print(f"No proof: {error}.{hint}", file=sys.stderr)
            sys.exit(1)
    if str(out) == "-":
        sys.stdout.write(proof.decode())
        return
    target = out or Path(f"{position}{SUFFIX}")
    write_file(target, proof)
    print_line(f"{target}: {len(proof)} octets prove the record at position {position}")


def latest_note(reader: LogReader) -> bytes | None:
    """The last checkpoint in the log's file."""
    stored = reader.latest_checkpoint()
    return None if stored is None else stored.note
