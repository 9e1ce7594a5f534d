"""Whether a log's file is laid out as this program does it: no record speaks of that, and all rests on it.

Rule: whoever owns the file may put a view in a table's place, or a row where nobody reads. Then the records
are whole, and the answers still not theirs.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator

from eventlog.faults import Fault, FaultKind
from eventlog.projection import Projection
from eventlog.reading import DAMAGE
from eventlog.schema import expected_layout, found_layout
from eventlog.tables import ProjectionTables, scratch_tables


def file_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """What SQLite finds in the whole file."""
    try:
        (found,) = connection.execute("PRAGMA integrity_check(1)")
    except DAMAGE as error:
        found = (str(error),)
    if found != ("ok",):
        yield Fault(None, FaultKind.FILE, f"SQLite says: {found[0]}")


def layout_faults(connection: sqlite3.Connection, projections: Iterable[Projection]) -> Iterator[Fault]:
    """The store's own tables and triggers, and these projections' tables where they are of this version."""
    yield from _layout_faults(expected_layout(), found_layout(connection))
    stored = {
        name: (version, tables)
        for name, version, tables in connection.execute("SELECT name, version, tables FROM log_projections")
    }
    for projection in projections:
        version, tables = stored.get(projection.name, (None, ""))
        if version != projection.version:
            continue  # Whoever folds it says so.
        scratch, made = scratch_tables(projection)
        try:
            expected = made.layout()
        finally:
            scratch.close()
        yield from _layout_faults(expected, ProjectionTables(connection, projection).layout())
        if tables != json.dumps(sorted(projection.tables)):
            detail = f"log_projections says that the tables of {projection.name} are {tables}"
            yield Fault(None, FaultKind.LAYOUT, detail)


def stray_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """Rows where no reader looks, but the writer does."""
    for position, kind in connection.execute("SELECT position, type FROM log_records WHERE position < 0"):
        detail = f"a record of type {kind} stands before the first one"
        yield Fault(None, FaultKind.LAYOUT, f"log_records has position {position}: {detail}")
    heads = [row[0] for row in connection.execute("SELECT head FROM log_head ORDER BY head")]
    if heads != [1]:
        yield Fault(None, FaultKind.HEAD, f"one row is wanted in log_head, number 1; there are {heads}")
    (count, last) = connection.execute("SELECT count(*), max(source) FROM log_sources").fetchone()
    if count and last != count - 1:
        detail = f"{count} sources are numbered up to {last}: the next new one could not be written"
        yield Fault(None, FaultKind.LAYOUT, f"log_sources: {detail}")


def _layout_faults(expected: dict[str, str], there: dict[str, str]) -> Iterator[Fault]:
    for name in sorted(expected.keys() | there.keys()):
        if expected.get(name) != there.get(name):
            wrong = "not ours" if name not in expected else "not as made" if name in there else "missing"
            yield Fault(None, FaultKind.LAYOUT, f"{name} is {wrong}")
