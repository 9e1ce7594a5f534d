"""Notes and keys are those of golang.org/x/mod/sumdb/note, and nothing else is believed."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.note import (
    NOTE_LIMIT,
    KeyUnusable,
    NoteError,
    SigningKey,
    VerifyingKey,
    note_text,
    read_key_file,
    verify_note,
    write_key_file,
)

# From the documentation of golang.org/x/mod/sumdb/note.
PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = (
    b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
SIGNATURE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNI"
    "uGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOTE = TEXT + b"\n" + SIGNATURE.encode()

OURS = SigningKey.parse(PRIVATE)
STRANGER = SigningKey("stranger.example", bytes(range(32)))


def test_a_note_of_gos_library_is_made_and_believed_alike() -> None:
    assert OURS.sign(TEXT) == NOTE
    assert verify_note(NOTE, [VerifyingKey.parse(PUBLIC)]) == (TEXT, OURS.verifying_key)
    assert str(OURS.verifying_key) == PUBLIC
    assert OURS.secret_text() == PRIVATE


def test_signatures_of_unknown_keys_are_ignored_and_the_known_ones_count() -> None:
    stranger_line = STRANGER.sign(TEXT)[len(TEXT) + 1 :]
    assert verify_note(NOTE + stranger_line, [OURS.verifying_key])[0] == TEXT
    with pytest.raises(NoteError, match="no key that is known"):
        verify_note(NOTE, [STRANGER.verifying_key])
    with pytest.raises(NoteError, match="no key that is known"):
        verify_note(NOTE, [])


def test_a_bad_signature_of_a_known_key_refuses_the_note_whatever_else_is_there() -> None:
    bad_line = OURS.sign(b"another text\n").rpartition(b"\n\n")[2]
    both = [OURS.verifying_key, STRANGER.verifying_key]
    with pytest.raises(NoteError, match="PeterNeumann is not valid"):
        verify_note(STRANGER.sign(TEXT) + bad_line, both)


def test_a_key_of_the_same_name_is_another_key() -> None:
    namesake = SigningKey("PeterNeumann", bytes(32))
    with pytest.raises(NoteError, match="no key that is known"):
        verify_note(NOTE, [namesake.verifying_key])


@given(st.integers(0, len(NOTE) * 8 - 1))
def test_no_flipped_bit_is_believed(bit: int) -> None:
    altered = bytearray(NOTE)
    altered[bit // 8] ^= 1 << bit % 8
    try:
        text, _ = verify_note(bytes(altered), [OURS.verifying_key])
    except NoteError:
        return
    assert text == TEXT


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n\n",
        TEXT,
        TEXT + b"\n",
        NOTE[:-1],
        NOTE.replace("\u2014".encode(), b"-"),
        NOTE.replace(b"PeterNeumann x", b"PeterNeumann  x"),
        NOTE.replace(b"x08", b"!08"),
        TEXT + "\n\u2014 PeterNeumann AAAA\n".encode(),
        b"tab\there\n" + NOTE,
        b"\xff\n" + NOTE,
        b"x" * NOTE_LIMIT + NOTE,
    ],
)
def test_what_is_no_note_is_refused(note: bytes) -> None:
    with pytest.raises(NoteError):
        note_text(note)
    with pytest.raises(NoteError):
        verify_note(note, [OURS.verifying_key])


@pytest.mark.parametrize("text", [b"", b"no newline", b"tab\t\n", b"\xff\n"])
def test_a_text_that_no_note_can_have_is_not_signed(text: bytes) -> None:
    with pytest.raises(NoteError):
        OURS.sign(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        PUBLIC.replace("c74f20a3", "c74f20a4"),
        PUBLIC.replace("c74f20a3", "nothex"),
        PUBLIC.replace("Peter", "Paul"),
        PUBLIC.replace("PeterNeumann", "Peter Neumann"),
        PUBLIC.replace("PeterNeumann", ""),
        PUBLIC[:-4],
        PUBLIC.replace("+ARpc", "+AhpC"),
        "name+00000000+" + base64.b64encode(b"\x01" * 34).decode(),
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(KeyUnusable):
        VerifyingKey.parse(text)
    with pytest.raises(KeyUnusable):
        SigningKey.parse("PRIVATE+KEY+" + text)
    with pytest.raises(KeyUnusable):
        SigningKey.parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_a_name_that_no_note_can_have_gets_no_key(name: str) -> None:
    with pytest.raises(KeyUnusable):
        SigningKey.generate(name)


def test_a_key_file_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    key = SigningKey.generate("log.example")
    write_key_file(path, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == key
    with pytest.raises(KeyUnusable, match="exists"):
        write_key_file(path, STRANGER)
    assert read_key_file(path) == key
    path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="others may read it"):
        read_key_file(path)
    with pytest.raises(KeyUnusable, match="missing"):
        read_key_file(tmp_path / "missing")


def test_a_private_key_does_not_show_itself() -> None:
    assert PRIVATE not in repr(OURS)
    assert OURS.seed.hex() not in repr(OURS)
    assert str(OURS.seed) not in repr(OURS)


def test_a_key_lies_where_nobody_else_can_exchange_it(tmp_path: Path) -> None:
    key = SigningKey.generate("log.example/1")
    directory = tmp_path / "keys"
    with pytest.raises(KeyUnusable, match="No such file"):
        write_key_file(directory / "key", key)
    directory.mkdir(mode=0o700)
    write_key_file(directory / "key", key)
    for mode in (0o770, 0o707):
        directory.chmod(mode)
        for use in (lambda: read_key_file(directory / "key"), lambda: write_key_file(directory / "new", key)):
            with pytest.raises(KeyUnusable, match="others may write there"):
                use()
    directory.chmod(0o1777)  # as /tmp: others may write, but not exchange
    assert read_key_file(directory / "key") == key
    directory.chmod(0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(KeyUnusable, match="another user's directory"):
        read_key_file(directory / "key")


def test_a_name_too_long_for_a_record_is_refused() -> None:
    assert SigningKey.generate("x" * 128).name
    with pytest.raises(KeyUnusable, match="at most 128"):
        SigningKey.generate("x" * 129)
