"""Random and mutated packets: `translate` and both real datapaths agree, and every checksum is right.

Each crosses eight times: in both datapaths, in connections opened from either side, with a UDP checksum and
without. By hand: `tools/test tests/lab/test_differential.py --packets 100000 --timeout 0`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rewriter.cuseeme import DataType, Direction, translate
from rewriter.packet import Endpoint
from rewriter.vocabulary import Ruleset
from tools.datapath import Datapath, production_rules
from tools.vector_trial import VECTORS_AT_ONCE, Vector, try_in
from tools.vectors import read_vectors

KNOWN = read_vectors(Path(__file__).parents[1] / "data" / "cuseeme.jsonl")
LENGTHS = [*[None] * 12, *range(24, 40), 54, 55, 56, 57, 67, 68, 286, 287, 1459, 1471, 1472, 1473, 1800, 3100]
"""Octets of payload; None leaves it as it is. The longest is three fragments."""
FILLING = bytes(range(1, 256)) * 13
NOTHING = bytes(4)
# Nothing, no-operations, and an experimental option (RFC 4727) that fragments copy; up to 40 octets.
IP_OPTIONS = [b"", b"", b"", b"\1\1\1\1", b"\x9e\4\x12\x34", b"\1" * 12, b"\x9e\x28" + bytes(38)]
ENDS = [
    Endpoint(bytes((first, *rest)), port)
    for first in (1, 10, 100, 172, 192, 223)
    for rest in ((0, 0, 1), (168, 1, 10), (255, 255, 255), (31, 0, 254))
    for port in (7648, 7649, 24032, 1, 0xFFFF)
]
OCTETS = (0, 1, 2, 3, 6, 20, 63, 64, 101, 127, 128, 255)
WORDS = (DataType.AUDIO, DataType.OPEN_CONTINUE, 1, 2, 0x0300, 0x6500, 0xFFFF)
PLACES = (2, 4, 8, 10, 12, 20, 22, 26, 34, 38, 56, 68)  # offsets of what is compared, counted or translated


@st.composite
def packets(draw: st.DrawFn) -> Vector:
    """A known packet, its ends exchanged, its fields and octets changed, cut or lengthened; or thin air.

    Few draws, each from a list: they take longer than the packets' way through a kernel.
    """
    known = draw(st.sampled_from(KNOWN))
    private = draw(st.sampled_from((known.private, *ENDS)))
    public = draw(st.sampled_from((known.public, Endpoint(known.public.address, private.port), *ENDS)))
    payload = bytearray(draw(st.one_of(*[st.just(known.payload)] * 3, st.binary(min_size=20, max_size=80))))
    length = draw(st.sampled_from(LENGTHS))
    payload = (payload + FILLING)[: len(payload) if length is None else length]
    addresses = (public.address, private.address, NOTHING, b"\x0a\x09\x08\x07")
    words = [word.to_bytes(2, "big") for word in (public.port, private.port, *WORDS)]
    values = [*addresses, *addresses, *words, *(bytes((octet,)) for octet in OCTETS)]
    changes = st.tuples(st.sampled_from((*PLACES, *PLACES, *range(90))), st.sampled_from(values))
    for offset, octets in draw(st.lists(changes, max_size=6)):
        payload[offset : offset + len(octets)] = octets[: max(0, len(payload) - offset)]
    direction, options = draw(st.sampled_from([(way, some) for way in Direction for some in IP_OPTIONS]))
    expected = translate(bytes(payload), direction, public, private)
    return Vector(1, "drawn", "drawn", direction, public, private, bytes(payload), expected, options)


@pytest.fixture(scope="module")
def datapaths() -> Iterator[list[tuple[Datapath, Ruleset]]]:
    """The kernel's and the queue's, each in a gateway of its own."""
    with ExitStack() as stack:
        yield [
            (stack.enter_context(Datapath()), production_rules(rewrites_in_kernel=in_kernel))
            for in_kernel in (True, False)
        ]


def wrong_in(datapaths: list[tuple[Datapath, Ruleset]], vectors: list[Vector]) -> list[tuple[object, ...]]:
    """What differs: the failure, and the vector as it can be tried again."""
    return [
        (failure.what, v.direction.value, str(v.public), str(v.private), v.options.hex(), v.payload.hex())
        for datapath, rules in datapaths
        for result in try_in(datapath, rules, vectors)
        for failure in result.failures
        for v in [result.vector]
    ]


def test_drawn_packets_are_translated_alike_everywhere(
    datapaths: list[tuple[Datapath, Ruleset]], request: pytest.FixtureRequest
) -> None:
    seen: Counter[str] = Counter()

    # Not shrunk: what is wrong is one of the batch and named, and a smaller batch takes as long.
    @settings(
        max_examples=-(-request.config.getoption("--packets") // VECTORS_AT_ONCE),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(packets(), min_size=VECTORS_AT_ONCE, max_size=VECTORS_AT_ONCE))
    def agree(vectors: list[Vector]) -> None:
        assert wrong_in(datapaths, vectors) == []
        for vector in vectors:
            seen["all"] += 1
            seen["changed"] += vector.payload != vector.expected
            seen["short"] += len(vector.payload) < 26
            seen["odd"] += len(vector.payload) % 2
            seen["fragmented"] += len(vector.payload) > 1472
            seen["with options"] += bool(vector.options)

    agree()
    assert seen["all"] >= request.config.getoption("--packets")
    assert all(share > seen["all"] // 50 for share in seen.values()), seen


@pytest.mark.parametrize("options", sorted(set(IP_OPTIONS)), ids=bytes.hex)
def test_ip_options_change_nothing(datapaths: list[tuple[Datapath, Ruleset]], options: bytes) -> None:
    vectors = [replace(vector, options=options) for vector in KNOWN[::13]]
    assert wrong_in(datapaths, vectors) == []


def test_what_differs_is_told(datapaths: list[tuple[Datapath, Ruleset]]) -> None:
    vectors = [replace(vector, expected=vector.expected[:-1] + b"\x55") for vector in KNOWN[:1]]
    assert len(wrong_in(datapaths, vectors)) == 2 * 5  # translate, and four ways, in each datapath
