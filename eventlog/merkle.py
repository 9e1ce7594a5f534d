"""The Merkle tree of RFC 6962, section 2: roots, inclusion proofs, consistency proofs.

Rule 1: nothing here reads or writes anything; the caller brings the stored hashes as a `Nodes`.
Rule 2: a stored hash is the hash of a complete subtree, so it never changes once written.

Of the complete subtrees only those whose level is a multiple of STRIDE are stored (level 0: the leaves); the
levels between are made again from at most 2^STRIDE hashes. That costs 2 bytes a record instead of 32, and a
proof at ten million records still reads only a few short runs of hashes for each stored level.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Protocol, TypeAlias

STRIDE = 4
HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()

StoredNode: TypeAlias = tuple[int, int, bytes]
"""Level, index within the level, hash."""


class Nodes(Protocol):
    """The stored hashes of complete subtrees."""

    def nodes(self, level: int, first: int, count: int) -> Sequence[bytes]:
        """The hashes `first` to `first + count - 1` of a stored level. Raises when one of them is missing."""


class ProofError(ValueError):
    """A proof that does not show what it claims, or that cannot exist for these sizes."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf's bytes: SHA-256(0x00 || data)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of its complete subtrees, widest first.

    Appending needs nothing else, so it reads nothing, and it hashes twice on average.
    """

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self._peaks = list(peaks)
        if len(self._peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} has {size.bit_count()} peaks, not {len(self._peaks)}")

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, widest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> list[StoredNode]:
        """Add a leaf hash; returns what is to be stored above the leaves."""
        return self.append_subtree(0, leaf)

    def append_subtree(self, level: int, node: bytes) -> list[StoredNode]:
        """Add a complete subtree of 2^level leaves; returns what is to be stored above it."""
        if self.size & ((1 << level) - 1):
            raise ValueError(f"after {self.size} leaves no subtree of level {level} begins")
        complete: list[StoredNode] = []
        self.size += 1 << level
        index = (self.size >> level) - 1
        while index & 1:
            node = node_hash(self._peaks.pop(), node)
            index >>= 1
            level += 1
            if level % STRIDE == 0:
                complete.append((level, index, node))
        self._peaks.append(node)
        return complete

    def copy(self) -> "Frontier":
        """An independent frontier at the same size."""
        return Frontier(self.size, self._peaks)

    def root(self) -> bytes:
        """The root of the tree so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def frontier_at(nodes: Nodes, size: int) -> Frontier:
    """The frontier of the tree's first `size` leaves."""
    peaks = []
    first = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            peaks.append(subtree(nodes, level, first >> level))
            first += 1 << level
    return Frontier(size, peaks)


def tree_root(nodes: Nodes, size: int) -> bytes:
    """The root of the tree's first `size` leaves."""
    return frontier_at(nodes, size).root()


def subtree(nodes: Nodes, level: int, index: int) -> bytes:
    """The hash of the complete subtree over the leaves from index * 2^level on, 2^level of them."""
    above_stored = level % STRIDE
    hashes = nodes.nodes(level - above_stored, index << above_stored, 1 << above_stored)
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def inclusion_proof(nodes: Nodes, position: int, size: int) -> list[bytes]:
    """The audit path of a leaf in the tree of `size` leaves (RFC 6962, 2.1.1)."""
    if not 0 <= position < size:
        raise ProofError(f"no leaf {position} in a tree of {size}")
    path = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if position < middle:
            path.append(_range_root(nodes, middle, end))
            end = middle
        else:
            path.append(_range_root(nodes, first, middle))
            first = middle
    return path[::-1]


def consistency_proof(nodes: Nodes, old_size: int, size: int) -> list[bytes]:
    """The proof that the tree of `old_size` leaves is a prefix of that of `size` (RFC 6962, 2.1.2)."""
    _check_prefix(old_size, size)
    if old_size in (0, size):
        return []
    path = []
    first, end = 0, size
    whole_old_tree = True  # The RFC's b: the subtree at hand is the old tree, whose root the verifier has.
    while old_size != end:
        middle = first + _split(end - first)
        if old_size <= middle:
            path.append(_range_root(nodes, middle, end))
            end = middle
        else:
            path.append(_range_root(nodes, first, middle))
            first = middle
            whole_old_tree = False
    if not whole_old_tree:
        path.append(_range_root(nodes, first, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, position: int, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless the path leads from the leaf hash to the root (RFC 9162, 2.1.3.2)."""
    if not 0 <= position < size:
        raise ProofError(f"no leaf {position} in a tree of {size}")
    node, last = position, size - 1
    found = leaf
    for sibling in path:
        if last == 0:
            raise ProofError("the path is too long")
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofError("the path is too short")
    if found != root:
        raise ProofError("the path leads to another root")


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless the path shows that the old tree is a prefix of the new (RFC 9162, 2.1.4.2)."""
    _check_prefix(old_size, size)
    if old_size in (0, size):
        _verify_trivial_consistency(old_size, old_root, size, root, path)
        return
    hashes = list(path)
    if old_size.bit_count() == 1:
        hashes.insert(0, old_root)  # A complete subtree of the new tree, which the path leaves out.
    if not hashes:
        raise ProofError("the path is empty")
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_found = found = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofError("the path is too long")
        if node & 1 or node == last:
            old_found, found = node_hash(sibling, old_found), node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofError("the path is too short")
    if (old_found, found) != (old_root, root):
        raise ProofError("the path leads to other roots")


def _check_prefix(old_size: int, size: int) -> None:
    if not 0 <= old_size <= size:
        raise ProofError(f"a tree of {old_size} is no prefix of one of {size}")


def _verify_trivial_consistency(
    old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]
) -> None:
    if path:
        raise ProofError("the path is too long")
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise ProofError("the old root is not the empty tree's")
    if old_size == size and old_root != root:
        raise ProofError("two roots of one size")


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1


def _range_root(nodes: Nodes, first: int, end: int) -> bytes:
    """The root over the leaves [first, end), where first is aligned as the RFC's recursion aligns it."""
    count = end - first
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return subtree(nodes, level, first >> level)
    middle = first + _split(count)
    return node_hash(_range_root(nodes, first, middle), _range_root(nodes, middle, end))
