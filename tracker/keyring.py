"""The keys of those who speak over TCP (CURVE): their files, and the directory of those who may.

Rule 1: a secret is in a file that its owner alone can read, in a directory where nobody else can exchange it;
otherwise it is not used, and the error says how to mend that. Rule 2: who may speak is what the directory
says now: one file for each key, called after its name; a file that cannot be believed authorises nobody. Rule
3: a name has one key, and a key one name. Rule 4: a file is put into the directory whole, or not at all.

All of them are TOML: `role`, `name`, `public`; in a secret key's file also `secret`; of a worker that is
authorised also `gateways`. Keys are in ZeroMQ's own text form, Z85: 40 characters.
"""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import zmq
from pydantic import Field, TypeAdapter, ValidationError

from eventlog.note import KeyUnusable, check_directory, read_secret, write_secret
from tracker.configuration import ConfigurationError, CurveKey, Section, read_toml, toml_from_text
from tracker.events import TRACKER
from tracker.roles import Role

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
KeyRole = Literal["worker", "reader", "operator", "tracker"]

SUFFIX: Final = ".toml"
TRACKER_ROLE: Final[KeyRole] = "tracker"
KEYS_LIMIT: Final = 4096
"""So many keys a directory may authorise."""
FILE_LIMIT: Final = 64 * 1024
"""Bytes of a key's file."""
_NAME: Final = TypeAdapter(KeyName)


class PublicKey(Section):
    """What is given to others: whose key it is, and its public half."""

    role: KeyRole
    name: KeyName
    public: CurveKey


class SecretKey(PublicKey):
    """Both halves."""

    secret: Annotated[CurveKey, Field(repr=False)]

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(role=self.role, name=self.name, public=self.public)


class AuthorisedKey(Section):
    """Who has the secret half may speak to the tracker, as `role`; a worker for `gateways`."""

    role: Role
    name: KeyName
    gateways: tuple[KeyName, ...] = ()
    public: CurveKey


Key = TypeVar("Key", bound=Section)


def generate(role: KeyRole, name: str) -> SecretKey:
    """A new pair. KeyUnusable: nobody can be called so."""
    public, secret = zmq.curve_keypair()
    return _made(SecretKey, role=role, name=name, public=public.decode(), secret=secret.decode())


def authorised_key(name: str, role: Role, gateways: Sequence[str], public: str) -> AuthorisedKey:
    """Checked as in its file. KeyUnusable."""
    key = _made(AuthorisedKey, name=name, role=role, gateways=tuple(gateways), public=public)
    _check(key, f"the key of {name}")
    return key


def _made(shape: type[Key], **values: object) -> Key:
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise KeyUnusable(f"{fault['loc'][0]}: {fault['input']!r} won't do: {fault['msg']}") from error


def write_secret_key(path: Path, key: SecretKey) -> None:
    """Into a new file, for its owner only. KeyUnusable."""
    comment = f"porthold: the secret key of {key.role} {key.name}. It stays on this machine."
    write_secret(path, _to_text(comment, key.model_dump()))


def read_secret_key(path: Path, role: KeyRole | None = None) -> SecretKey:
    """KeyUnusable: it is none, not of this role, or others can read or exchange it."""
    try:
        key = toml_from_text(path, read_secret(path), SecretKey)
    except ConfigurationError as error:
        raise KeyUnusable(str(error)) from error
    if role not in (None, key.role):
        raise KeyUnusable(f"{path}: a key of a {role} is wanted, and this is one of a {key.role}")
    if zmq.curve_public(key.secret.encode()) != key.public.encode():
        raise KeyUnusable(f"{path}: its public half is not that of its secret one; make another key")
    return key


def public_text(key: PublicKey) -> str:
    """What is in the file of a public key."""
    return _to_text(f"porthold: the public key of {key.role} {key.name}.", key.model_dump())


def read_public_key(path: Path) -> PublicKey:
    """KeyUnusable: it is no public key; a secret one, perhaps, which should not have been sent."""
    try:
        return read_toml(path, PublicKey)
    except ConfigurationError as error:
        if any(problem.key == "secret" for problem in error.problems):
            raise KeyUnusable(f"{path} is a secret key, which stays where it is; take {path}.pub") from error
        raise KeyUnusable(str(error)) from error


def authorise(directory: Path, key: AuthorisedKey) -> Path:
    """Puts the key's file into the directory, instead of one of the same name. KeyUnusable."""
    _check_authority(directory)
    path = directory / f"{key.name}{SUFFIX}"
    for other in read_directory(directory).keys.values():
        if other.public == key.public and other.name != key.name:
            raise KeyUnusable(f"this key is authorised already, under the name {other.name}")
    values = {name: value for name, value in key.model_dump(mode="json").items() if value != []}
    text = _to_text(f"porthold: {key.role} {key.name} may speak to this tracker.", values)
    # A name that no reader takes for a key's; the rename brings it in whole.
    temporary = directory / f".{key.name}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    return path


def revoke(directory: Path, name: str) -> Path:
    """Takes the key's file away. KeyUnusable: there is none, or nobody can be called so."""
    try:
        _NAME.validate_python(name)
    except ValidationError as error:
        raise KeyUnusable(f"nobody can be called {name!r:.80}: {error.errors()[0]['msg']}") from error
    path = directory / f"{name}{SUFFIX}"
    try:
        path.unlink()
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    return path


