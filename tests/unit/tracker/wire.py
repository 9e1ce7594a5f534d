"""What the tracker's tests share: messages made from their annotations, and a world with two gateways.

`values(shape)` gives any value that the annotations of `shape` allow, so a new message is tested by being
there.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from hypothesis import strategies as st

from tracker.events import Policy, PortRange, ServiceDefinition, Sharing
from tracker.instant import Instant
from tracker.messages import Body, ClaimPort, OpenSession
from tracker.roles import MAY_SAY, Caller, Role

SECOND_NS = 1_000_000_000
PUBLIC = bytes([203, 0, 113, 1])
OTHER_PUBLIC = bytes([203, 0, 113, 2])
ANN = bytes([192, 168, 0, 2])
BOB = bytes([192, 168, 0, 3])
REFLECTOR = bytes([198, 51, 100, 7])
CUSEEME = ServiceDefinition(
    "cuseeme",
    (PortRange(17, 7648, 7648),),
    (PortRange(17, 7648, 7649), PortRange(6, 7648, 7649)),
    Policy.FIRST,
    Sharing.EXCLUSIVE,
    300_000,
    None,
)
PER_PEER = dataclasses.replace(CUSEEME, name="shared", sharing=Sharing.PER_PEER)


def at(seconds: float) -> Instant:
    """A moment some seconds into the tests' world, whose clocks never step."""
    passed_ns = round(seconds * SECOND_NS)
    return Instant(1_700_000_000 * SECOND_NS + passed_ns, 50 * SECOND_NS + passed_ns)


def opening(
    gateway: str = "gw", *, take_over: bool = False, fence: bool = False, host: str = "host boot"
) -> OpenSession:
    return OpenSession(gateway, (PUBLIC,), (CUSEEME, PER_PEER), host, take_over, fence)


def claim(holder: bytes, epoch: int = 1, **changes: Any) -> ClaimPort:
    claimed = ClaimPort(
        "gw", epoch, PUBLIC, "cuseeme", None, holder, None, 17, 7648, REFLECTOR, 7648, 1000, at(0).wall_ns
    )
    return dataclasses.replace(claimed, **changes)


WORKER = Caller(Role.WORKER, "unix:0")
READER = Caller(Role.READER, "unix:1000")
OPERATOR = Caller(Role.OPERATOR, "unix:0")


def operator(name: str) -> Caller:
    """An operator, by the name of his key."""
    return dataclasses.replace(OPERATOR, name=name, key="a key")


def speaker(body: Body, name: str) -> Caller:
    """Somebody of this name who may say it."""
    roles = (WORKER, OPERATOR, READER)
    caller = next(caller for caller in roles if caller.role in MAY_SAY[type(body)])
    return dataclasses.replace(caller, name=name)


def values(shape: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 (one return for each shape)
    """Everything that unpacks to `shape`."""
    origin = typing.get_origin(shape)
    if origin is Annotated:
        limits = shape.__metadata__[0]
        return _plain(shape.__origin__, limits.least, limits.most)
    if origin is tuple:
        return st.lists(values(typing.get_args(shape)[0]), max_size=3).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(part) for part in typing.get_args(shape)])
    if shape is types.NoneType:
        return st.none()
    if isinstance(shape, type) and issubclass(shape, enum.Enum):
        return st.sampled_from(list(shape))
    if dataclasses.is_dataclass(shape):
        return _structures(shape)
    return _plain(shape, 0, 20)


def _plain(shape: Any, least: int, most: int) -> st.SearchStrategy[Any]:
    if shape is bool:
        return st.booleans()
    if shape is int:
        return st.integers(least, most)
    if shape is bytes:
        return st.binary(min_size=least, max_size=most)
    letters = st.characters(codec="utf-8")
    return st.text(letters, min_size=least, max_size=min(most, 20))


def _structures(shape: Any) -> st.SearchStrategy[Any]:
    if shape is PortRange:
        ordered = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted)
        return st.builds(lambda protocol, ends: PortRange(protocol, *ends), st.integers(0, 255), ordered)
    hints = typing.get_type_hints(shape, include_extras=True)
    fields = (field.name for field in dataclasses.fields(shape))
    return st.builds(shape, *[values(hints[name]) for name in fields])


def counting(first: int = 0) -> Iterator[bytes]:
    """Nonces that differ and can be foreseen."""
    while True:
        yield first.to_bytes(16, "big")
        first += 1
