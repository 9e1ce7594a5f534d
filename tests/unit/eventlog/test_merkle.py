"""The tree is RFC 6962's: by the RFC's own definition, by Certificate Transparency's vectors, by pymerkle."""

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from eventlog import merkle
from eventlog.merkle import Frontier, ProofError

# The leaves and roots that Certificate Transparency's reference implementation tests itself with
# (google/certificate-transparency, merkletree/merkle_tree_test.cc).
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# The same source: (leaf counted from 0, tree size, path).
INCLUSION = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCY = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


class StoredNodes:
    """A tree's stored hashes in memory; counts how often it is read."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.frontier = Frontier()
        self.levels: dict[int, list[bytes]] = {0: []}
        self.reads = 0
        for data in leaves:
            self.append(data)

    def append(self, data: bytes) -> None:
        leaf = merkle.leaf_hash(data)
        self.levels[0].append(leaf)
        for level, index, node in self.frontier.append(leaf):
            stored = self.levels.setdefault(level, [])
            assert index == len(stored)
            stored.append(node)

    def nodes(self, level: int, first: int, count: int) -> Sequence[bytes]:
        self.reads += count
        found = self.levels[level][first : first + count]
        assert len(found) == count
        return found


def definition(leaves: Sequence[bytes]) -> bytes:
    """MTH as the RFC writes it, 2.1."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + definition(leaves[:split]) + definition(leaves[split:])).digest()


def some_leaves(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    stored = StoredNodes(LEAVES)
    assert merkle.tree_root(stored, size).hex() == ROOTS[size]
    assert StoredNodes(LEAVES[:size]).frontier.root().hex() == ROOTS[size]


@pytest.mark.parametrize(("position", "size", "path"), INCLUSION)
def test_inclusion_proofs_are_those_of_certificate_transparency(
    position: int, size: int, path: list[str]
) -> None:
    found = merkle.inclusion_proof(StoredNodes(LEAVES), position, size)
    assert [node.hex() for node in found] == path


@pytest.mark.parametrize(("old_size", "size", "path"), CONSISTENCY)
def test_consistency_proofs_are_those_of_certificate_transparency(
    old_size: int, size: int, path: list[str]
) -> None:
    found = merkle.consistency_proof(StoredNodes(LEAVES), old_size, size)
    assert [node.hex() for node in found] == path


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 300])
def test_roots_are_those_of_the_definition_at_every_size(size: int) -> None:
    leaves = some_leaves(300)
    stored = StoredNodes(leaves)
    assert merkle.tree_root(stored, size) == definition(leaves[:size])
    assert merkle.frontier_at(stored, size).root() == definition(leaves[:size])


@given(st.integers(1, 300), st.data())
@settings(max_examples=60)
def test_pymerkle_makes_the_same_roots_and_accepts_the_same_paths(size: int, data: st.DataObject) -> None:
    leaves = some_leaves(size)
    theirs = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        theirs.append_entry(leaf)
    ours = StoredNodes(leaves)
    assert theirs.get_root() == ours.frontier.root()
    old_size = data.draw(st.integers(1, size))
    assert theirs.get_root(old_size) == merkle.tree_root(ours, old_size)
    position = data.draw(st.integers(0, old_size - 1))
    their_path = theirs.prove_inclusion(position + 1, old_size).path[1:]
    assert merkle.inclusion_proof(ours, position, old_size) == their_path


@given(st.integers(1, 600), st.data())
@settings(max_examples=150)
def test_every_proof_convinces(size: int, data: st.DataObject) -> None:
    leaves = some_leaves(size)
    stored = StoredNodes(leaves)
    root = stored.frontier.root()
    position = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion_proof(stored, position, size)
    merkle.verify_inclusion(merkle.leaf_hash(leaves[position]), position, size, root, path)
    old_size = data.draw(st.integers(0, size))
    proof = merkle.consistency_proof(stored, old_size, size)
    merkle.verify_consistency(old_size, definition(leaves[:old_size]), size, root, proof)


