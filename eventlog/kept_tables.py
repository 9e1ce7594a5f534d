"""Projections' tables kept as of a position, so that they can be made again when records before it are gone.

Rule 1: they are kept when something is taken out that cannot be read again, after they have been compared
with the records; as a snapshot (snapshot.py), believed by the record that says its hash.
Rule 2: what can be folded from the first record is folded from there; kept tables are for the rest.
Rule 3: where there are neither records nor kept tables, nobody knows what the tables should be, and that is
what is said: TablesUnknown.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from eventlog.projection import Cell, Insert, Projection, Upgrading
from eventlog.reading import LogReader
from eventlog.snapshot import Snapshot, SnapshotDamaged
from eventlog.tables import ProjectionTables

_PREFIX: Final = "tables:"
_PIECE: Final = 1024 * 1024


class TablesUnknown(Exception):
    """Records are gone, and the tables were not kept from before: what they should be cannot be said."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where the folding of a projection begins: from the first record on, or from kept tables."""

    size: int = 0
    kept: Snapshot | None = None

    def load(self, tables: ProjectionTables) -> None:
        """Fill fresh tables with what was kept."""
        if self.kept is not None:
            _unpack(tables, self.kept)


def beginning(reader: LogReader, projection: Projection) -> Beginning:
    """Where the folding of this projection has to begin. Raises TablesUnknown."""
    with reader.snapshot():
        gone_end, why = reader.gone_before()
        if gone_end == 0:
            return Beginning()
        for snapshot in reader.snapshots(_PREFIX + projection.name):
            usable = snapshot.version == projection.version or isinstance(projection, Upgrading)
            if usable and snapshot.size >= gone_end:
                try:
                    reader.check_snapshot(snapshot)
                except SnapshotDamaged as error:
                    why = str(error)
                else:
                    return Beginning(snapshot.size, snapshot)
    detail = f"tables of version {projection.version} were not kept from before"
    raise TablesUnknown(f"{projection.name}: {why}, and {detail}")


def kept_tables(reader: LogReader, projection: Projection) -> Snapshot:
    """The projection's live tables as of now, to be appended as a snapshot."""
    tables = ProjectionTables(reader.connection_for_checks(), projection)
    with reader.snapshot():
        state = b"".join(_pack(tables))
        return Snapshot(_PREFIX + projection.name, projection.version, reader.size, state)


def is_kept_tables(name: str) -> bool:
    """Whether a snapshot of this name holds tables, and not somebody's state."""
    return name.startswith(_PREFIX)


def _pack(tables: ProjectionTables) -> Iterator[bytes]:
    packer = msgpack.Packer()
    compressor = zlib.compressobj()
    for name, spec in sorted(tables.projection.tables.items()):
        yield compressor.compress(packer.pack((name, tuple(spec.columns))))
        for row in tables.all_rows(name):
            yield compressor.compress(packer.pack(row))
        yield compressor.compress(packer.pack(None))
    yield compressor.flush()


def _unpack(tables: ProjectionTables, kept: Snapshot) -> None:
    values = iter(_values(kept.state))
    for name, columns in values:
        for row in iter(lambda: next(values), None):
            tables.carry_out(_insert(tables.projection, kept.version, name, columns, row))


def _insert(
    projection: Projection, version: int, table: str, columns: Iterable[str], row: Iterable[Cell]
) -> Insert | None:
    values = dict(zip(columns, row, strict=True))
    if version == projection.version:
        return Insert(table, values)
    if isinstance(projection, Upgrading):
        return projection.upgraded(version, table, values)
    raise AssertionError("kept tables of a version that nobody can use")


def _values(state: bytes) -> Iterator[Any]:  # (name, columns), its rows, None; then the next table
    decompressor = zlib.decompressobj()
    unpacker = msgpack.Unpacker(use_list=False)
    rest = state
    while rest and not decompressor.eof:
        unpacker.feed(decompressor.decompress(rest, _PIECE))
        rest = decompressor.unconsumed_tail
        yield from unpacker
