"""Records packed small: a run of them laid out column by column, then compressed.

Rule 1: unpacking gives each record's exact bytes; `pack` tries it before it says that it is done.
Rule 2: what comes from a file may be anybody's: `unpack` is bounded, and raises nothing but ColumnsDamaged.

Side by side stand the values of one field, integers as differences: from the record before, or from the
record's own times. Then LZMA. The nonces are chance, and stay as they are. Of a record whose bytes are gone
there is its leaf hash.

    [count, [[number, leaf of a record that is gone] ...], sources, kinds, columns of the head, groups]
    sources: [name, incarnation]; kinds: [schema, type, number of fields]
    the head's columns: kind, wall time, reported time, source, sequence, part
    groups: for each kind its fields' columns; such a column: [what it differs from, values]
"""

import lzma
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, TypeAlias, cast

import msgpack

from eventlog.merkle import HASH_SIZE, leaf_hash
from eventlog.record import NONCE_SIZE, Record, Source, Value, decode, encode

RUN_LIMIT: Final = 4096
"""The most records of one run."""

RAW_LIMIT: Final = 8 * 1024 * 1024
"""The most bytes that a run's columns may take before they are compressed."""

_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
_EXACT: Final = range(-(2**62), 2**62)
"""Integers whose differences still fit msgpack."""

_Column: TypeAlias = tuple[int, list[Value]]
_Times: TypeAlias = tuple[Sequence[int], Sequence[int | None]]
"""Wall times and reported times of the records of one kind."""


class ColumnsDamaged(ValueError):
    """Bytes that are no packed records."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a run: the record's bytes, None if they are gone, and its leaf hash."""

    data: bytes | None
    leaf: bytes


def pack(run: Sequence[Place]) -> bytes:
    """Pack a run of at most RUN_LIMIT. Raises RecordError for bytes that are no record."""
    records = [decode(place.data) for place in run if place.data is not None]
    gone = [(number, place.leaf) for number, place in enumerate(run) if place.data is None]
    sources, source_of = _numbered((it.source.name, it.source.incarnation) for it in records)
    kinds, kind_of = _numbered((it.schema, it.type, len(it.fields)) for it in records)
    head = [
        kind_of,
        _differences([it.wall_ns for it in records]),
        [None if it.reported_ns is None else it.reported_ns - it.wall_ns for it in records],
        source_of,
        _sequence_steps(source_of, [it.source.sequence for it in records]),
        [it.source.part for it in records],
    ]
    groups: list[list[Record]] = [[] for _ in kinds]
    for number, record in zip(kind_of, records, strict=True):
        groups[number].append(record)
    layout = [len(run), gone, sources, kinds, head, [_pack_group(group) for group in groups]]
    raw = msgpack.packb(layout)
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_FILTERS)
    packed += b"".join(record.nonce for record in records)
    if len(raw) > RAW_LIMIT or unpack(packed) != list(run):
        raise AssertionError("packed records are not what comes out again")
    return packed


