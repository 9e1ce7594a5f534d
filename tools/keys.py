"""`porthold keys`: the keys that speak for porthold's parts. One subcommand for each kind of key.

Rule 1: a private key is written once, for its owner only, where nobody else can put another in its place;
what is printed is public. Rule 2: who makes a key says what it is for, and who authorises it says so again: a
file that comes from elsewhere gives nobody a role.
"""

import os
import platform
import sys
from pathlib import Path

import click

from eventlog.note import KeyUnusable, SigningKey, VerifyingKey, read_key_file, write_key_file
from tools.options import Function, WrongUse, config_option, json_option, read_configuration
from tools.output import print_json, print_line, print_table
from tracker.keyring import (
    TRACKER_ROLE,
    KeyRole,
    PublicKey,
    authorise,
    authorised_key,
    generate,
    public_text,
    read_directory,
    read_public_key,
    read_secret_key,
    revoke,
    write_secret_key,
)
from tracker.roles import Role

PUBLIC_SUFFIX = ".pub"


@click.group("keys")
def command() -> None:
    """Make and show keys: `log` signs the log's checkpoints, the others are for trackers by TCP."""


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


@command.command("server")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@config_option
def server(*, file: Path | None, config: Path | None) -> None:
    """Make the tracker's own key for TCP, or show the one that is in FILE.

    FILE is tracker.server_key of the configuration if it is not given. What is printed goes into the
    configuration of everybody who calls this tracker: tracker_key.
    """
    path = file or read_configuration(config).tracker.server_key
    if path is None:
        raise WrongUse(
            "Say which file: porthold keys server FILE, or tracker.server_key in the configuration."
        )
    key = own_key(path, TRACKER_ROLE, platform.node())
    print_line(key.public)


def pair_command(role: Role) -> click.Command:
    """`keys worker`, `keys reader`, `keys operator`."""

    @click.command(
        role.value, help=f"Make the key of a {role.value}, or show the public half of what is in FILE."
    )
    @click.argument("file", type=click.Path(path_type=Path))
    @click.option(
        "--name", help="Whose it is; in the log, too. Of a worker, its name there. Usually the machine's."
    )
    def pair(*, file: Path, name: str | None) -> None:
        key = own_key(file, role.value, name or platform.node(), known_as=name)
        public_path = file.with_name(file.name + PUBLIC_SUFFIX)
        print_line(key.public)
        gateways = " --gateway GATEWAY" if role is Role.WORKER else ""
        click.echo(
            f"Where the tracker runs: porthold keys authorise {public_path.name} --role {role}{gateways}",
            err=True,
        )

    return pair


for every_role in Role:
    command.add_command(pair_command(every_role))


def directory_option(function: Function) -> Function:
    """`--config` and `--directory`: where the authorised keys are."""
    option = click.option(
        "--directory",
        type=click.Path(path_type=Path),
        help="The directory of authorised keys, instead of the configuration's tracker.authorised_keys.",
    )
    return config_option(option(function))


@command.command("authorise")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do."
)
@click.option("--gateway", "gateways", multiple=True, help="A gateway for which this worker speaks.")
@click.option("--name", help="The name under which it speaks, instead of the file's.")
@directory_option
def authorise_command(
    *,
    file: Path,
    role: str,
    gateways: tuple[str, ...],
    name: str | None,
    config: Path | None,
    directory: Path | None,
) -> None:
    """Let the key whose public half is FILE speak to this tracker, from now on.

    A running tracker sees it within a second or two.
    """
    if bool(gateways) != (role == Role.WORKER):
        raise WrongUse("A worker needs --gateway, once or more often, and nobody else has any.")
    try:
        offered = read_public_key(file)
        if offered.role != role:
            raise WrongUse(f"{file} was made as the key of a {offered.role}, not of a {role}.")
        key = authorised_key(name or offered.name, Role(role), gateways, offered.public)
        path = authorise(authority(config, directory), key)
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    click.echo(f"{key.name} may speak to this tracker: {path}", err=True)


@command.command("list")
@directory_option
@json_option
def list_command(*, config: Path | None, directory: Path | None, as_json: bool) -> None:
    """The keys that may speak to this tracker. Ends with 1 if a file there authorises nobody."""
    try:
        found = read_directory(authority(config, directory))
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    keys = sorted(found.keys.values(), key=lambda key: key.name)
    if as_json:
        print_json({"keys": [key.model_dump(mode="json") for key in keys], "problems": list(found.problems)})
    elif keys:
        rows = [(key.name, key.role, ", ".join(key.gateways), key.public) for key in keys]
        print_table("Authorised keys", ("name", "role", "gateways", "public"), rows)
    else:
        print_line("no key is authorised")
    for problem in found.problems:
        click.echo(problem, err=True)
    sys.exit(1 if found.problems else 0)


@command.command("revoke")
@click.argument("name")
@directory_option
def revoke_command(*, name: str, config: Path | None, directory: Path | None) -> None:
    """Let this key speak no more. A running tracker stops to hear it within a second or two."""
    try:
        path = revoke(authority(config, directory), name)
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    click.echo(f"{name} may not speak to this tracker any more; {path} is gone.", err=True)


def authority(config: Path | None, directory: Path | None) -> Path:
    """The directory of authorised keys."""
    found = directory or read_configuration(config).tracker.authorised_keys
    if found is None:
        raise WrongUse("Say which directory: --directory, or tracker.authorised_keys in the configuration.")
    return found


def own_key(path: Path, role: KeyRole, name: str, known_as: str | None = None) -> PublicKey:
    """The public half of the key in this file, which is made if it is not there."""
    try:
        if path.exists():
            found = read_secret_key(path, role)
            if known_as not in (None, found.name):
                raise WrongUse(f"{path} is there already, and is the key of {found.name}, not of {known_as}.")
            return found.public_key
        made = generate(role, name)
        write_secret_key(path, made)
        public_path = path.with_name(path.name + PUBLIC_SUFFIX)
        write_public_file(public_path, public_text(made.public_key))
    except KeyUnusable as error:
        raise WrongUse(str(error)) from error
    click.echo(f"The secret key is in {path}, the public one in {public_path}.", err=True)
    return made.public_key


def make_key(path: Path, name: str | None) -> VerifyingKey:
    """A new key in its file, the public half beside it. KeyUnusable."""
    key = SigningKey.generate(name or f"{platform.node()}/porthold")
    write_key_file(path, key)
    write_public_file(path.with_name(path.name + PUBLIC_SUFFIX), f"{key.verifying_key}\n")
    return key.verifying_key


def existing_key(path: Path, name: str | None) -> VerifyingKey:
    """The public half of the key that is there. KeyUnusable, also when it has another name."""
    key = read_key_file(path).verifying_key
    if name not in (None, key.name):
        raise KeyUnusable(f"{path} is there already, and its name is {key.name}, not {name}")
    return key


def write_public_file(path: Path, text: str) -> None:
    """For everybody to read. KeyUnusable when it cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
