"""Taking records out of a log: the one way past its triggers.

Rule 1: the record that says it comes first, in the same transaction; then a row of log_removals that names
it. The triggers let go what such a row covers, nothing else; and they let no such row in without its record,
nor change or go.
Rule 2: the log's own records stay.
Rule 3: every other proof goes on working: hashes of complete subtrees stay, and so do the leaves of each
group of 2^STRIDE that is not wholly within what goes, holds a record of the log's own, or is cut by a
checkpoint (someone may bring it) or a snapshot.
Rule 4: which records a source had is not forgotten: how far they went stays, so that nothing is appended
twice.
"""

import sqlite3
from typing import Final

from eventlog.merkle import STRIDE
from eventlog.record import OWN_TYPES, REDACTED
from eventlog.segments import Removal

_GROUP: Final = 1 << STRIDE
_OWN_END: Final = OWN_TYPES.stop


def carry_out(connection: sqlite3.Connection, removal: Removal) -> None:
    """Take out what a record just appended says. The caller holds the transaction.

    Raises ValueError where a record of the log's own would be redacted.
    """
    first, end = removal.span.first, removal.span.end
    connection.execute(
        "INSERT INTO log_removals (said_at, type, first, end) VALUES (?, ?, ?, ?)",
        (removal.said_at, removal.type, first, end),
    )
    if removal.type == REDACTED:
        own = "SELECT 1 FROM log_records WHERE position = ? AND type < ?"
        if connection.execute(own, (first, _OWN_END)).fetchone() is not None:
            raise ValueError(f"the record at position {first} is one of the log's own: it stays")
    else:
        _remember_sources(connection, first, end)
        _delete_whole_groups(connection, first, end)
    connection.execute(
        "UPDATE log_records SET bytes = NULL"
        " WHERE position >= ? AND position < ? AND type >= ? AND bytes IS NOT NULL",
        (first, end, _OWN_END),
    )


def _remember_sources(connection: sqlite3.Connection, first: int, end: int) -> None:
    # Of several rows with the same highest sequence SQLite gives the part of the one that max() has found.
    connection.execute(
        "INSERT INTO log_gone (source, sequence, part)"
        " SELECT source, max(sequence), part FROM"
        " (SELECT source, sequence, max(part) AS part FROM log_records"
        "  WHERE position >= ? AND position < ? GROUP BY source, sequence) GROUP BY source"
        " ON CONFLICT (source) DO UPDATE SET sequence = excluded.sequence, part = excluded.part"
        " WHERE (excluded.sequence, excluded.part) > (sequence, part)",
        (first, end),
    )


def _delete_whole_groups(connection: sqlite3.Connection, first: int, end: int) -> None:
    first_group, end_group = -(-first // _GROUP), end // _GROUP
    connection.execute(
        "DELETE FROM log_records WHERE position >= :first AND position < :end AND position >> :stride NOT IN"
        " (SELECT position >> :stride FROM log_records"
        "  WHERE type < 16 AND position >= :first AND position < :end"
        "  UNION SELECT size >> :stride FROM log_checkpoints WHERE size % :group"
        "  UNION SELECT size >> :stride FROM log_snapshots WHERE size % :group)",
        {
            "first": first_group * _GROUP,
            "end": end_group * _GROUP,
            "stride": STRIDE,
            "group": _GROUP,
        },
    )
