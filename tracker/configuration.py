"""The configuration file: one TOML file for all commands, checked whole before anything starts.

Rule 1: what is wrong is a ConfigurationError with one line for each problem: file, key, reason. Rule 2:
unknown keys are refused, and so is a setting that would have no effect. Rule 3: what is loaded never changes.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from eventlog.note import VerifyingKey
from tracker.events import Policy, PortRange, ServiceDefinition, Sharing
from tracker.roles import Role

PROTOCOLS: Final = {"tcp": 6, "udp": 17}
IPC: Final = "ipc://"
_IPC_PATH_LIMIT: Final = 100  # sun_path has 108 octets; libzmq wants some of them
_SERVICE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Problem(BaseModel):
    """One thing that is wrong; `key` is empty where it is the file itself."""

    model_config = ConfigDict(frozen=True)
    file: Path
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.reason}" if self.key else f"{self.file}: {self.reason}"


class ConfigurationError(Exception):
    """The file can't be used. Its text has one line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def ports_from_text(text: object) -> PortRange:
    """`udp/7648`, `tcp/7648-7649`; ValueError for anything else."""
    if not isinstance(text, str) or not (found := re.fullmatch(r"(tcp|udp)/(\d{1,5})(?:-(\d{1,5}))?", text)):
        raise ValueError(f"{text!r} is no port or range like 'udp/7648' or 'tcp/7648-7649'")
    protocol, first, last = found.groups()
    numbers = int(first), int(last or first)
    if not 1 <= numbers[0] <= numbers[1] <= 0xFFFF:
        raise ValueError(f"{text!r} is not within 1 to 65535, lower port first")
    return PortRange(PROTOCOLS[protocol], *numbers)


def ports_to_text(ports: PortRange) -> str:
    """The inverse of `ports_from_text`."""
    name = {number: name for name, number in PROTOCOLS.items()}[ports.protocol]
    return f"{name}/{ports.first}" + (f"-{ports.last}" if ports.last != ports.first else "")


def address_from_text(text: object) -> bytes:
    """Four octets from `192.0.2.1`; ValueError for anything else, IPv6 too."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no IPv4 address")
    return ipaddress.IPv4Address(text).packed


def _ipc_endpoint(text: str) -> str:
    if not text.startswith(IPC + "/"):
        raise ValueError(f"{text!r} is no 'ipc:///path'")
    if len(text.removeprefix(IPC).encode()) > _IPC_PATH_LIMIT:
        raise ValueError(f"the path of a local socket is at most {_IPC_PATH_LIMIT} octets long")
    return text


def _tcp_endpoint(text: str) -> str:
    found = re.fullmatch(r"tcp://([A-Za-z0-9.-]{1,253}|\*):(\d{1,5})", text)
    if not found or not 1 <= int(found[2]) <= 0xFFFF:
        raise ValueError(f"{text!r} is no 'tcp://address:port'")
    return text


def _tracker_endpoint(text: str) -> str:
    return _ipc_endpoint(text) if text.startswith(IPC) else _tcp_endpoint(text)


def _curve_key(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}", text):
        raise ValueError("no key: 40 characters of Z85 are wanted, as `porthold keys` prints them")
    return text


def _socket_mode(text: object) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is no file mode like '0660'")
    mode = int(text, 8)
    if mode & 0o111 or mode & 0o600 != 0o600:
        raise ValueError(f"{text!r}: a socket is read and written, by its owner at least, like '0660'")
    return mode


def _listen_address(text: str) -> str:
    address, _, port = text.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 0xFFFF:
        raise ValueError(f"{text!r} is no address and port like '127.0.0.1:9648'")
    ipaddress.IPv4Address(address)
    return text


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"'{path}' is no absolute path")
    return path


def _public_key(text: object) -> VerifyingKey:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no public key")
    return VerifyingKey.parse(text)


Callers = tuple[ipaddress.IPv4Network, ...] | Literal["contacted"]


def callers_from_toml(value: object) -> Callers:
    """A list of networks, or the word "contacted"; ValueError for anything else."""
    if value == "contacted":
        return "contacted"
    if not isinstance(value, list) or not value:
        raise ValueError("is no list of networks like '198.51.100.0/24', nor the word 'contacted'")
    return tuple(ipaddress.IPv4Network(network) for network in value)


Ports = Annotated[PortRange, PlainValidator(ports_from_text)]
IPv4 = Annotated[bytes, PlainValidator(address_from_text)]
Ipc = Annotated[str, AfterValidator(_ipc_endpoint)]
Tcp = Annotated[str, AfterValidator(_tcp_endpoint)]
TrackerEndpoint = Annotated[str, AfterValidator(_tracker_endpoint)]
CurveKey = Annotated[str, AfterValidator(_curve_key)]
SocketMode = Annotated[int, PlainValidator(_socket_mode)]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$")]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Listen = Annotated[str, AfterValidator(_listen_address)]
Seconds = Annotated[float, Field(strict=True, ge=0.1, le=86_400, allow_inf_nan=False)]
Records = Annotated[int, Field(strict=True, ge=1, le=10**9)]
PublicKey = Annotated[VerifyingKey, PlainValidator(_public_key)]


class Section(BaseModel):
    """What every section is: unchangeable, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Number = Annotated[int, Field(strict=True, ge=1, le=10**6)]


