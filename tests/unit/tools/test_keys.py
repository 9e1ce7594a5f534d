"""`keys`: pairs are made with the right modes, authorised by name and role, listed, revoked; else refused."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result

from tests.unit.tools.test_protecting import run
from tracker.keyring import Keyring, read_secret_key
from tracker.roles import Role


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "authorised"
    directory.mkdir(mode=0o755)
    return directory


def keys(*words: str | Path) -> Result:
    return run("keys", *words)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("kind", ["worker", "reader", "operator"])
def test_a_pair_is_made_once_its_secret_half_for_its_owner_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "own.key"
    made = keys(kind, path, "--name", "olga")
    assert made.exit_code == 0
    assert (mode(path), mode(tmp_path / "own.key.pub")) == (0o600, 0o644)
    secret = read_secret_key(path)
    assert (secret.role, secret.name, f"{secret.public}\n") == (kind, "olga", made.stdout)
    assert secret.secret not in (tmp_path / "own.key.pub").read_text()
    again = keys(kind, path)
    assert (again.exit_code, again.stdout) == (0, made.stdout)
    assert read_secret_key(path) == secret
    other = keys(kind, path, "--name", "someone")
    assert other.exit_code == 2
    assert "is the key of olga, not of someone" in other.stderr


def test_the_server_s_key_is_where_the_configuration_says(tmp_path: Path) -> None:
    config = tmp_path / "porthold.toml"
    config.write_text(
        f'[tracker]\nlisten = ["tcp://*:7650"]\nserver_key = "{tmp_path}/server.key"\n'
        f'authorised_keys = "{tmp_path}"\n'
    )
    made = keys("server", "--config", config)
    assert made.exit_code == 0
    assert read_secret_key(tmp_path / "server.key", "tracker").public == made.stdout.strip()


def test_a_worker_is_authorised_for_its_gateways_listed_and_revoked(tmp_path: Path, authority: Path) -> None:
    keys("worker", tmp_path / "w", "--name", "w1")
    keyring = Keyring(authority)
    done = keys(
        "authorise", tmp_path / "w.pub", "--role", "worker", "--gateway", "gw1", "--gateway", "gw2",
        "--directory", authority,
    )  # fmt: skip
    assert done.exit_code == 0
    assert mode(authority / "w1.toml") == 0o644
    assert keyring.refresh() == ["the key of w1 is authorised: worker for gw1, gw2"]
    assert keyring.refresh() == []
    (key,) = keyring.authorised.keys.values()
    assert (key.name, key.role, key.gateways) == ("w1", Role.WORKER, ("gw1", "gw2"))
    listed = keys("list", "--directory", authority, "--json")
    assert json.loads(listed.stdout)["keys"] == [
        {"role": "worker", "name": "w1", "gateways": ["gw1", "gw2"], "public": key.public}
    ]
    assert "gw1, gw2" in keys("list", "--directory", authority).stdout
    assert keys("revoke", "w1", "--directory", authority).exit_code == 0
    assert keyring.refresh() == ["the key of w1 is not authorised any more"]
    assert keyring.authorised.keys == {}
    assert keys("list", "--directory", authority).stdout == "no key is authorised\n"
    assert keys("revoke", "w1", "--directory", authority).exit_code == 2


def authorising(tmp_path: Path, authority: Path, *words: str) -> Result:
    keys("reader", tmp_path / "r", "--name", "ruth")
    return keys("authorise", tmp_path / "r.pub", "--directory", authority, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--role", "operator"), "was made as the key of a reader, not of a operator"),
        (("--role", "worker"), "A worker needs --gateway"),
        (("--role", "reader", "--gateway", "gw"), "nobody else has any"),
        (("--role", "reader", "--name", "../../etc/passwd"), "won't do"),
        (("--role", "reader", "--name", "tracker"), "is the tracker's own name"),
        ((), "--role"),
    ],
)
def test_what_cannot_be_authorised_is_said_and_nothing_is_written(
    tmp_path: Path, authority: Path, words: tuple[str, ...], said: str
) -> None:
    refused = authorising(tmp_path, authority, *words)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert list(authority.iterdir()) == []


def test_a_secret_key_is_not_taken_for_a_public_one(tmp_path: Path, authority: Path) -> None:
    keys("reader", tmp_path / "r", "--name", "ruth")
    refused = keys("authorise", tmp_path / "r", "--role", "reader", "--directory", authority)
    assert refused.exit_code == 2
    assert f"take {tmp_path / 'r'}.pub" in refused.stderr
    assert read_secret_key(tmp_path / "r").secret not in refused.stderr


def test_one_key_has_one_name(tmp_path: Path, authority: Path) -> None:
    assert authorising(tmp_path, authority, "--role", "reader").exit_code == 0
    refused = authorising(tmp_path, authority, "--role", "reader", "--name", "other")
    assert refused.exit_code == 2
    assert "authorised already, under the name ruth" in refused.stderr


def test_a_secret_key_that_others_can_read_is_refused_with_its_mend(tmp_path: Path) -> None:
    keys("reader", tmp_path / "r", "--name", "ruth")
    (tmp_path / "r").chmod(0o640)
    refused = keys("reader", tmp_path / "r")
    assert refused.exit_code == 2
    assert "`chmod 600` it" in refused.stderr


def test_a_directory_where_others_can_authorise_themselves_is_refused(
    tmp_path: Path, authority: Path
) -> None:
    for bits in (0o777, 0o1777, 0o775):
        authority.chmod(bits)
        refused = keys("list", "--directory", authority)
        assert refused.exit_code == 2
        assert "chmod go-w" in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "role: is missing"),
        ("role = 1", "role: Input should be"),
        ('role = "reader"\nname = "ruth"\npublic = "short"', "public: no key: 40 characters"),
        ("\x00", "no TOML"),
    ],
)
def test_a_file_that_cannot_be_believed_authorises_nobody_and_the_others_stay(
    tmp_path: Path, authority: Path, text: str, said: str
) -> None:
    assert authorising(tmp_path, authority, "--role", "reader").exit_code == 0
    keyring = Keyring(authority)
    (authority / "odd.toml").write_text(text)
    (news,) = keyring.refresh()
    assert news.startswith(f"a key is not authorised: {authority}/odd.toml: ")
    assert said in news
    assert keyring.authorised.names == {"ruth"}
    listed = keys("list", "--directory", authority)
    assert listed.exit_code == 1
    assert said in listed.stderr


def test_a_file_that_others_may_change_or_that_has_another_name_authorises_nobody(
    tmp_path: Path, authority: Path
) -> None:
    authorising(tmp_path, authority, "--role", "reader")
    (authority / "ruth.toml").rename(authority / "olga.toml")
    assert "a file is called after its key" in keys("list", "--directory", authority).stderr
    (authority / "olga.toml").rename(authority / "ruth.toml")
    (authority / "ruth.toml").chmod(0o666)
    assert "mend it: chmod go-w" in keys("list", "--directory", authority).stderr


def test_beside_a_link_to_nothing_a_key_is_revoked_all_the_same(tmp_path: Path, authority: Path) -> None:
    assert authorising(tmp_path, authority, "--role", "reader").exit_code == 0
    keyring = Keyring(authority)
    (authority / ".#ruth.toml").symlink_to("olga@desk.4711:1")  # as an editor leaves it while it has a file
    (news,) = keyring.refresh()
    assert "No such file" in news
    assert keys("revoke", "ruth", "--directory", authority).exit_code == 0
    assert keyring.refresh() == ["the key of ruth is not authorised any more"]
    assert not keyring.authorised.names


@pytest.mark.parametrize("what", ["pipe", "device", "directory", "much"])
def test_what_is_no_short_file_authorises_nobody_and_keeps_nobody_waiting(
    tmp_path: Path, authority: Path, what: str
) -> None:
    assert authorising(tmp_path, authority, "--role", "reader").exit_code == 0
    odd = authority / "odd.toml"
    match what:
        case "pipe":
            os.mkfifo(odd, 0o600)
        case "device":
            odd.symlink_to("/dev/full")
        case "directory":
            odd.mkdir(0o755)
        case _:
            odd.write_bytes(bytes(1 << 20))
    listed = keys("list", "--directory", authority)
    assert f"{odd}: a key's file is one of a few lines" in listed.stderr
    assert "ruth" in listed.stdout


@pytest.mark.parametrize("name", ["../porthold", "", ".", "a/b", "a\nb"])
def test_nothing_but_a_key_is_revoked(tmp_path: Path, authority: Path, name: str) -> None:
    other = tmp_path / "porthold.toml"
    other.write_text("")
    refused = keys("revoke", name, "--directory", authority)
    assert refused.exit_code == 2
    assert "nobody can be called" in refused.stderr
    assert other.exists()


def test_without_a_directory_it_is_said_where_to_name_one(tmp_path: Path) -> None:
    config = tmp_path / "porthold.toml"
    config.write_text("")
    refused = keys("list", "--config", config)
    assert refused.exit_code == 2
    assert "tracker.authorised_keys" in refused.stderr
