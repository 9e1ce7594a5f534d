"""`porthold keys`: the keys that speak for porthold's parts. One subcommand for each kind of key.

Rule: a private key is written once, for its owner only, where nobody else can put another in its place; what
is printed is public.
"""

import os
import platform
from pathlib import Path

import click

from eventlog.note import KeyUnusable, SigningKey, VerifyingKey, read_key_file, write_key_file
from tools.options import WrongUse, config_option, json_option, read_configuration
from tools.output import print_json, print_line

PUBLIC_SUFFIX = ".pub"


@click.group("keys")
def command() -> None:
    """Make and show keys: `log` signs the log's checkpoints."""


@command.command("log")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--name", help="What the log is called in its checkpoints, like example.com/gateway-1.")
@config_option
@json_option
def log(*, file: Path | None, name: str | None, config: Path | None, as_json: bool) -> None:
    """Make the Ed25519 key that signs the log's checkpoints, or show the one that is in FILE.

    FILE is tracker.signing_key of the configuration if it is not given. The public half is printed, and is in
    FILE.pub: give it to every auditor.
    """
    path = file or read_configuration(config).tracker.signing_key
    if path is None:
        raise WrongUse("Say which file: porthold keys log FILE, or tracker.signing_key in the configuration.")
    try:
        made = not path.exists()
        key = make_key(path, name) if made else existing_key(path, name)
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    if as_json:
        print_json({"file": str(path), "made": made, "public_file": str(public_path), "public": str(key)})
        return
    print_line(str(key))
    if made:
        click.echo(f"The private key is in {path}, the public one in {public_path}, too.", err=True)
        click.echo(f'Now in the configuration: [tracker] signing_key = "{path.absolute()}"', err=True)


def make_key(path: Path, name: str | None) -> VerifyingKey:
    """A new key in its file, the public half beside it. KeyUnusable."""
    key = SigningKey.generate(name or f"{platform.node()}/porthold")
    write_key_file(path, key)
    write_public_file(path.with_name(path.name + PUBLIC_SUFFIX), key.verifying_key)
    return key.verifying_key


def existing_key(path: Path, name: str | None) -> VerifyingKey:
    """The public half of the key that is there. KeyUnusable, also when it has another name."""
    key = read_key_file(path).verifying_key
    if name not in (None, key.name):
        raise KeyUnusable(f"{path} is there already, and its name is {key.name}, not {name}")
    return key


def write_public_file(path: Path, key: VerifyingKey) -> None:
    """For everybody to read. KeyUnusable when it cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{key}\n")
