"""A projection's tables in SQLite: made, changed, read and compared.

Rule: statements are made from a projection's own table and column names, checked to be plain identifiers;
every value goes in as a parameter.
"""
# ruff: noqa: S608 - the names in the statements are checked, see _check_spec

import re
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import zip_longest

from sqlite_utils import Database
from sqlite_utils.db import Table

from eventlog.projection import Cell, Delete, Insert, Key, Projection, Row, RowChange, TableSpec, Update
from eventlog.record import Record

OWN_PREFIX = "log_"

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*\Z")


class ProjectionError(Exception):
    """A record that a projection cannot take in, or changes that contradict its own tables."""


class ProjectionTables:
    """One projection over one connection; also the `Reader` that the projection is given."""

    def __init__(self, connection: sqlite3.Connection, projection: Projection) -> None:
        self.projection = projection
        self._connection = connection
        self._specs: Mapping[str, TableSpec] = projection.tables
        for name, spec in self._specs.items():
            _check_spec(name, spec)

    def create(self) -> None:
        """Make the tables and their indexes, all empty."""
        database = Database(self._connection)
        for name, spec in self._specs.items():
            table = database.create_table(
                name, dict(spec.columns), pk=_primary_key(spec), not_null=set(spec.not_null), strict=True
            )
            for columns in spec.indexes:
                table.create_index(list(columns))

    def layout(self) -> dict[str, str]:
        """Its tables and their indexes as this connection has them: name to SQL text."""
        names = tuple(self._specs)
        rows = self._connection.execute(
            f"SELECT name, sql FROM sqlite_schema WHERE tbl_name IN ({', '.join('?' * len(names))})"
            " AND type <> 'trigger' AND sql IS NOT NULL",
            names,
        )
        return dict(rows)

    def apply(self, position: int, record: Record) -> None:
        """Carry out what the record changes. The caller holds the transaction. Raises ProjectionError."""
        try:
            for change in self.projection.rows(position, record, self):
                self.carry_out(change)
        except (ProjectionError, sqlite3.Error):
            raise
        except Exception as error:
            # What a projection raises over a forged record is its own affair; that it cannot go on, is ours.
            name, reason = self.projection.name, said_of(error)
            raise ProjectionError(f"{name} cannot take in the record at {position}: {reason}") from error

    def carry_out(self, change: RowChange | None) -> None:
        """Carry out one row change, or none."""
        if change is None:
            return
        try:
            changed = self._connection.execute(*self._statement(change)).rowcount
        except sqlite3.IntegrityError as error:
            raise ProjectionError(f"{self.projection.name}: {change}: {error}") from error
        if changed != 1:
            raise ProjectionError(f"{self.projection.name}: {change}: {changed} rows have this key")

    def get(self, table: str, key: Key) -> Row | None:
        """The row with this primary key."""
        spec = self._spec(table)
        found = self.find(table, dict(zip(spec.primary_key, key, strict=True)), limit=1)
        return found[0] if found else None

    def find(self, table: str, equal: Row, limit: int | None = None) -> list[Row]:
        """The rows whose columns have these values, in the order of the primary key."""
        spec = self._spec(table)
        statement = _select_statement(table, tuple(spec.columns), tuple(equal), spec.primary_key)
        cursor = self._connection.execute(statement, (*equal.values(), -1 if limit is None else limit))
        names = tuple(spec.columns)
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def all_rows(self, table: str) -> Iterator[tuple[Cell, ...]]:
        """Every row of a table, in the order of the primary key."""
        spec = self._spec(table)
        statement = _select_statement(table, tuple(spec.columns), (), spec.primary_key)
        yield from map(tuple, self._connection.execute(statement, (-1,)))  # as in LogReader.stored_nodes

    def differences(
        self, other: "ProjectionTables"
    ) -> Iterator[tuple[str, tuple[Cell, ...] | None, tuple[Cell, ...] | None]]:
        """The first difference of each table: (table, row here, row there); None where one ends early."""
        for table in self._specs:
            for mine, theirs in zip_longest(self.all_rows(table), other.all_rows(table)):
                if mine != theirs:
                    yield table, mine, theirs
                    break

    def _spec(self, table: str) -> TableSpec:
        try:
            return self._specs[table]
        except KeyError:
            raise ProjectionError(f"{self.projection.name} has no table {table}") from None

    def _statement(self, change: RowChange) -> tuple[str, tuple[Cell, ...]]:
        key_columns = self._spec(change.table).primary_key
        match change:
            case Insert(table, values):
                return _insert_statement(table, tuple(values)), tuple(values.values())
            case Update(table, key, values):
                return _update_statement(table, tuple(values), key_columns), (*values.values(), *key)
            case Delete(table, key):
                return _delete_statement(table, key_columns), key


def said_of(error: Exception) -> str:
    """What an exception says, with its kind where that alone would be a riddle, as a KeyError's is."""
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)


def scratch_tables(projection: Projection) -> tuple[sqlite3.Connection, ProjectionTables]:
    """Empty tables of the projection in a temporary database, which ends with its connection."""
    connection = sqlite3.connect("", isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    tables = ProjectionTables(connection, projection)
    tables.create()
    return connection, tables


def drop_tables(connection: sqlite3.Connection, names: list[str]) -> None:
    """Remove a projection's tables, of whatever version they are.

    The names are from the file: for one of the store's own it raises ProjectionError, as no trigger would see
    a whole table go.
    """
    database = Database(connection)
    for name in names:
        if name.startswith(OWN_PREFIX):
            raise ProjectionError(f"log_projections has {name}, which is no projection's; `verify` says more")
        table = database[name]
        if isinstance(table, Table):
            table.drop(ignore=True)


def _primary_key(spec: TableSpec) -> str | tuple[str, ...]:
    return spec.primary_key[0] if len(spec.primary_key) == 1 else spec.primary_key


def _check_spec(name: str, spec: TableSpec) -> None:
    if name.startswith(OWN_PREFIX):
        raise ProjectionError(f"table {name}: names in {OWN_PREFIX} are the store's own")
    for identifier in (name, *spec.columns):
        if not _IDENTIFIER.match(identifier):
            raise ProjectionError(f"table {name}: {identifier!r} is no plain name")
    used = {*spec.primary_key, *spec.not_null, *(column for index in spec.indexes for column in index)}
    if not spec.primary_key or not used <= set(spec.columns):
        raise ProjectionError(f"table {name}: no primary key, or a key of columns that it has not")


@cache
def _select_statement(
    table: str, columns: tuple[str, ...], equal: tuple[str, ...], order: tuple[str, ...]
) -> str:
    return f'SELECT {_names(columns)} FROM "{table}" WHERE {_equal(equal)} ORDER BY {_names(order)} LIMIT ?'


@cache
def _insert_statement(table: str, columns: tuple[str, ...]) -> str:
    return f'INSERT INTO "{table}" ({_names(columns)}) VALUES ({", ".join("?" * len(columns))})'


@cache
def _update_statement(table: str, columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    assignments = ", ".join(f'"{column}" = ?' for column in columns)
    return f'UPDATE "{table}" SET {assignments} WHERE {_equal(key)}'


@cache
def _delete_statement(table: str, key: tuple[str, ...]) -> str:
    return f'DELETE FROM "{table}" WHERE {_equal(key)}'


def _equal(columns: tuple[str, ...]) -> str:
    return " AND ".join(f'"{column}" IS ?' for column in columns) or "TRUE"


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