class LimitsSection(Section):
    """[tracker.limits]: what one peer may have of the tracker.

    `connections`: of one socket. Messages: of one key, or of one connection on this machine; twice as many at
    once. `queue`: messages that wait for a peer that does not read, or for us.
    """

    connections: Number = 512
    worker_messages_per_s: Number = 5000
    other_messages_per_s: Number = 1000
    queue: Number = 256


class LocalSocket(NamedTuple):
    """A socket on this machine, and who may use its file: `mode`, and the group it is given to."""

    endpoint: str
    mode: int
    group: str | None


class TrackerSection(Section):
    """[tracker]: where it listens and keeps its log.

    Each role has a socket on this machine: workers `endpoint`, readers `reader_endpoint`, operators
    `operator_endpoint`; `…_mode` and `…_group` say which users may take that role. By TCP (`listen`) the key
    says the role: `server_key` is the file of the tracker's own, `authorised_keys` the directory of the
    others.
    `signing_key`: the file of the private key that signs checkpoints; without it nothing of the log is
    protected. `previous_signing_key` vouches for it once, when it has taken that one's place.
    `verifying_keys`: the public keys that workers and `verify` believe.
    """

    endpoint: Ipc = "ipc:///run/porthold/tracker.ipc"
    worker_mode: SocketMode = 0o600
    worker_group: GroupName | None = None
    reader_endpoint: Ipc = "ipc:///run/porthold/reader.ipc"
    reader_mode: SocketMode = 0o660
    reader_group: GroupName | None = None
    operator_endpoint: Ipc = "ipc:///run/porthold/operator.ipc"
    operator_mode: SocketMode = 0o600
    operator_group: GroupName | None = None
    listen: tuple[Tcp, ...] = ()
    server_key: AbsolutePath | None = None
    authorised_keys: AbsolutePath | None = None
    limits: LimitsSection = LimitsSection()
    metrics: Listen | None = None
    log: AbsolutePath = Path("/var/lib/porthold/log.sqlite")
    lease_s: Seconds = 10.0
    alive_s: Seconds = 5.0
    signing_key: AbsolutePath | None = None
    previous_signing_key: AbsolutePath | None = None
    verifying_keys: tuple[PublicKey, ...] = ()
    checkpoint_directory: AbsolutePath | None = None
    checkpoint_every_records: Records = 1000
    checkpoint_every_s: Seconds = 60.0
    snapshot_every_records: Records = 10_000

    def local_socket(self, role: Role) -> LocalSocket:
        """Where this role is served on this machine."""
        match role:
            case Role.WORKER:
                return LocalSocket(self.endpoint, self.worker_mode, self.worker_group)
            case Role.READER:
                return LocalSocket(self.reader_endpoint, self.reader_mode, self.reader_group)
            case Role.OPERATOR:
                return LocalSocket(self.operator_endpoint, self.operator_mode, self.operator_group)


_FOR_CHECKPOINTS: Final = frozenset(
    {"previous_signing_key", "checkpoint_directory", "checkpoint_every_records", "checkpoint_every_s"}
)


class RemoteSection(Section):
    """[remote]: a tracker on another machine, which commands ask here; `key`: the file of our own key."""

    tracker: Tcp
    tracker_key: CurveKey
    key: AbsolutePath


