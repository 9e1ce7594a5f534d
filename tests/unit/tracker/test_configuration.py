"""The file is right, or every problem is named with file, key and reason."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.note import SigningKey
from tests.unit.tracker.wire import CUSEEME
from tracker.configuration import (
    PROTOCOLS,
    ConfigurationError,
    IPv4,
    Section,
    TrackerFile,
    address_from_text,
    load,
    ports_from_text,
    ports_to_text,
)
from tracker.events import PortRange


class GatewaySection(Section):
    lan: IPv4


class GatewayFile(TrackerFile):
    gateway: GatewaySection

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.services:
            yield "services", "there is none"


def problems(tmp_path: Path, text: str, model: type[TrackerFile] = TrackerFile, **options: Any) -> list[str]:
    path = tmp_path / "porthold.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path, model, **options)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def loaded(tmp_path: Path, text: str) -> TrackerFile:
    path = tmp_path / "porthold.toml"
    path.write_text(text)
    return load(path, TrackerFile)


def test_an_empty_file_has_the_defaults(tmp_path: Path) -> None:
    section = loaded(tmp_path, "").tracker
    assert section.endpoint == "ipc:///run/porthold/tracker.ipc"
    assert section.log == Path("/var/lib/porthold/log.sqlite")
    assert (section.lease_s, section.alive_s) == (10, 5)


def test_the_profile_cuseeme_needs_nothing_said(tmp_path: Path) -> None:
    (service,) = loaded(tmp_path, '[services.cuseeme]\nprofile = "cuseeme"').service_definitions()
    assert service.control == CUSEEME.control
    assert service.forward == (*CUSEEME.forward, PortRange(17, 24032, 24032))
    assert service.idle_ms == 300_000


def test_what_is_said_replaces_the_profile_s_default(tmp_path: Path) -> None:
    text = '[services.x]\ncontrol = ["udp/9"]\nforward = ["tcp/10-12"]\nidle_s = 2.5'
    (service,) = loaded(tmp_path, text).service_definitions()
    assert (service.control, service.forward) == ((PortRange(17, 9, 9),), (PortRange(6, 10, 12),))
    assert service.idle_ms == 2500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[tracker]\nlog_file = 1", "tracker.log_file: is not known"),
        ("[traker]", "traker: is not known"),
        ("[services.x]\nidle = 1", "services.x.idle: is not known"),
        ("[tracker]\nlog = 'x.sqlite'", "tracker.log: 'x.sqlite' is no absolute path"),
        (
            "[tracker]\nendpoint = 'tcp://*:1'",
            "tracker.endpoint: 'tcp://*:1' is no 'ipc:///path'",
        ),
        (
            f"[tracker]\nendpoint = 'ipc:///{'x' * 100}'",
            "tracker.endpoint: the path of a local socket is at most 100 octets long",
        ),
        ("[tracker]\nlease_s = '10'", "tracker.lease_s: Input should be a valid number"),
        ("[tracker]\nlease_s = true", "tracker.lease_s: Input should be a valid number"),
        ("[tracker]\nlease_s = 0", "tracker.lease_s: Input should be greater than or equal to 0.1"),
        ("[tracker]\nlease_s = nan", "tracker.lease_s: Input should be a finite number"),
        (
            "[services.x]\nprofile = 'cuseme'",
            "services.x.profile: Input should be 'cuseeme', 'realaudio', 'irc' or 'plain'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\nforward = ['udp/1', '7648']",
            "services.x.forward[1]: '7648' is no port or range like 'udp/7648' or 'tcp/7648-7649'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\nforward = ['udp/9-8']",
            "services.x.forward[0]: 'udp/9-8' is not within 1 to 65535, lower port first",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\npolicy = 'fixed'",
            "services.x.holder: is missing for policy = 'fixed'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\npolicy = 'last'\nholder = '192.168.1.10'",
            "services.x.holder: has no effect without policy = 'fixed'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\npolicy = 'fixed'\nholder = '192.168.1.10'\nidle_s = 3.0",
            "services.x.idle_s: has no effect with policy = 'fixed': its holder may be silent for ever",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\npassthrough = true",
            "services.x.passthrough: needs policy = 'fixed': its holder is who carries the public address",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\nunsolicited = 'local'\ncallers = 'contacted'",
            "services.x.callers: has no effect with unsolicited = 'local'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\ncallers = 'anybody'",
            "services.x.callers: is no list of networks like '198.51.100.0/24', nor the word 'contacted'",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\ncallers = ['198.51.100.1/24']",
            "services.x.callers: 198.51.100.1/24 has host bits set",
        ),
        (
            "[services.x]\nprofile = 'cuseeme'\nsharing = 'per-peer'\npolicy = 'last'",
            "services.x.sharing: 'per-peer' goes only with policy = 'first'",
        ),
        (
            "[services.X]\nprofile = 'cuseeme'",
            "services.X: a service is called by up to 32 small letters, digits and hyphens, a letter first",
        ),
        ("[tracker]\nsigning_key = 'log.key'", "tracker.signing_key: 'log.key' is no absolute path"),
        (
            "[tracker]\ncheckpoint_directory = '/tmp'",
            "tracker.checkpoint_directory: has no effect without tracker.signing_key",
        ),
        (
            "[tracker]\ncheckpoint_every_s = 60.0",
            "tracker.checkpoint_every_s: has no effect without tracker.signing_key",
        ),
        (
            "[tracker]\nsnapshot_every_records = 0",
            "tracker.snapshot_every_records: Input should be greater than or equal to 1",
        ),
        (
            "[tracker]\nverifying_keys = ['log.example']",
            "tracker.verifying_keys[0]: no key: name+id+base64 is wanted",
        ),
        (
            "[tracker]\nendpoint = 'ipc:///a'\nreader_endpoint = 'ipc:///a'",
            "tracker.reader_endpoint: is the same as tracker.endpoint",
        ),
        (
            "[tracker]\noperator_mode = '0750'",
            "tracker.operator_mode: '0750': a socket is read and written, by its owner at least, like '0660'",
        ),
        ("[tracker]\nreader_mode = 'rw'", "tracker.reader_mode: 'rw' is no file mode like '0660'"),
        ("[tracker]\nlisten = ['tcp://*']", "tracker.listen[0]: 'tcp://*' is no 'tcp://address:port'"),
        (
            "[tracker]\nlisten = ['tcp://*:7650']\nserver_key = '/k'",
            "tracker.authorised_keys: is missing, and tracker.listen is always encrypted;"
            " say which directory has the keys of those who may speak by TCP",
        ),
        ("[tracker]\nserver_key = '/k'", "tracker.server_key: has no effect without tracker.listen"),
        (
            "[tracker.limits]\nconnections = 0",
            "tracker.limits.connections: Input should be greater than or equal to 1",
        ),
        (
            "[remote]\ntracker = 'tcp://host:1'\ntracker_key = 'short'\nkey = '/k'",
            "remote.tracker_key: no key: 40 characters of Z85 are wanted, as `porthold keys` prints them",
        ),
    ],
)
def test_a_problem_is_named_with_its_key_and_reason(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text) == [expected]


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    assert problems(tmp_path, "[services.x]\n[services.y]\ncontrol = ['udp/1']") == [
        "services.x.control: is missing, and the profile 'plain' has no default",
        "services.x.forward: is missing, and the profile 'plain' has no default",
        "services.y.forward: is missing, and the profile 'plain' has no default",
    ]


def test_a_port_belongs_to_one_service_and_once(tmp_path: Path) -> None:
    text = """
        [services.a]
        profile = "cuseeme"
        [services.b]
        control = ["udp/1"]
        forward = ["tcp/7649-8000", "udp/5-6", "udp/6"]
    """
    assert problems(tmp_path, text) == [
        "services.b.forward[0]: tcp/7649-8000 is also in services.a.forward[1] (tcp/7648-7649)",
        "services.b.forward[2]: udp/6 is also in services.b.forward[1] (udp/5-6)",
    ]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml: No such file"):
        load(tmp_path / "missing.toml", TrackerFile)
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load(tmp_path, TrackerFile)
    assert problems(tmp_path, "[tracker") == [
        "no TOML: Expected ']' at the end of a table declaration (at end of document)"
    ]
    (tmp_path / "latin").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigurationError, match="no UTF-8"):
        load(tmp_path / "latin", TrackerFile)


def test_a_path_to_be_written_needs_its_directory(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    text = f"""
        [tracker]
        log = "{tmp_path}/none/log"
        endpoint = "ipc:///proc/tracker.ipc"
        reader_endpoint = "ipc://{tmp_path}/directory"
    """
    writing = ("tracker.log", "tracker.endpoint", "tracker.reader_endpoint")
    found = problems(tmp_path, text, writing=writing)
    assert found[0] == f"tracker.log: there is no directory '{tmp_path}/none'"
    assert found[-1] == f"tracker.reader_endpoint: '{tmp_path}/directory' is a directory"


def test_what_concerns_checkpoints_is_read_and_its_directory_must_be_writable(tmp_path: Path) -> None:
    key = SigningKey.generate("log.example/1").verifying_key
    text = f"""
        [tracker]
        signing_key = "/etc/porthold/log.key"
        verifying_keys = ["{key}"]
        checkpoint_directory = "{tmp_path}/none"
        checkpoint_every_records = 10
    """
    section = loaded(tmp_path, text).tracker
    assert (section.signing_key, section.verifying_keys) == (Path("/etc/porthold/log.key"), (key,))
    assert (section.checkpoint_every_records, section.checkpoint_every_s) == (10, 60)
    writing = ("tracker.checkpoint_directory",)
    assert problems(tmp_path, text, writing=writing) == [
        f"tracker.checkpoint_directory: there is no directory '{tmp_path}/none'"
    ]
    (tmp_path / "none").mkdir()
    load(tmp_path / "porthold.toml", TrackerFile, writing=writing)
    (tmp_path / "empty.toml").write_text("")
    load(tmp_path / "empty.toml", TrackerFile, writing=writing)


def test_the_gateway_section_is_for_the_subclass_to_say(tmp_path: Path) -> None:
    loaded(tmp_path, "[gateway]\nanything = 1")
    assert problems(tmp_path, "", GatewayFile) == ["gateway: is missing"]
    assert problems(tmp_path, "[gateway]\nlan = '300.1.1.1'", GatewayFile) == [
        "gateway.lan: Octet 300 (> 255) not permitted in '300.1.1.1'"
    ]
    assert problems(tmp_path, "[gateway]\nlan = '10.1.1.1'", GatewayFile) == ["services: there is none"]


@given(st.sampled_from(sorted(PROTOCOLS.values())), st.lists(st.integers(1, 65535), min_size=2, max_size=2))
def test_ports_come_back_from_their_text(protocol: int, ends: list[int]) -> None:
    ports = PortRange(protocol, min(ends), max(ends))
    assert ports_from_text(ports_to_text(ports)) == ports


@given(st.text(max_size=20))
def test_any_text_is_a_port_range_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert ports_to_text(ports_from_text(text))


def test_ipv6_is_no_address_here() -> None:
    assert address_from_text("192.0.2.1") == bytes([192, 0, 2, 1])
    for wrong in ("::1", "1.2.3", 5):
        with pytest.raises(ValueError, match=r".+"):
            address_from_text(wrong)
