"""The archives of a log: found beside it, opened when they are needed, believed by the hash that it says.

A log `log.sqlite` has its archives in `log.sqlite.archives/`. They may be elsewhere: what is not there is a
gap, and says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eventlog.archive import Archive, ArchiveDamaged, archive_name, archives_of
from eventlog.columns import Place
from eventlog.segments import Life, Segment, Span


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions whose records cannot be read, and why. `leaf`: that of a single one, where it is known."""

    span: Span
    why: str
    leaf: bytes | None = None

    def goes_on_with(self, later: Self) -> bool:
        """Whether `later` begins where this ends, for the same reason."""
        return (self.span.end, self.why) == (later.span.first, later.why)


class Shelf:
    """The archives that a log's records speak of. Close it."""

    def __init__(self, log: Path) -> None:
        self._directory = archives_of(log)
        self._archives: dict[bytes, Archive] = {}

    def close(self) -> None:
        """Close the archives; harmless when done twice."""
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def archive(self, segment: Segment) -> Archive:
        """The archive of a segment that has one. Raises ArchiveDamaged, also when it is not there."""
        if segment.archive is None:
            raise ValueError(f"{segment.span} are not archived")
        if segment.archive not in self._archives:
            path = self._directory / archive_name(segment.span, segment.archive)
            archive = Archive.open(path, segment.archive)
            if archive.header.span != segment.span:
                archive.close()
                raise ArchiveDamaged(f"{path}: it holds other positions than the log says")
            self._archives[segment.archive] = archive
        return self._archives[segment.archive]

    def fill(self, life: Life, first: int, end: int) -> Iterator[tuple[int, Place] | Gap]:
        """What is known of positions that the log's file has no longer."""
        while first < end:
            segment = life.segment_at(first)
            if segment is None:
                yield Gap(Span(first, end), "they are not there, and no record says that they went")
                return
            stop = min(end, segment.span.end)
            if segment.archive is None:
                yield Gap(Span(first, stop), _why(segment))
            else:
                yield from self._archived(segment, first, stop)
            first = stop

    def leaf_only(self, life: Life, position: int, leaf: bytes) -> Place | Gap:
        """What is known of a record of which the log's file has only the leaf."""
        segment = life.segment_at(position)
        if segment is None or (segment.archive is None and segment.pruned_at is None):
            return Place(None, leaf)  # Redacted; or taken out in silence, as `verify` will say.
        if segment.archive is None:
            return Gap(Span(position, position + 1), _why(segment), leaf)
        for found in self._archived(segment, position, position + 1):
            if isinstance(found, Gap):
                return Gap(found.span, found.why, leaf)
            if found[1].leaf != leaf:
                why = f"{archive_name(segment.span, segment.archive)} has another record there"
                return Gap(Span(position, position + 1), why, leaf)
            return found[1]
        raise AssertionError("an archive without a position of its segment")

    def _archived(self, segment: Segment, first: int, end: int) -> Iterator[tuple[int, Place] | Gap]:
        while first < end:
            try:
                for position, place in self.archive(segment).read(first, end):
                    yield position, place
                    first = position + 1
            except ArchiveDamaged as error:
                stop = end if error.span is None else min(end, error.span.end)
                yield Gap(Span(first, stop), str(error))
                first = stop


def _why(segment: Segment) -> str:
    if segment.pruned_at is None:
        return "they are not there, and no record says that they went"
    return f"pruned, as the record at position {segment.pruned_at} says"
