"""The one canonical form of a record: a msgpack array.

Rule 1: a record has exactly one encoding; `decode` refuses every other. So its bytes can be hashed and
signed.
Rule 2: no maps, no floats, no extension types: their encodings are not unique, or not equal to themselves.
Rule 3: the array is never reordered. A new layout is a new schema number, upcast on reading by whoever knows
the types.

    [schema, type, wall_ns, reported_ns | nil, source name, incarnation, sequence, part, nonce, [field, ...]]
"""

from dataclasses import dataclass
from typing import TypeAlias

import msgpack

RECORD_LIMIT = 64 * 1024
"""The longest encoding, in bytes."""

NONCE_SIZE = 16
"""Bytes of randomness that make the leaf hash of a redacted record useless for guessing what it said."""

SOURCE_NAME_LIMIT = 255
"""The longest source name, in bytes of UTF-8."""

DEPTH_LIMIT = 8
"""How deep tuples may nest within the fields."""

CLOCK_TOLERANCE_NS = 1_000_000_000
"""How far wall time may fall back without a CLOCK_STEPPED record."""

OWN_TYPES = range(16)
"""Record types whose meaning this package defines; everybody else's begin at 16."""

CLOCK_STEPPED = 1
"""The wall clock was set: fields (from_ns, to_ns, ...). Written by whoever appends, before any other."""

REDACTED = 2
"""The bytes of another record were taken out; its leaf stays: fields as segments.py makes them."""

KEY_CHANGED = 3
"""From here on another key signs the checkpoints: fields as checkpoint.key_change_fields makes them."""

SNAPSHOT_TAKEN = 4
"""A snapshot of a state was kept: fields as snapshot.snapshot_fields makes them."""

SEGMENT_CLOSED = 5
"""A run of positions is complete: fields as segments.py makes them, for this and the next two."""

SEGMENT_ARCHIVED = 6
"""The records of a segment were moved into a file of their own."""

SEGMENT_PRUNED = 7
"""The records of a segment were given up; hashes stay that all other proofs need."""

Value: TypeAlias = bool | int | str | bytes | tuple["Value", ...] | None

_INTEGER_END = 2**63  # SQLite's integers are signed; ours are never negative outside the fields.
_LAYOUT_SIZE = 10


class RecordError(ValueError):
    """Bytes or values that are no record. `field` names the part that is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Source:
    """Who caused a record, and which of its commands did.

    `part` is the index among the records that this one command caused. The four together occur once in a log.
    """

    name: str
    incarnation: int
    sequence: int
    part: int


@dataclass(frozen=True, slots=True)
class Record:
    """One fact. `wall_ns`: the appender's Unix time; `reported_ns`: the observer's, None if the same."""

    schema: int
    type: int
    wall_ns: int
    reported_ns: int | None
    source: Source
    nonce: bytes
    fields: tuple[Value, ...]


def encode(record: Record) -> bytes:
    """The canonical bytes of a record. Raises RecordError for a value that has none."""
    source = record.source
    layout = (
        record.schema,
        record.type,
        record.wall_ns,
        record.reported_ns,
        source.name,
        source.incarnation,
        source.sequence,
        source.part,
        record.nonce,
        record.fields,
    )
    _check_layout(layout)
    return _pack(layout)


def decode(data: bytes) -> Record:
    """The record that these bytes say. Raises RecordError unless they are the canonical bytes of one."""
    if len(data) > RECORD_LIMIT:
        raise RecordError("record", f"{len(data)} bytes, limit {RECORD_LIMIT}")
    try:
        layout = msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise RecordError("record", f"no msgpack value: {error}") from error
    if not isinstance(layout, tuple):
        raise RecordError("record", f"an array is wanted, found {type(layout).__name__}")
    _check_layout(layout)
    if _pack(layout) != data:
        raise RecordError("record", "not in canonical form")
    schema, kind, wall_ns, reported_ns, name, incarnation, sequence, part, nonce, fields = layout
    return Record(
        schema, kind, wall_ns, reported_ns, Source(name, incarnation, sequence, part), nonce, fields
    )


def clock_went_back(last_wall_ns: int | None, wall_ns: int) -> bool:
    """Whether a record of time `wall_ns` needs a CLOCK_STEPPED record in front of it."""
    return last_wall_ns is not None and wall_ns < last_wall_ns - CLOCK_TOLERANCE_NS


def _pack(layout: tuple[object, ...]) -> bytes:
    data: bytes = msgpack.packb(layout, use_bin_type=True)
    if len(data) > RECORD_LIMIT:
        raise RecordError("record", f"{len(data)} bytes, limit {RECORD_LIMIT}")
    return data


def _check_layout(layout: tuple[object, ...]) -> None:
    if len(layout) != _LAYOUT_SIZE:
        raise RecordError("record", f"{len(layout)} elements, wanted {_LAYOUT_SIZE}")
    schema, kind, wall_ns, reported_ns, name, incarnation, sequence, part, nonce, fields = layout
    _check_integer("schema", schema)
    _check_integer("type", kind)
    _check_integer("wall_ns", wall_ns)
    if reported_ns is not None:
        _check_integer("reported_ns", reported_ns)
    _check_name(name)
    _check_integer("incarnation", incarnation)
    _check_integer("sequence", sequence)
    _check_integer("part", part)
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_SIZE:
        raise RecordError("nonce", f"{NONCE_SIZE} bytes are wanted")
    if not isinstance(fields, tuple):
        raise RecordError("fields", f"an array is wanted, found {type(fields).__name__}")
    for index, value in enumerate(fields):
        _check_value(f"fields[{index}]", value, depth=1)


def _check_integer(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RecordError(field, f"an integer is wanted, found {type(value).__name__}")
    if not 0 <= value < _INTEGER_END:
        raise RecordError(field, f"{value} is outside 0 to 2^63-1")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise RecordError("source name", f"a string is wanted, found {type(name).__name__}")
    _check_text("source name", name)
    if not 0 < len(name.encode()) <= SOURCE_NAME_LIMIT:
        raise RecordError("source name", f"1 to {SOURCE_NAME_LIMIT} bytes are wanted")


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(field, f"no Unicode text: {error.reason}") from error


def _check_value(field: str, value: object, depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise RecordError(field, f"nested deeper than {DEPTH_LIMIT}")
    match value:
        case None | bool() | bytes():
            pass
        case int():
            if not -(2**63) <= value < 2**64:
                raise RecordError(field, f"{value} does not fit 64 bits")
        case str():
            _check_text(field, value)
        case tuple() if not isinstance(value, msgpack.ExtType):  # an extension, and a tuple to Python
            for index, element in enumerate(value):
                _check_value(f"{field}[{index}]", element, depth + 1)
        case _:
            raise RecordError(field, f"{type(value).__name__} has no canonical form")