class ServiceSection(Section):
    """[services.NAME]: what is forwarded together; the profile says what need not be written down.

    `holder`: who has it always, where the policy is fixed. `unsolicited`: who is reached by a call from
    outside: the holder, what runs on the gateway itself, or nobody. `callers`: the networks from which the
    holder can be called, or only the peers that he has contacted.
    """

    profile: Literal["cuseeme", "realaudio", "irc", "plain"] = "plain"
    control: tuple[Ports, ...] = ()
    forward: tuple[Ports, ...] = ()
    policy: Policy = Policy.FIRST
    holder: IPv4 | None = None
    sharing: Sharing = Sharing.EXCLUSIVE
    idle_s: Seconds = 300.0
    unsolicited: Literal["holder", "local", "nobody"] = "holder"
    callers: Annotated[Callers | None, PlainValidator(callers_from_toml)] = None
    new_callers_per_minute: Annotated[int, Field(strict=True, ge=1, le=60_000)] | None = None

    passthrough: Annotated[bool, Field(strict=True)] = False

    def definition(self, name: str) -> ServiceDefinition:
        """The service as the tracker hears of it, the profile's defaults filled in."""
        control, forward = PROFILES[self.profile]
        return ServiceDefinition(
            name,
            self.control or control,
            self.forward or forward,
            self.policy,
            self.sharing,
            0 if self.policy is Policy.FIXED else round(self.idle_s * 1000),
            self.holder,
        )


_RTSP, _PNM, _REALAUDIO_DATA = PortRange(6, 554, 554), PortRange(6, 7070, 7070), PortRange(17, 6970, 7170)
PROFILES: Final[dict[str, tuple[tuple[PortRange, ...], tuple[PortRange, ...]]]] = {
    "plain": ((), ()),
    "cuseeme": (
        (PortRange(17, 7648, 7648),),
        (PortRange(17, 7648, 7649), PortRange(6, 7648, 7649), PortRange(17, 24032, 24032)),
    ),
    "realaudio": ((_PNM, _RTSP), (_REALAUDIO_DATA,)),
    "irc": (
        (PortRange(6, 6660, 6669), PortRange(6, 6697, 6697), PortRange(6, 7000, 7000)),
        (PortRange(6, 113, 113),),
    ),
}
"""Control and forward ports of each profile.

realaudio: RealPlayer speaks to the server by TCP, the sound comes by UDP to one of the ports 6970 to 7170
(RealNetworks, "For Firewall Administrators", service.real.com/firewall/adminfw.html). irc: a server asks who
has connected to it at the identification protocol's port (RFC 1413; IRC's own ports: RFC 1459, RFC 7194).
"""


