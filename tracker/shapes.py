"""Frozen dataclasses to arrays of plain values and back, by their annotations.

Rule 1: what `unpack` returns has every type and every limit its annotations promise; anything else is one
ProtocolError that names the field. Rule 2: `unpack(cls, pack(x)) == x`, and nothing else unpacks to x: no
coercion, no defaults, no surplus values. Rule 3: no I/O and no clock.

Annotations understood: int, str, bytes, bool, `X | None`, `tuple[X, ...]`, enums, dataclasses (as nested
arrays), and `Annotated[X, Limits(least, most)]`: of an int its value, of str, bytes and tuples the length.
"""

import dataclasses
import enum
import reprlib
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, TypeVar

Shape = TypeVar("Shape")
Reader = Callable[[object, str], Any]
"""Checks one plain value; the string says where it stands, for the error."""


class ProtocolError(Exception):
    """Bytes or values from outside that are not what they should be; `field` names the place."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def shown(value: object) -> str:
    """A value from outside in few words: `repr` of one that is nested deeply ends the process."""
    return f"{reprlib.repr(value):.60}"


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Inclusive bounds: of an int the value, of anything with a length the length."""

    least: int
    most: int


Address = Annotated[bytes, Limits(4, 4)]
"""IPv4, packed, network order."""
Mac = Annotated[bytes, Limits(6, 6)]
Port = Annotated[int, Limits(0, 0xFFFF)]
Protocol = Annotated[int, Limits(0, 0xFF)]
"""IP protocol number: 17 UDP, 6 TCP."""
Name = Annotated[str, Limits(1, 64)]
"""Of a gateway, a worker, a service."""
Text = Annotated[str, Limits(0, 256)]
Hash = Annotated[bytes, Limits(32, 32)]
"""SHA-256."""
Count = Annotated[int, Limits(0, 2**63 - 1)]
Nanoseconds = Annotated[int, Limits(0, 2**63 - 1)]
"""Wall clock since 1970, UTC."""
Milliseconds = Annotated[int, Limits(0, 2**32 - 1)]


_PLAIN: Final = frozenset((int, bytes, str, bool, types.NoneType))


def pack(value: object) -> Any:  # noqa: ANN401 (Value is recursive: what comes out is any of it)
    """The plain value (None, bool, int, str, bytes, tuple) that stands for `value`."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return tuple(pack(item) for item in value)
    if dataclasses.is_dataclass(value):
        shape: Any = type(value)
        return tuple(pack(getattr(value, name)) for name in _names(shape))
    return value


@cache
def _names(shape: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(shape))


def unpack(shape: type[Shape], value: object, where: str = "") -> Shape:
    """The dataclass `shape` from its array; raises ProtocolError naming the field, prefixed with `where`."""
    annotation: Any = shape
    checked: Shape = _reader(annotation)(value, where or shape.__name__)
    return checked


@cache
def _reader(annotation: object) -> Reader:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, limits = typing.get_args(annotation)
        return _limited(_reader(inner), limits)
    if origin is tuple:
        return _sequence(_reader(typing.get_args(annotation)[0]))
    if origin in (types.UnionType, typing.Union):
        (inner,) = [argument for argument in typing.get_args(annotation) if argument is not types.NoneType]
        return _optional(_reader(inner))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enumerated(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _structure(annotation, [field.name for field in dataclasses.fields(annotation)])
    if isinstance(annotation, type) and annotation in (int, str, bytes, bool):
        return _plain(annotation)
    raise TypeError(f"no wire shape for {annotation!r}")


def _plain(kind: type) -> Reader:
    def read(value: object, where: str) -> object:
        if type(value) is not kind:  # not isinstance: True is no number here
            raise ProtocolError(where, f"{kind.__name__} expected, {type(value).__name__} found")
        return value

    return read


def _limited(inner: Reader, limits: Limits) -> Reader:
    def read(value: object, where: str) -> object:
        checked = inner(value, where)
        size = checked if isinstance(checked, int) else len(checked)
        if not limits.least <= size <= limits.most:
            what = "value" if isinstance(checked, int) else "length"
            raise ProtocolError(where, f"{what} {size} is not within {limits.least}..{limits.most}")
        return checked

    return read


def _sequence(inner: Reader) -> Reader:
    def read(value: object, where: str) -> tuple[object, ...]:
        if not isinstance(value, tuple):
            raise ProtocolError(where, f"array expected, {type(value).__name__} found")
        return tuple(inner(item, f"{where}[{index}]") for index, item in enumerate(value))

    return read


def _optional(inner: Reader) -> Reader:
    return lambda value, where: None if value is None else inner(value, where)


def _enumerated(kind: type[enum.Enum]) -> Reader:
    members = {(type(member.value), member.value): member for member in kind}

    def read(value: object, where: str) -> enum.Enum:
        try:
            return members[(type(value), value)]
        except (KeyError, TypeError):
            raise ProtocolError(where, f"{shown(value)} is no {kind.__name__}") from None

    return read


def _structure(shape: type, names: list[str]) -> Reader:
    hints = typing.get_type_hints(shape, include_extras=True)
    fields = [(name, _reader(hints[name])) for name in names]

    def read(value: object, where: str) -> object:
        if not isinstance(value, tuple):
            raise ProtocolError(where, f"array expected, {type(value).__name__} found")
        if len(value) != len(fields):
            raise ProtocolError(where, f"{len(fields)} values expected, {len(value)} found")
        checked = [inner(item, f"{where}.{name}") for (name, inner), item in zip(fields, value, strict=True)]
        try:
            return shape(*checked)
        except ValueError as error:  # raised by the dataclass's own __post_init__
            raise ProtocolError(where, str(error)) from None

    return read