@given(st.integers(2, 300), st.data())
@settings(max_examples=150)
def test_no_altered_inclusion_proof_convinces(size: int, data: st.DataObject) -> None:
    leaves = some_leaves(size)
    stored = StoredNodes(leaves)
    root = stored.frontier.root()
    position = data.draw(st.integers(0, size - 1))
    leaf = merkle.leaf_hash(leaves[position])
    path = merkle.inclusion_proof(stored, position, size)
    at = data.draw(st.integers(0, len(path) - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda number: number != position))
    for altered in (
        (merkle.leaf_hash(b"another"), position, size, root, path),
        (leaf, other, size, root, path),
        (leaf, size, size, root, path),
        (leaf, -1, size, root, path),
        (leaf, position, size, bytes(32), path),
        (leaf, position, size, root, path[:-1]),
        (leaf, position, size, root, [*path, bytes(32)]),
        (leaf, position, size, root, [*path[:at], bytes(32), *path[at + 1 :]]),
    ):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(*altered)


@given(st.integers(2, 300), st.data())
@settings(max_examples=150)
def test_no_altered_consistency_proof_convinces(size: int, data: st.DataObject) -> None:
    leaves = some_leaves(size)
    stored = StoredNodes(leaves)
    root = stored.frontier.root()
    old_size = data.draw(st.integers(1, size - 1))
    old_root = definition(leaves[:old_size])
    path = merkle.consistency_proof(stored, old_size, size)
    at = data.draw(st.integers(0, len(path) - 1))
    for altered in (
        (old_size, bytes(32), size, root, path),
        (old_size, old_root, size, bytes(32), path),
        (old_size, old_root, size, root, path[:-1]),
        (old_size, old_root, size, root, []),
        (old_size, old_root, size, root, [*path, bytes(32)]),
        (old_size, old_root, size, root, [*path[:at], bytes(32), *path[at + 1 :]]),
        (size + 1, old_root, size, root, path),
        (size, old_root, size, root, []),
        (size, root, size, root, path),
        (0, old_root, size, root, []),
        (0, merkle.EMPTY_ROOT, size, root, path),
    ):
        with pytest.raises(ProofError):
            merkle.verify_consistency(*altered)


def test_proofs_that_cannot_exist_are_refused() -> None:
    stored = StoredNodes(LEAVES)
    for position, size in ((8, 8), (-1, 8), (0, 0)):
        with pytest.raises(ProofError):
            merkle.inclusion_proof(stored, position, size)
    for old_size, size in ((9, 8), (-1, 8)):
        with pytest.raises(ProofError):
            merkle.consistency_proof(stored, old_size, size)


def test_a_proof_reads_a_few_hashes_however_long_the_log() -> None:
    class SparseNodes:
        """As if every leaf were the same: a tree of any size without keeping it."""

        reads = 0

        def __init__(self) -> None:
            self.by_level = [merkle.leaf_hash(b"")]
            for _ in range(32):
                self.by_level.append(merkle.node_hash(self.by_level[-1], self.by_level[-1]))

        def nodes(self, level: int, _first: int, count: int) -> Sequence[bytes]:
            assert level % merkle.STRIDE == 0
            self.reads += count
            return [self.by_level[level]] * count

    stored = SparseNodes()
    size = 10_000_019
    root = merkle.tree_root(stored, size)
    stored.reads = 0
    path = merkle.inclusion_proof(stored, 7_654_321, size)
    assert stored.reads < 250
    merkle.verify_inclusion(merkle.leaf_hash(b""), 7_654_321, size, root, path)
    stored.reads = 0
    proof = merkle.consistency_proof(stored, 7_654_321, size)
    assert stored.reads < 250
    merkle.verify_consistency(7_654_321, merkle.tree_root(stored, 7_654_321), size, root, proof)


def test_a_frontier_wants_as_many_peaks_as_its_size_has() -> None:
    with pytest.raises(ValueError, match="peaks"):
        Frontier(5, [bytes(32)])
