"""The store's own tables, their migrations and the triggers that guard them.

Rule 1: what the tree covers is only ever added, at the end. The triggers refuse UPDATE and DELETE, and an
INSERT that would replace (`INSERT OR REPLACE` walks past the other two). One way out there is, for what a
record says is gone: see removal.py. They keep honest programs honest; against the rest there is the tree.
Rule 2: a file's layout changes only by a new migration at the end of this list.

    log_records      one row a record: its bytes (NULL once redacted) and its leaf hash, beside them the
                     columns that queries need. Position = rowid = index of the leaf.
    log_sources      (name, incarnation), so that a record spends one byte on them
    log_nodes        hashes of complete subtrees above the leaves, see merkle.py
    log_head         one row: size and root after the last append, and the highest wall time since the clock
                     was last set
    log_answers      operational, not in the tree: the first reply to each command
    log_notes        operational: small values by name
    log_checkpoints  every checkpoint signed so far, see checkpoint.py
    log_snapshots    states folded from the records before a position, see snapshot.py
    log_projections  which projections have tables here, and of which version
    log_removals     which positions' records went, and which record says so; beside that, as columns
    log_gone         operational: of each source the last record that went, so that it is not appended again
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from eventlog.merkle import EMPTY_ROOT

APPLICATION_ID: Final = 0x506F4C67
"""'PoLg' in the file's header: what `file` and a careful reader see."""

migrations = Migrations("eventlog")

_GUARDS = """
CREATE TRIGGER log_records_never_change BEFORE UPDATE ON log_records
BEGIN SELECT raise(ABORT, 'the log is append-only: no record changes'); END;
CREATE TRIGGER log_records_never_go BEFORE DELETE ON log_records
BEGIN SELECT raise(ABORT, 'the log is append-only: no record goes'); END;
CREATE TRIGGER log_records_only_at_the_end BEFORE INSERT ON log_records
WHEN NEW.position IS NOT (SELECT coalesce(max(position), -1) + 1 FROM log_records)
BEGIN SELECT raise(ABORT, 'the log is append-only: a record goes to its end'); END;
CREATE TRIGGER log_records_only_once BEFORE INSERT ON log_records
WHEN EXISTS (SELECT 1 FROM log_records
             WHERE source = NEW.source AND sequence = NEW.sequence AND part = NEW.part)
BEGIN SELECT raise(ABORT, 'the log has this record already'); END;
CREATE TRIGGER log_sources_never_change BEFORE UPDATE ON log_sources
BEGIN SELECT raise(ABORT, 'the log is append-only: no source changes'); END;
CREATE TRIGGER log_sources_never_go BEFORE DELETE ON log_sources
BEGIN SELECT raise(ABORT, 'the log is append-only: no source goes'); END;
CREATE TRIGGER log_sources_only_once BEFORE INSERT ON log_sources
WHEN EXISTS (SELECT 1 FROM log_sources
             WHERE source = NEW.source OR (name = NEW.name AND incarnation = NEW.incarnation))
BEGIN SELECT raise(ABORT, 'the log has this source already'); END;
CREATE TRIGGER log_nodes_never_change BEFORE UPDATE ON log_nodes
BEGIN SELECT raise(ABORT, 'the log is append-only: no node changes'); END;
CREATE TRIGGER log_nodes_never_go BEFORE DELETE ON log_nodes
BEGIN SELECT raise(ABORT, 'the log is append-only: no node goes'); END;
CREATE TRIGGER log_nodes_only_once BEFORE INSERT ON log_nodes
WHEN EXISTS (SELECT 1 FROM log_nodes WHERE level = NEW.level AND number = NEW.number)
BEGIN SELECT raise(ABORT, 'the log has this node already'); END;
"""


@migrations()
def records_and_tree(database: Database) -> None:
    """Records, their tree, and who caused them."""
    database.create_table(
        "log_sources",
        {"source": int, "name": str, "incarnation": int},
        pk="source",
        not_null={"name", "incarnation"},
        strict=True,
    ).create_index(["name", "incarnation"], unique=True)
    database.create_table(
        "log_records",
        {
            "position": int,
            "type": int,
            "wall_ns": int,
            "source": int,
            "sequence": int,
            "part": int,
            "leaf": bytes,
            "bytes": bytes,
        },
        pk="position",
        not_null={"type", "wall_ns", "source", "sequence", "part", "leaf"},
        strict=True,
    ).create_index(["source", "sequence", "part"], unique=True)
    # Two things that sqlite-utils cannot say: a partial index, and a table that is its own index.
    database.execute("CREATE INDEX log_records_clock_steps ON log_records (position) WHERE type = 1")
    database.execute(
        "CREATE TABLE log_nodes (level INTEGER NOT NULL, number INTEGER NOT NULL, hash BLOB NOT NULL,"
        " PRIMARY KEY (level, number)) STRICT, WITHOUT ROWID"
    )
    database.create_table(
        "log_head",
        {"head": int, "size": int, "root": bytes, "high_wall_ns": int},
        pk="head",
        not_null={"size", "root"},
        strict=True,
    ).insert({"head": 1, "size": 0, "root": EMPTY_ROOT, "high_wall_ns": None})
    _run(database, _GUARDS)


