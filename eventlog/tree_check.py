"""The tree of a log made again, leaf by leaf, and held against the hashes that are stored."""

from collections.abc import Iterable, Iterator

from eventlog import merkle
from eventlog.reading import LogReader


class TreeCheck:
    """A growing tree; each stored hash is compared when its subtree is complete.

    `first`: from which position on; the tree before it is then believed, as a checkpoint's.
    """

    def __init__(self, reader: LogReader, first: int = 0) -> None:
        self._frontier = merkle.frontier_at(reader, first)
        self._stored = {level: reader.stored_nodes(level, first >> level) for level in reader.stored_levels()}
        self._ahead = {level: next(nodes, None) for level, nodes in self._stored.items()}

    @property
    def size(self) -> int:
        """How many leaves there are by now."""
        return self._frontier.size

    def root(self) -> bytes:
        """The root over them."""
        return self._frontier.root()

    def append(self, leaf: bytes) -> Iterator[tuple[int, int, str]]:
        """The subtrees complete with this leaf whose stored hash is wrong: (first position, end, what)."""
        yield from self._compare(self._frontier.append(leaf))

    def skip_group(self) -> Iterator[tuple[int, int, str]]:
        """Take the stored hash of the next group of 2^STRIDE leaves for them. Raises LookupError without."""
        number, rest = divmod(self._frontier.size, 1 << merkle.STRIDE)
        node = None if rest else self._take(merkle.STRIDE, number)
        if node is None:
            raise LookupError(f"no hash of a group begins at position {self._frontier.size}")
        yield from self._compare(self._frontier.append_subtree(merkle.STRIDE, node))

    def _compare(self, nodes: Iterable[merkle.StoredNode]) -> Iterator[tuple[int, int, str]]:
        for level, number, node in nodes:
            stored = self._take(level, number)
            if stored != node:
                first, end = number << level, (number + 1) << level
                wrong = "missing" if stored is None else "not that of the records"
                yield first, end, f"the stored hash over positions {first} to {end - 1} is {wrong}"

    def surplus(self) -> Iterator[str]:
        """After the last leaf: hashes stored of subtrees that are not complete."""
        for level, ahead in self._ahead.items():
            if ahead is not None:
                yield f"a hash is stored for number {ahead[0]} on level {level}, which is not complete"

    def _take(self, level: int, number: int) -> bytes | None:
        ahead = self._ahead.get(level)
        while ahead is not None and ahead[0] < number:
            ahead = next(self._stored[level], None)
        if ahead is None or ahead[0] > number:
            self._ahead[level] = ahead
            return None
        self._ahead[level] = next(self._stored[level], None)
        return ahead[1]
