"""Signed notes (C2SP signed-note) and the Ed25519 keys that sign them.

    text, ends with a newline
    <empty line>
    — <key name> base64(key id of 4 bytes || signature)

Rule: a note is believed only when a known key's signature over its text is valid; signatures of keys that
nobody knows are ignored, a bad one of a known key refuses the whole note.

Keys are written as in golang.org/x/mod/sumdb/note: `name+id+base64` for the public half,
`PRIVATE+KEY+name+id+base64` for the private one, so its tools read them too.
"""

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NOTE_LIMIT = 64 * 1024
"""The longest note that is looked at, in bytes; room for many witnesses' signatures."""

KEY_NAME_LIMIT = 128
"""The longest name of a key, in characters."""

_ED25519 = b"\x01"
_KEY_SIZE = 32
_PRIVATE = "PRIVATE+KEY+"
_SIGNATURE_START = "\u2014 "


class NoteError(ValueError):
    """A note that is malformed, or that no known key signed."""


class KeyUnusable(ValueError):
    """A key, or a key file, that is malformed, unreadable or not private enough."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """The public half: name and 32 bytes."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature says which key made it."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    def has_signed(self, text: bytes, signature: bytes) -> bool:
        """Whether this key made the signature."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except InvalidSignature:
            return False
        return True

    @classmethod
    def parse(cls, text: str) -> "VerifyingKey":
        """The key that `str` wrote. Raises KeyUnusable."""
        name, key_id, public = _parse_key(text)
        key = cls(name, public)
        if key.id != key_id:
            raise KeyUnusable(f"key {name}: its id is not that of its bytes")
        return key


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """The private half: a name and a seed of 32 bytes. `repr` shows the name alone."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    @classmethod
    def generate(cls, name: str) -> "SigningKey":
        """A new key. The name is the log's: like `example.com/gateway-1`, without spaces and plus signs."""
        _check_name(name)
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def verifying_key(self) -> VerifyingKey:
        """The public half."""
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        return VerifyingKey(self.name, private.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """The note of this text with this key's signature."""
        _check_text(text)
        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)
        encoded = base64.b64encode(self.verifying_key.id + signature).decode()
        return text + f"\n{_SIGNATURE_START}{self.name} {encoded}\n".encode()

    def secret_text(self) -> str:
        """The form that key files have."""
        encoded = base64.b64encode(_ED25519 + self.seed).decode()
        return f"{_PRIVATE}{self.name}+{self.verifying_key.id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> "SigningKey":
        """The key that `secret_text` wrote. Raises KeyUnusable."""
        if not text.startswith(_PRIVATE):
            raise KeyUnusable("no private key")
        name, key_id, seed = _parse_key(text.removeprefix(_PRIVATE))
        key = cls(name, seed)
        if key.verifying_key.id != key_id:
            raise KeyUnusable(f"key {name}: its id is not that of its bytes")
        return key


def note_text(note: bytes) -> bytes:
    """What a note says, not yet believed. Raises NoteError."""
    return _split(note)[0]


def verify_note(note: bytes, keys: Iterable[VerifyingKey]) -> tuple[bytes, VerifyingKey]:
    """The text of a note, and the first of the keys that signed it. Raises NoteError."""
    text, signatures = _split(note)
    known = {(key.name, key.id): key for key in keys}
    signers = []
    for name, key_id, signature in signatures:
        key = known.get((name, key_id))
        if key is None:
            continue
        if not key.has_signed(text, signature):
            raise NoteError(f"the signature of {name} is not valid")
        signers.append(key)
    if not signers:
        raise NoteError(f"signed by {', '.join(name for name, *_ in signatures)}: no key that is known here")
    return text, signers[0]


def write_key_file(path: Path, key: SigningKey) -> None:
    """Write a private key, readable by its owner only. Raises KeyUnusable."""
    write_secret(path, key.secret_text() + "\n")


def read_key_file(path: Path) -> SigningKey:
    """Read a private key. Raises KeyUnusable, also when others than the owner may read or exchange it."""
    return SigningKey.parse(read_secret(path).strip())


def write_secret(path: Path, text: str) -> None:
    """A new file, readable by its owner only.

    Raises KeyUnusable when the file exists already, or when others could put another one in its place.
    """
    check_directory(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_secret(path: Path) -> str:
    """What is in such a file. Raises KeyUnusable, also when others may read or exchange it."""
    check_directory(path)
    try:
        if path.stat().st_mode & 0o077:
            raise KeyUnusable(f"{path}: others may read it; `chmod 600` it")
        return path.read_text("utf-8")
    except PermissionError as error:
        raise KeyUnusable(
            f"{path}: this user may not read it; `chown` it to the one that reads it"
        ) from error
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyUnusable(f"{path}: {error}") from error


def check_directory(path: Path) -> None:
    """Raise KeyUnusable where others than the owner (and root) may put files in the place of this one."""
    try:
        status = path.absolute().parent.stat()
    except OSError as error:
        raise KeyUnusable(f"{path.parent}: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise KeyUnusable(
            f"{path.parent}: it is another user's directory, who could exchange the key; `chown` it"
        )
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise KeyUnusable(f"{path.parent}: others may write there and exchange the key; `chmod go-w` it")


def _split(note: bytes) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    if len(note) > NOTE_LIMIT:
        raise NoteError(f"{len(note)} bytes, limit {NOTE_LIMIT}")
    text, gap, lines = note.rpartition(b"\n\n")
    text += b"\n"
    _check_text(text)
    if not gap or not lines.endswith(b"\n"):
        raise NoteError("no signatures")
    return text, [_parse_signature(line) for line in lines[:-1].split(b"\n")]


def _parse_signature(line: bytes) -> tuple[str, bytes, bytes]:
    try:
        dash, name, encoded = line.decode().split(" ")
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise NoteError(f"no signature line: {line[:100]!r}") from error
    if dash != _SIGNATURE_START.strip() or not name or len(data) <= 4:
        raise NoteError(f"no signature line: {line[:100]!r}")
    return name, data[:4], data[4:]


def _check_text(text: bytes) -> None:
    try:
        characters = text.decode()
    except UnicodeDecodeError as error:
        raise NoteError("not UTF-8") from error
    if not characters.endswith("\n") or any(ch < " " and ch != "\n" for ch in characters):
        raise NoteError("a text without control characters is wanted, its last line complete")


def _parse_key(text: str) -> tuple[str, bytes, bytes]:
    """Name, id and 32 bytes of a key's text form."""
    try:
        name, key_id, encoded = text.split("+", 2)
        data = base64.b64decode(encoded, validate=True)
        id_bytes = bytes.fromhex(key_id)
    except (ValueError, binascii.Error) as error:
        raise KeyUnusable("no key: name+id+base64 is wanted") from error
    _check_name(name)
    if data[:1] != _ED25519 or len(data) != 1 + _KEY_SIZE:
        raise KeyUnusable(f"key {name}: no Ed25519 key")
    return name, id_bytes, data[1:]


def _check_name(name: str) -> None:
    if not name or any(ch.isspace() or ch == "+" or ch < " " for ch in name):
        raise KeyUnusable(f"key name {name!r}: spaces and plus signs are not allowed, nor is nothing")
    if len(name) > KEY_NAME_LIMIT:
        raise KeyUnusable(f"key name {name[:20]!r}…: at most {KEY_NAME_LIMIT} characters")