@migrations()
def operational_tables(database: Database) -> None:
    """What the appender must know again after a restart but nobody needs to prove."""
    database.create_table(
        "log_answers",
        {"number": int, "name": str, "incarnation": int, "sequence": int, "reply": bytes},
        pk="number",
        not_null={"name", "incarnation", "sequence", "reply"},
        strict=True,
    ).create_index(["name", "incarnation", "sequence"], unique=True)
    database.create_table(
        "log_notes", {"name": str, "value": bytes}, pk="name", not_null={"value"}, strict=True
    )
    database.create_table(
        "log_projections",
        {"name": str, "version": int, "tables": str},
        pk="name",
        not_null={"version", "tables"},
        strict=True,
    )


@migrations()
def checkpoints_and_snapshots(database: Database) -> None:
    """What speaks for the log, and what makes a restart short."""
    database.create_table(
        "log_checkpoints",
        {"number": int, "size": int, "made_ns": int, "note": bytes},
        pk="number",
        not_null={"size", "made_ns", "note"},
        strict=True,
    )
    database.create_table(
        "log_snapshots",
        {"name": str, "size": int, "version": int, "said_at": int, "state": bytes},
        pk=("name", "size"),
        not_null={"version", "said_at", "state"},
        strict=True,
    )


_GUARDED_WAY_OUT = """
DROP TRIGGER log_records_never_change;
DROP TRIGGER log_records_never_go;
CREATE TRIGGER log_records_never_change BEFORE UPDATE ON log_records
WHEN NEW.bytes IS NOT NULL OR OLD.type < 16
  OR (NEW.position, NEW.type, NEW.wall_ns, NEW.source, NEW.sequence, NEW.part, NEW.leaf)
     IS NOT (OLD.position, OLD.type, OLD.wall_ns, OLD.source, OLD.sequence, OLD.part, OLD.leaf)
  OR NOT EXISTS (SELECT 1 FROM log_removals WHERE first <= OLD.position AND end > OLD.position)
BEGIN SELECT raise(ABORT, 'the log is append-only: no record changes'); END;
CREATE TRIGGER log_records_never_go BEFORE DELETE ON log_records
WHEN OLD.type < 16 OR NOT EXISTS
  (SELECT 1 FROM log_removals WHERE first <= OLD.position AND end > OLD.position AND type IN (6, 7))
BEGIN SELECT raise(ABORT, 'the log is append-only: no record goes'); END;
CREATE TRIGGER log_removals_only_as_said BEFORE INSERT ON log_removals
WHEN NEW.type NOT IN (2, 6, 7) OR NEW.end > NEW.said_at OR NOT EXISTS
  (SELECT 1 FROM log_records WHERE position = NEW.said_at AND type = NEW.type)
BEGIN SELECT raise(ABORT, 'the log is append-only: no record says that this goes'); END;
CREATE TRIGGER log_removals_only_once BEFORE INSERT ON log_removals
WHEN EXISTS (SELECT 1 FROM log_removals WHERE said_at = NEW.said_at)
BEGIN SELECT raise(ABORT, 'the log has this removal already'); END;
CREATE TRIGGER log_removals_never_change BEFORE UPDATE ON log_removals
BEGIN SELECT raise(ABORT, 'the log is append-only: no removal changes'); END;
CREATE TRIGGER log_removals_never_go BEFORE DELETE ON log_removals
BEGIN SELECT raise(ABORT, 'the log is append-only: no removal goes'); END;
"""


@migrations()
def records_that_go(database: Database) -> None:
    """A guarded way out for records that a record says are gone, see removal.py."""
    database.create_table(
        "log_removals",
        {"said_at": int, "type": int, "first": int, "end": int},
        pk="said_at",
        not_null={"type", "first", "end"},
        strict=True,
    )
    database.create_table(
        "log_gone",
        {"source": int, "sequence": int, "part": int},
        pk="source",
        not_null={"sequence", "part"},
        strict=True,
    )
    database.execute("CREATE INDEX log_records_own ON log_records (type, position) WHERE type < 16")
    _run(database, _GUARDED_WAY_OUT)


KNOWN_MIGRATIONS: Final = frozenset(
    {
        records_and_tree.__name__,
        operational_tables.__name__,
        checkpoints_and_snapshots.__name__,
        records_that_go.__name__,
    }
)
"""A file with others was written by a newer version."""


def expected_layout() -> dict[str, str]:
    """The tables, indexes and triggers of a file that all migrations have made: name to SQL text."""
    database = Database(memory=True)
    try:
        migrations.apply(database)
        return found_layout(database.conn)
    finally:
        database.close()


def found_layout(connection: sqlite3.Connection) -> dict[str, str]:
    """The store's own tables, indexes and triggers as this file has them, and every other trigger."""
    return dict(
        connection.execute(
            "SELECT name, sql FROM sqlite_schema"
            " WHERE (tbl_name LIKE 'log\\_%' ESCAPE '\\' AND sql IS NOT NULL) OR type = 'trigger'"
        )
    )


def _run(database: Database, script: str) -> None:
    # Not executescript: that would commit the migration's transaction.
    for statement in _statements(script):
        database.execute(statement)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            yield statement.strip().removesuffix(";")
            statement = ""
