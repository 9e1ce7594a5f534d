"""Valid messages made from their annotations, and what a hostile mind makes of them; all of it by a seed."""

import dataclasses
import enum
import random
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgpack

from tracker.events import TRACKER
from tracker.messages import REQUEST_KINDS, Request, Volatile, encode_request
from tracker.shapes import ProtocolError

_EDGES: Final = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**63 - 1)
_ODD: Final = (
    b"\xc0", b"\xc1", b"\xc2", b"\x80", b"\x91" * 600, b"\xa1\xff", b"\xca" + bytes(4), b"\xcb" + bytes(8),
    b"\xd4\x05\x00", b"\xd7\xff" + bytes(8), b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xdc\xff\xff",
    b"\xde\xff\xff", *(bytes([kind]) + b"\xff" * 4 for kind in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF)),
)  # fmt: skip
"""Beginnings of msgpack values that no message of ours has, or that promise more than comes."""


def sample(shape: Any, chance: random.Random) -> Any:
    """Something that unpacks to `shape`."""
    origin = typing.get_origin(shape)
    if origin is Annotated:
        limits = shape.__metadata__[0]
        return _plain(shape.__origin__, limits.least, limits.most, chance)
    if origin is tuple:
        return tuple(sample(typing.get_args(shape)[0], chance) for _ in range(chance.randrange(3)))
    if origin in (types.UnionType, typing.Union):
        inner = next(it for it in typing.get_args(shape) if it is not types.NoneType)
        return None if chance.random() < 0.3 else sample(inner, chance)
    if isinstance(shape, type) and issubclass(shape, enum.Enum):
        return chance.choice(list(shape))
    if dataclasses.is_dataclass(shape):
        hints = typing.get_type_hints(shape, include_extras=True)
        make: Any = shape
        while True:
            values = [sample(hints[it.name], chance) for it in dataclasses.fields(shape)]
            try:
                return make(*values)
            except ValueError:
                continue
    return _plain(shape, 0, 20, chance)


def _plain(kind: type, least: int, most: int, chance: random.Random) -> Any:
    if kind is bool:
        return chance.random() < 0.5
    if kind is int:
        return max(least, min(most, chance.choice(_EDGES)))
    size = chance.choice([least, min(most, least + 3), min(most, 64)])
    return (
        chance.randbytes(size) if kind is bytes else "".join(chance.choice("gwx1-é\0") for _ in range(size))
    )


def valid_frames(chance: random.Random, names: tuple[str, ...], gateways: tuple[str, ...]) -> Iterator[bytes]:
    """For ever: requests of every kind, by these names, mostly for these gateways."""
    kinds = list(REQUEST_KINDS.values())
    while True:
        body: Any = sample(chance.choice(kinds), chance)
        if getattr(body, "gateway", None) is not None and chance.random() < 0.8:
            body = dataclasses.replace(body, gateway=chance.choice(gateways))
        sequence = 0 if isinstance(body, Volatile) else chance.choice([1, 2, 3, 2**40])
        acknowledged = chance.choice([0, sequence // 2, max(0, sequence - 1)])
        request = Request(chance.choice(names), 7, sequence, acknowledged, 0, 5, body)
        try:
            yield encode_request(request)
        except ProtocolError:
            continue  # a sample that is too long, or by nobody


def mutated(frame: bytes, other: bytes, chance: random.Random) -> bytes:
    """The frame after one to four blows."""
    for _ in range(chance.randrange(1, 5)):
        frame = chance.choice(_BLOWS)(frame, other, chance)
    return frame


def _place(frame: bytes, chance: random.Random) -> int:
    return chance.randrange(len(frame) + 1)


def _flip(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    if not frame:
        return b"\x00"
    at = chance.randrange(len(frame))
    return frame[:at] + bytes([frame[at] ^ 1 << chance.randrange(8)]) + frame[at + 1 :]


def _cut(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    return frame[: _place(frame, chance)]


def _take_out(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    first = _place(frame, chance)
    return frame[:first] + frame[first + chance.randrange(1, 9) :]


def _repeat(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    first = _place(frame, chance)
    last = first + chance.randrange(1, 40)
    return frame[:last] + frame[first:last] * chance.choice([1, 2, 200]) + frame[last:]


def _splice(frame: bytes, other: bytes, chance: random.Random) -> bytes:
    return frame[: _place(frame, chance)] + other[_place(other, chance) :]


def _insert_odd(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    at = _place(frame, chance)
    return frame[:at] + chance.choice(_ODD) + frame[at + chance.randrange(2) :]


def _another_value(frame: bytes, _other: bytes, chance: random.Random) -> bytes:
    """Well-formed, with a value of another type or beyond its limits at one place."""
    try:
        values = msgpack.unpackb(frame, use_list=True, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return frame
    if not isinstance(values, list) or not values:
        return frame
    target = values[-1] if isinstance(values[-1], list) and values[-1] and chance.random() < 0.7 else values
    strange: list[object] = [
        None,
        True,
        -1,
        2**64 - 1,
        -(2**63),
        1.5,
        "",
        "x" * 300,
        TRACKER,
        b"\x00" * 70,
        [],
        [[]],
        {},
        {"a": 1},
    ]
    target[chance.randrange(len(target))] = chance.choice(strange)
    packed: bytes = msgpack.packb(values, use_bin_type=True)
    return packed


_BLOWS: Final[tuple[Callable[[bytes, bytes, random.Random], bytes], ...]] = (
    _flip,
    _cut,
    _take_out,
    _repeat,
    _splice,
    _insert_odd,
    _another_value,
    _another_value,
)


def hostile_frames(seed: int, number: int) -> Iterator[bytes]:
    """So many frames: nine of ten mutated, the others valid, which is not the same as harmless."""
    chance = random.Random(seed)
    frames = valid_frames(chance, ("w1", "w2", "olga"), ("gw", "gw2"))
    other = next(frames)
    for _ in range(number):
        frame = next(frames)
        yield frame if chance.random() < 0.1 else mutated(frame, other, chance)
        other = frame