def unpack(packed: bytes) -> list[Place]:
    """The run again. Raises ColumnsDamaged."""
    try:
        decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
        raw = decompressor.decompress(packed, RAW_LIMIT + 1)
        if not decompressor.eof or len(raw) > RAW_LIMIT:
            raise ColumnsDamaged("they do not end, or are too many bytes")
        layout = msgpack.unpackb(raw, use_list=False, raw=False)
        return _unpack_layout(layout, decompressor.unused_data)
    except (
        lzma.LZMAError,
        MemoryError,
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise ColumnsDamaged(f"no packed records: {error}") from error


def _unpack_layout(layout: tuple[Any, ...], nonces: bytes) -> list[Place]:
    count, gone, sources, kinds, head, groups = layout
    kind_of, walls, reported, source_of, steps, parts = head
    leaves = dict(gone)
    there = len(kind_of)
    if not 0 <= count <= RUN_LIMIT or len(leaves) + there != count or not leaves.keys() <= set(range(count)):
        raise ColumnsDamaged(f"{count} records are said, others are there")
    if any(len(column) != there for column in head) or not len(groups) == len(kinds) <= there:
        raise ColumnsDamaged("columns of different lengths")
    wall_ns = _sums(walls)
    reported_ns = [None if it is None else it + wall for it, wall in zip(reported, wall_ns, strict=True)]
    fields = _unpack_groups(kinds, kind_of, groups, (wall_ns, reported_ns))
    sequences = _sequences(source_of, steps)
    datas = (
        encode(
            Record(
                schema,
                kind,
                wall,
                told,
                Source(sources[source][0], sources[source][1], sequence, part),
                nonce,
                values,
            )
        )
        for (schema, kind, _), wall, told, source, sequence, part, nonce, values in zip(
            (kinds[number] for number in kind_of),
            wall_ns,
            reported_ns,
            source_of,
            sequences,
            parts,
            [nonces[at : at + NONCE_SIZE] for at in range(0, len(nonces), NONCE_SIZE)],
            fields,
            strict=True,
        )
    )
    if any(not isinstance(leaf, bytes) or len(leaf) != HASH_SIZE for leaf in leaves.values()):
        raise ColumnsDamaged("a leaf hash is none")
    return [
        Place(None, leaves[number]) if number in leaves else _place(next(datas)) for number in range(count)
    ]


def _place(data: bytes) -> Place:
    return Place(data, leaf_hash(data))


def _sums(values: Sequence[object]) -> list[int]:
    """Each value with all before it. Sums of anything but integers would grow without bound."""
    integers = [value for value in values if type(value) is int]
    if len(integers) != len(values):
        raise ColumnsDamaged("a difference is no integer")
    return list(accumulate(integers))


def _numbered(keys: Iterable[tuple[object, ...]]) -> tuple[list[tuple[object, ...]], list[int]]:
    """The different keys in the order of their first occurrence, and which one each is."""
    numbers: dict[tuple[object, ...], int] = {}
    number_of = [numbers.setdefault(key, len(numbers)) for key in keys]
    return list(numbers), number_of


def _differences(values: Sequence[int]) -> list[int]:
    return [value - before for value, before in zip(values, (0, *values), strict=False)]


def _sequence_steps(source_of: Sequence[int], sequences: Sequence[int]) -> list[int]:
    """How far each sequence lies from the last one of the same source."""
    last: dict[int, int] = {}
    steps = []
    for source, sequence in zip(source_of, sequences, strict=True):
        steps.append(sequence - last.get(source, 0))
        last[source] = sequence
    return steps


def _sequences(source_of: Sequence[int], steps: Sequence[int]) -> list[int]:
    last: dict[int, int] = {}
    sequences = []
    for source, step in zip(source_of, steps, strict=True):
        if type(step) is not int:
            raise ColumnsDamaged("a difference is no integer")
        last[source] = last.get(source, 0) + step
        sequences.append(last[source])
    return sequences


def _plain(values: Sequence[int], _times: _Times) -> Iterable[int]:
    return (0 for _ in values)


def _before(values: Sequence[int], _times: _Times) -> Iterable[int]:
    return (0, *values)


def _wall(_values: Sequence[int], times: _Times) -> Iterable[int]:
    return times[0]


def _reported(_values: Sequence[int], times: _Times) -> Iterable[int]:
    return (it or 0 for it in times[1])


_ORIGINS: Final[Sequence[Callable[[Sequence[int], _Times], Iterable[int]]]] = (
    _plain,
    _before,
    _wall,
    _reported,
)
"""What the integers of a column may be differences from, by number."""
_BEFORE: Final = _ORIGINS.index(_before)


def _pack_group(group: Sequence[Record]) -> list[_Column]:
    times = [it.wall_ns for it in group], [it.reported_ns for it in group]
    return [_pack_column(list(values), times) for values in zip(*(it.fields for it in group), strict=True)]


def _pack_column(values: list[Value], times: _Times) -> _Column:
    if not all(type(value) is int and value in _EXACT for value in values):
        return 0, values
    integers = cast("list[int]", values)
    choices = [
        [value - origin for value, origin in zip(integers, origins(integers, times), strict=False)]
        for origins in _ORIGINS
    ]
    sizes = [sum(difference.bit_length() for difference in choice) for choice in choices]
    best = sizes.index(min(sizes))
    return best, list(choices[best])


def _unpack_groups(
    kinds: Sequence[tuple[int, int, int]],
    kind_of: Sequence[int],
    groups: Sequence[Sequence[tuple[int, Sequence[Value]]]],
    times: _Times,
) -> list[tuple[Value, ...]]:
    """Each record's fields."""
    members: list[list[int]] = [[] for _ in kinds]
    for number, kind in enumerate(kind_of):
        members[kind].append(number)
    fields: list[tuple[Value, ...]] = [()] * len(kind_of)
    for (_, _, arity), numbers, columns in zip(kinds, members, groups, strict=True):
        own_times = [times[0][it] for it in numbers], [times[1][it] for it in numbers]
        unpacked = [_unpack_column(best, values, own_times) for best, values in columns]
        if len(unpacked) != arity:
            raise ColumnsDamaged(f"{arity} fields are said, {len(unpacked)} are there")
        if arity:
            for number, values in zip(numbers, zip(*unpacked, strict=True), strict=True):
                fields[number] = values
    return fields


def _unpack_column(best: int, values: Sequence[Value], times: _Times) -> Sequence[Value]:
    if best == 0:
        return values
    if len(values) != len(times[0]):
        raise ColumnsDamaged("columns of different lengths")
    if best == _BEFORE:
        return _sums(values)
    differences = cast("Sequence[int]", values)
    origins = _ORIGINS[best](differences, times)
    return [difference + origin for difference, origin in zip(differences, origins, strict=True)]