class TrackerFile(Section):
    """The whole file as far as the tracker cares; the rewriter's subclass says what [gateway] is."""

    tracker: TrackerSection = TrackerSection()
    remote: RemoteSection | None = None
    services: dict[str, ServiceSection] = {}
    gateway: Any = None

    def service_definitions(self) -> tuple[ServiceDefinition, ...]:
        """All services, in the order of the file."""
        return tuple(section.definition(name) for name, section in self.services.items())

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, reason) of what no single value shows; a subclass adds to it."""
        yield from _same_sockets(self.tracker)
        yield from _tcp_settings(self.tracker)
        yield from _idle_settings(self.tracker)
        for name, section in self.services.items():
            yield from _service_problems(f"services.{name}", name, section)
        carriers = {section.holder for section in self.services.values() if section.passthrough}
        if len(carriers) > 1:
            yield "services", "passthrough is for one host: only one can carry the public address"
        yield from _overlaps(self.service_definitions())


Model = TypeVar("Model", bound=TrackerFile)
Part = TypeVar("Part", bound=Section)


def load(path: Path, model: type[Model], *, writing: Sequence[str] = ()) -> Model:
    """The file at `path`; raises ConfigurationError.

    `writing`: keys of paths and endpoints that this process is going to create, if they are set: their
    directories must be there and writable.
    """
    loaded = read_toml(path, model)
    found = [*loaded.problems(), *(fault for key in writing for fault in _unwritable(loaded, key))]
    if found:
        raise ConfigurationError([Problem(file=path, key=key, reason=reason) for key, reason in found])
    return loaded


def read_toml(path: Path, model: type[Part]) -> Part:
    """What is in a file of TOML; raises ConfigurationError."""
    try:
        return toml_from_text(path, path.read_text(), model)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise ConfigurationError([Problem(file=path, key="", reason=reason or str(error))]) from error


def toml_from_text(path: Path, text: str, model: type[Part]) -> Part:
    """The same for the text of the file at `path`."""
    try:
        return model.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([Problem(file=path, key="", reason=f"no TOML: {error}")]) from error
    except ValidationError as error:
        raise ConfigurationError([_problem(path, fault) for fault in error.errors()]) from error


def _problem(path: Path, fault: Mapping[str, Any]) -> Problem:
    key = ""
    for part in fault["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    match fault["type"]:
        case "extra_forbidden":
            reason = "is not known"
        case "missing":
            reason = "is missing"
        case _:
            reason = fault["msg"].removeprefix("Value error, ")
    return Problem(file=path, key=key, reason=reason)


def _service_problems(key: str, name: str, section: ServiceSection) -> Iterator[tuple[str, str]]:
    if not _SERVICE_NAME.fullmatch(name):
        yield key, "a service is called by up to 32 small letters, digits and hyphens, a letter first"
    if (section.policy is Policy.FIXED) != (section.holder is not None):
        missing = section.holder is None
        yield f"{key}.holder", f"{'is missing for' if missing else 'has no effect without'} policy = 'fixed'"
        return
    if section.policy is Policy.FIXED and "idle_s" in section.model_fields_set:
        yield f"{key}.idle_s", "has no effect with policy = 'fixed': its holder may be silent for ever"
    definition = section.definition(name)
    if not definition.control:
        yield f"{key}.control", f"is missing, and the profile {section.profile!r} has no default"
    if not definition.forward:
        yield f"{key}.forward", f"is missing, and the profile {section.profile!r} has no default"
    yield from _mode_problems(key, section)


def _mode_problems(key: str, section: ServiceSection) -> Iterator[tuple[str, str]]:
    if section.unsolicited != "holder":
        for setting in ("callers", "new_callers_per_minute"):
            if setting in section.model_fields_set:
                yield f"{key}.{setting}", f"has no effect with unsolicited = {section.unsolicited!r}"
    if section.passthrough and section.holder is None:
        yield (
            f"{key}.passthrough",
            "needs policy = 'fixed': its holder is who carries the public address",
        )
    if section.passthrough and section.unsolicited == "local":
        yield f"{key}.unsolicited", "'local' does not go with passthrough: there is only one such address"
    if section.sharing is Sharing.PER_PEER:
        if section.policy is not Policy.FIRST:
            yield (
                f"{key}.sharing",
                "'per-peer' goes only with policy = 'first'",
            )
        if section.callers == "contacted":
            yield (
                f"{key}.callers",
                "has no effect with sharing = 'per-peer', where only contacted peers call in",
            )


def _same_sockets(section: TrackerSection) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for name in ("endpoint", "reader_endpoint", "operator_endpoint"):
        first = seen.setdefault(getattr(section, name), name)
        if first != name:
            yield f"tracker.{name}", f"is the same as tracker.{first}"


def _tcp_settings(section: TrackerSection) -> Iterator[tuple[str, str]]:
    for name, mend in (
        ("server_key", "make one: porthold keys server FILE"),
        ("authorised_keys", "say which directory has the keys of those who may speak by TCP"),
    ):
        there = getattr(section, name) is not None
        if section.listen and not there:
            yield f"tracker.{name}", f"is missing, and tracker.listen is always encrypted; {mend}"
        elif there and not section.listen:
            yield f"tracker.{name}", "has no effect without tracker.listen"


def _idle_settings(section: TrackerSection) -> Iterator[tuple[str, str]]:
    if section.signing_key is None:
        for name in sorted(section.model_fields_set & _FOR_CHECKPOINTS):
            yield f"tracker.{name}", "has no effect without tracker.signing_key"


def _overlaps(services: tuple[ServiceDefinition, ...]) -> Iterator[tuple[str, str]]:
    for use in ("control", "forward"):
        seen: list[tuple[str, PortRange]] = []
        for service in services:
            for index, ports in enumerate(getattr(service, use)):
                key = f"services.{service.name}.{use}[{index}]"
                for other_key, other in seen:
                    if _overlap(ports, other):
                        yield key, f"{ports_to_text(ports)} is also in {other_key} ({ports_to_text(other)})"
                seen.append((key, ports))


def _overlap(one: PortRange, other: PortRange) -> bool:
    return one.protocol == other.protocol and one.first <= other.last and other.first <= one.last


def _unwritable(loaded: TrackerFile, key: str) -> Iterator[tuple[str, str]]:
    value: object = reduce(getattr, key.split("."), loaded)
    if value is None:
        return
    path = Path(str(value).removeprefix(IPC))
    is_directory = key.endswith("_directory")
    directory = path if is_directory else path.parent
    if not directory.is_dir():
        yield key, f"there is no directory '{directory}'"
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield key, f"the directory '{directory}' is not writable for this user"
    elif path.is_dir() and not is_directory:
        yield key, f"'{path}' is a directory"