@dataclass(frozen=True, slots=True)
class Authorised:
    """What a directory says: the keys by their public half, and why some files authorise nobody."""

    keys: Mapping[str, AuthorisedKey] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(key.name for key in self.keys.values())


def read_directory(directory: Path) -> Authorised:
    """All that it says now. KeyUnusable: the directory itself cannot be believed."""
    _check_authority(directory)
    keys: dict[str, AuthorisedKey] = {}
    problems: list[str] = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            key = _read_authorised(path)
            if (other := keys.get(key.public)) is not None:
                raise KeyUnusable(f"{path}: the same key as {other.name}'s; take one of the two files away")
            if len(keys) == KEYS_LIMIT:
                raise KeyUnusable(f"{path}: {KEYS_LIMIT} keys are the most a directory can have")
        except KeyUnusable as error:
            problems.append(str(error))
        else:
            keys[key.public] = key
    return Authorised(keys, tuple(problems))


class Keyring:
    """A directory of authorised keys as it was at the last look; `refresh` looks again."""

    def __init__(self, directory: Path) -> None:
        """KeyUnusable: a file in it, or the directory, can't be believed."""
        self.directory = directory
        self._seen = _listing(directory)
        self.authorised = read_directory(directory)
        if self.authorised.problems:
            raise KeyUnusable("\n".join(self.authorised.problems))

    def refresh(self) -> list[str]:
        """Reads the directory again if it has changed; what to tell people of it."""
        listing = _listing(self.directory)
        if listing == self._seen:
            return []
        self._seen = listing
        before = self.authorised
        try:
            self.authorised = read_directory(self.directory)
        except KeyUnusable as error:
            self.authorised = Authorised(problems=(str(error),))
        return list(_differences(before, self.authorised))


def _differences(before: Authorised, after: Authorised) -> Iterable[str]:
    for public, key in after.keys.items():
        if before.keys.get(public) != key:
            gateways = f" for {', '.join(key.gateways)}" if key.gateways else ""
            yield f"the key of {key.name} is authorised: {key.role}{gateways}"
    for public, key in before.keys.items():
        if public not in after.keys:
            yield f"the key of {key.name} is not authorised any more"
    for problem in after.problems:
        if problem not in before.problems:
            yield f"a key is not authorised: {problem}"


def _listing(directory: Path) -> tuple[tuple[object, ...], ...]:
    """What changes when the directory or a file in it does."""
    try:
        paths = [directory, *sorted(directory.glob(f"*{SUFFIX}"))]
    except OSError:
        return ()
    return tuple((str(path), *_state(path)) for path in paths)


def _state(path: Path) -> tuple[int, ...]:
    try:
        it = path.stat()
    except OSError:
        return ()  # a link to nothing: it must hide no change of the others
    return it.st_ino, it.st_mtime_ns, it.st_ctime_ns, it.st_size, it.st_mode, it.st_uid


def _read_authorised(path: Path) -> AuthorisedKey:
    try:
        status = path.stat()
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_LIMIT:
        # A pipe would keep the tracker waiting, a device fill its memory.
        raise KeyUnusable(f"{path}: a key's file is one of a few lines; mend it: take it away")
    if status.st_mode & 0o022:
        raise KeyUnusable(f"{path}: others may change it; mend it: chmod go-w {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise KeyUnusable(f"{path}: it is another user's; mend it: chown root {path}")
    try:
        key = read_toml(path, AuthorisedKey)
    except ConfigurationError as error:
        raise KeyUnusable(str(error)) from error
    if key.name != path.stem:
        raise KeyUnusable(f"{path}: the key in it is called {key.name}; a file is called after its key")
    _check(key, str(path))
    return key


def _check(key: AuthorisedKey, where: str) -> None:
    """KeyUnusable for what no single value shows."""
    if key.name == TRACKER:
        raise KeyUnusable(f"{where}: {TRACKER!r} is the tracker's own name; choose another")
    if key.role is Role.WORKER and not key.gateways:
        raise KeyUnusable(f"{where}: gateways: a worker needs some to speak for")
    if key.role is not Role.WORKER and key.gateways:
        raise KeyUnusable(f"{where}: gateways: a {key.role} has none")


def _check_authority(directory: Path) -> None:
    """KeyUnusable where others could authorise themselves."""
    if not directory.is_dir():
        raise KeyUnusable(f"there is no directory {directory}; mend it: install -d -m 0755 {directory}")
    check_directory(directory / "any")
    if directory.stat().st_mode & stat.S_ISVTX and directory.stat().st_mode & 0o022:
        raise KeyUnusable(f"{directory}: others may put keys there; mend it: chmod go-w {directory}")


def _to_text(comment: str, values: Mapping[str, object]) -> str:
    lines = [f"# {comment}"]
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else None
        # Names and Z85 have no quotes and no backslashes: what is between quotes is the value.
        shown = f'"{value}"' if items is None else "[" + ", ".join(f'"{item}"' for item in items) + "]"
        lines.append(f"{name} = {shown}")
    return "\n".join(lines) + "\n"
