"""Projections: tables that answer questions, made from the records alone.

Rule 1: a projection turns one record into row changes, as data; it carries nothing out.
Rule 2: what it reads, it reads through the `Reader` it is given: its own tables as the records before left
them.
Rule 3: so folding the records again gives the same tables, bit for bit. `verify` and `replay` hold every log
to that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from eventlog.record import Record

Cell: TypeAlias = int | str | bytes | None
Row: TypeAlias = Mapping[str, Cell]
Key: TypeAlias = tuple[Cell, ...]
"""The values of a table's primary key, in its order."""


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table's columns in order, its primary key, and the column lists that are to be indexed."""

    columns: Mapping[str, type[int] | type[str] | type[bytes]]
    primary_key: tuple[str, ...]
    not_null: frozenset[str] = frozenset()
    indexes: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row; columns not named are NULL. Its key must be free."""

    table: str
    values: Row


@dataclass(frozen=True, slots=True)
class Update:
    """New values for some columns of one row, which must exist."""

    table: str
    key: Key
    values: Row


@dataclass(frozen=True, slots=True)
class Delete:
    """The end of one row, which must exist."""

    table: str
    key: Key


RowChange: TypeAlias = Insert | Update | Delete


class Reader(Protocol):
    """Look-ups in the projection's own tables, as of the records before the one at hand."""

    def get(self, table: str, key: Key) -> Row | None:
        """The row with this primary key."""

    def find(self, table: str, equal: Row, limit: int | None = None) -> list[Row]:
        """The rows whose columns have these values (None finds NULL), in the order of the primary key."""


class Projection(Protocol):
    """A named set of tables and how each record changes them.

    A changed `rows` or `tables` needs a higher `version`: the log makes the tables again when a writer opens
    it.
    """

    @property
    def name(self) -> str:
        """Unique among the projections of a log."""

    @property
    def version(self) -> int:
        """Of the tables and of what the records mean for them."""

    @property
    def tables(self) -> Mapping[str, TableSpec]:
        """By name. Names that begin with `log_` are the store's own."""

    def rows(self, position: int, record: Record, read: Reader) -> Iterable[RowChange]:
        """What this record changes; each change is carried out before the next is asked for."""


@runtime_checkable
class Upgrading(Protocol):
    """A projection that can go on from tables of an older version of its own.

    Wanted once records are gone: then a new version's tables cannot be folded from the first record on.
    """

    def upgraded(self, version: int, table: str, row: Row) -> Insert | None:
        """What this version has in place of a row of that version's; None: nothing."""
