"""`porthold lab vectors`: the kernel translates as `translate` does, and where not, the command says so."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rewriter import ruleset, selection
from rewriter.cuseeme import DataType, Direction, translate
from rewriter.header_chains import rewriting_chains
from rewriter.packet import Endpoint, build_udp, parse
from rewriter.vocabulary import OPENED_INSIDE, OPENED_OUTSIDE, Ruleset
from tools import vector_trial
from tools.cli import main
from tools.datapath import production_rules
from tools.vector_trial import Flow, Vector, peers, try_vectors, vector_rules, vector_table
from tools.vectors import read_vectors

FILE = Path(__file__).parents[1] / "data" / "cuseeme.jsonl"
LINE = {
    "id": "one",
    "category": "test",
    "direction": "out",
    "public": "192.0.2.2:61000",
    "private": "192.168.1.10:7648",
    "in": "000000000000000000011de0c0a8010a0000000100140001001a",
    "expected": "00000000000000000001ee48c00002020000000100140001001a",
}


def run(file: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["lab", "vectors", str(file), *options])


def write(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


# --- the files of vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("datapath", ["kernel", "queue"])
def test_every_vector_is_as_expected_in_translate_and_in_both_datapaths(datapath: str) -> None:
    result = run(FILE, "--json", "--datapath", datapath)
    found = json.loads(result.output)
    assert found["datapath"] == datapath
    assert found["failures"] == []
    verdicts = ("lines", "translate_equal", "kernel_equal", "checksum_right", "without_checksum_right")
    assert {name: found[name] for name in verdicts} == dict.fromkeys(verdicts, 314)
    assert result.exit_code == 0


def test_the_table_counts_each_category(tmp_path: Path) -> None:
    result = run(write(tmp_path / "two.jsonl", LINE, {**LINE, "id": "two", "category": "other"}))
    rows = [line.replace("│", " ").split() for line in result.output.splitlines()]
    for row in (["test", *"11111"], ["other", *"11111"], ["all", *"22222"]):
        assert row in rows
    assert "all 2 lines are as expected" in result.output
    assert result.exit_code == 0


def test_more_lines_than_one_table_holds_are_tried_one_table_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_trial, "VECTORS_IN_A_TABLE", 60)
    vectors = read_vectors(FILE)[:150]
    assert [result.vector for result in try_vectors(vectors) if result.is_right()] == vectors


def test_one_address_may_send_open_continues_at_any_number_of_lines() -> None:
    talk = next(vector for vector in read_vectors(FILE) if vector.category == "oc_out")
    assert all(result.is_right() for result in try_vectors([talk] * 60))


def test_an_address_may_be_public_in_one_line_and_private_in_another_or_in_the_same() -> None:
    ends = [Endpoint.parse(end) for end in ("192.0.2.2:7648", "198.18.0.1:7650", "192.168.1.1:1")]
    payload = bytes(4) + ends[0].address + b"\0\1\x1d\xe0" + ends[0].address + bytes(10)
    for direction in Direction:
        flows = ((public, private) for public in ends for private in ends)
        assert_kernel_translates([vector_of(payload, direction, *flow) for flow in flows], direction.value)


def test_the_rewriting_chains_are_productions_byte_for_byte() -> None:
    vectors = read_vectors(FILE)
    flows = [Flow(vector, peer) for vector, peer in zip(vectors, peers(vectors), strict=False)]
    chains = rewriting_chains(production_rules())
    assert "chain rewrite {" in chains
    assert chains in vector_table(vector_rules(production_rules(), vectors), flows)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"in": None}, "in: is missing"),
        ({"in": 5}, "in: 5 is no text"),
        ({"in": "0g"}, "in: not hexadecimal"),
        ({"expected": "000"}, "expected: not hexadecimal"),
        ({"in": "00" * 65508}, "in: 65508 bytes are more than UDP carries (65507)"),
        ({"public": "192.0.2.300:1"}, "public: "),
        ({"public": "192.0.2.3"}, "public: not an address and port: '192.0.2.3'"),
        ({"private": "10.0.0.1:65536"}, "private: not an address and port"),
        ({"private": "10.0.0.1:0"}, "private: there is no port 0"),
        ({"private": "127.0.0.1:5"}, "private: no kernel forwards packets from or to 127.0.0.1"),
        ({"public": "255.255.255.255:5"}, "public: no kernel forwards packets"),
        ({"direction": "sideways"}, "direction: 'sideways' is neither 'out' nor 'in'"),
    ],
)
def test_a_line_that_is_no_vector_is_named_with_its_key(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    line = {key: value for key, value in {**LINE, **changes}.items() if value is not None}
    result = run(write(tmp_path / "bad.jsonl", LINE, line))
    assert result.exit_code == 2
    assert f"bad.jsonl, line 2: {complaint}" in result.output


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"{", "line 1: no JSON"),
        (b"\n[]", "line 2: not an object with keys but list"),
        (b"\xff\xfe\xfd", "line 1: no JSON"),
        (b"[" * 100_000, "line 1: no JSON"),
        (b"\n\n", "there is no vector in it"),
    ],
)
def test_a_file_of_something_else_is_wrong_use(text: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(text)
    result = run(file)
    assert result.exit_code == 2
    assert complaint in result.output


def test_a_file_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    assert run(tmp_path / "none.jsonl").exit_code == 2


def test_keys_of_others_are_ignored_and_name_and_category_may_be_missing(tmp_path: Path) -> None:
    line = {key: value for key, value in LINE.items() if key not in ("id", "category")}
    (vector,) = read_vectors(write(tmp_path / "f.jsonl", {**line, "linux22": "00", "note": ["x"]}))
    assert (vector.name, vector.category, vector.line) == ("line 1", "-", 1)


# --- what is wrong is seen --------------------------------------------------------------------------------


def test_a_line_with_another_result_fails_by_name_with_all_three_payloads(tmp_path: Path) -> None:
    wrong = {**LINE, "id": "odd one", "expected": "00" * 26}
    result = run(write(tmp_path / "wrong.jsonl", LINE, wrong))
    assert result.exit_code == 1
    assert "odd one (line 2" in result.output
    assert f"in        {LINE['in']}" in result.output
    assert f"expected  {'00' * 26}" in result.output
    assert f"got       {LINE['expected']}" in result.output
    assert "one (line 1" not in result.output.replace("odd one", "")
    as_json = json.loads(run(tmp_path / "wrong.jsonl", "--json").output)
    assert (as_json["lines"], as_json["translate_equal"], as_json["kernel_equal"]) == (2, 1, 1)
    assert {failure["id"] for failure in as_json["failures"]} == {"odd one"}
    assert {failure["got"] for failure in as_json["failures"]} == {LINE["expected"]}


@pytest.mark.parametrize(
    ("production", "broken", "blamed"),
    [
        ("@ih,96,32 set @nh,96,32", "", {"addrfield", "type", "port"}),
        ("@ih,32,32 set @nh,128,32", "", {"addrfield", "type"}),
        ("jump out_port", "return", {"port"}),
        ("jump in_port", "return", {"port"}),
        ("& 0x3f <=", "& 0xff <=", {"speaker"}),
        ("@ih,64,16 2", "@ih,64,16 7", {"reflector_out"}),
        ("ct direction original goto in_outside", "", {"addrfield", "type"}),
    ],
)
def test_a_kernel_that_forgets_a_rule_is_found_out(
    production: str, broken: str, blamed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(rules: Ruleset) -> str:
        text = rewriting_chains(rules)
        assert production in text
        return text.replace(production, broken)

    monkeypatch.setattr(ruleset, "rewriting_chains", forgetful)
    results = list(try_vectors(read_vectors(FILE)))
    assert all(result.translate_equal for result in results)
    wrong = {result.vector.category for result in results if not result.kernel_equal}
    assert blamed <= wrong
    assert "oc_out" not in wrong  # translated in the queue


def test_a_kernel_that_leaves_the_checksum_stale_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # `@th` reaches the payload too, but without mending the checksum (kernel-datapath.md).
    def stale(rules: Ruleset) -> str:
        return rewriting_chains(rules).replace("@ih,96,32 set @nh,96,32", "@th,160,32 set @nh,96,32")

    monkeypatch.setattr(ruleset, "rewriting_chains", stale)
    vectors = [vector for vector in read_vectors(FILE) if vector.category == "video"]
    results = [result for result in try_vectors(vectors) if result.vector.direction is Direction.OUT]
    assert results
    assert not any(result.checksum_right for result in results)
    assert all(result.kernel_equal and result.without_checksum_right for result in results)


def test_open_continues_that_pass_the_queue_by_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "talk_rules", lambda _rules, **_: iter(["return"]))
    vectors = [vector for vector in read_vectors(FILE) if vector.category in ("oc_out", "video")]
    for result in try_vectors(vectors):
        assert result.kernel_equal == (result.vector.category == "video")


def test_a_kernel_that_drops_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ruleset,
        "rewriting_chains",
        lambda rules: rewriting_chains(rules).replace("jump in_header", "jump in_header\n    drop"),
    )
    arriving = next(vector for vector in read_vectors(FILE) if vector.direction is Direction.IN)
    (result,) = try_vectors([arriving])
    assert [result.kernel_equal, result.checksum_right, result.without_checksum_right] == [False] * 3
    assert {failure.got for failure in result.failures} == {None}


# --- vectors nobody wrote ---------------------------------------------------------------------------------

OTHER = bytes((10, 9, 8, 7))
LENGTHS = [*range(25, 35), 37, 38, 54, 55, 56, 57, 67, 68, 69, 80, 285, 286, 287, 300, 1471, 1472, 1473, 2961]
TYPES = [1, 2, DataType.AUDIO, 100, DataType.OPEN_CONTINUE, 104, 105, 110, 256, 0x0300, 0x6500, 0xFFFF]


def random_address(chance: random.Random) -> bytes:
    first = chance.choice((10, 172, 192, 198, 203, chance.randrange(1, 127), chance.randrange(128, 224)))
    return bytes((first, *(chance.choice((0, 1, 255, chance.randrange(256))) for _ in range(3))))


def random_port(chance: random.Random) -> int:
    return chance.choice((7648, 7648, 7649, 24032, chance.randrange(1, 0x10000)))


def random_vector(chance: random.Random, number: int) -> Vector:
    """A packet in which whatever could be compared or counted is likely to be ours, nobody's, or a lie."""
    private = Endpoint(random_address(chance), random_port(chance))
    public = Endpoint(random_address(chance), chance.choice((private.port, random_port(chance))))
    addresses = (bytes(4), public.address, private.address, OTHER)
    ports = (public.port, private.port, chance.randrange(0x10000))
    payload = bytearray(chance.randbytes(chance.choice((chance.randrange(400), chance.choice(LENGTHS)))))
    data_type = chance.choice((DataType.AUDIO, DataType.OPEN_CONTINUE, chance.choice(TYPES)))
    words = {
        2: chance.choice(ports),
        8: chance.choice((0, 1, 2, 2, 0x0200)),
        10: chance.choice(ports),
        20: chance.choice((0, 1, 2, 6, 20, 0xFFFF)),
        22: data_type,
    }
    fields = {offset: word.to_bytes(2, "big") for offset, word in words.items()}
    fields |= {4: chance.choice(addresses), 12: chance.choice(addresses)}
    if data_type == DataType.AUDIO:
        fields |= {26: bytes((chance.choice((0, 1, 2, 63, 64, 127, 255, chance.randrange(256))),))}
        fields |= {offset: chance.choice(addresses) for offset in range(34, len(payload), 4)}
    if data_type == DataType.OPEN_CONTINUE:
        whole = max(0, len(payload) - 56) // 12
        counts = (0, 1, max(0, whole - 1), whole, whole + 1, 256, 0xFFFF)
        fields |= {26: chance.choice(counts).to_bytes(2, "big")}
        fields |= {offset: chance.choice(addresses) for offset in range(56, len(payload), 12)}
        fields |= {60: chance.choice(addresses)} if chance.random() < 0.2 else {}
    for offset, octets in fields.items():
        payload[offset : offset + len(octets)] = octets[: max(0, len(payload) - offset)]
    direction = chance.choice(list(Direction))
    return vector_of(bytes(payload), direction, public, private, number)


def vector_of(
    payload: bytes, direction: Direction, public: Endpoint, private: Endpoint, number: int = 1
) -> Vector:
    expected = translate(payload, direction, public, private)
    return Vector(number, f"random {number}", "random", direction, public, private, payload, expected)


def assert_kernel_translates(vectors: list[Vector], hint: str) -> None:
    wrong = [result for result in try_vectors(vectors) if not result.is_right()]
    told = [
        (
            r.vector.direction,
            str(r.vector.public),
            str(r.vector.private),
            r.vector.payload.hex(),
            r.failures[0],
        )
        for r in wrong[:3]
    ]
    assert not wrong, f"{len(wrong)} of {len(vectors)} wrong; {hint}: {told}"


def test_the_kernel_translates_random_packets_as_translate_does() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    vectors = [random_vector(chance, number) for number in range(600)]
    changed = [vector for vector in vectors if vector.payload != vector.expected]
    assert len(changed) > 200, f"seed {seed}"
    assert_kernel_translates(vectors, f"seed {seed}")


def test_every_length_up_to_100_and_every_speaker_count_is_translated_alike() -> None:
    chance = random.Random(0)
    public, private = Endpoint.parse("198.51.100.255:61000"), Endpoint.parse("10.255.255.255:7648")

    def vectors() -> Iterator[Vector]:
        for direction, own in ((Direction.OUT, private), (Direction.IN, public)):
            header = bytes(4) + own.address + b"\0\1\x1d\xe0" + own.address + bytes(6)
            for length in range(101):
                for data_type in (1, DataType.AUDIO, DataType.OPEN_CONTINUE):
                    payload = (
                        header
                        + data_type.to_bytes(2, "big")
                        + chance.randbytes(2)
                        + b"\xff\xff"
                        + own.address * 20
                    )
                    yield vector_of(payload[:length], direction, public, private)
            for count in range(64):
                head = header + b"\0\3\0\0" + bytes((count | chance.choice((0, 64, 128)),)) + bytes(7)
                for present in (count - 1, count, count + 1):
                    yield vector_of(head + own.address * present + b"\1\2\3", direction, public, private)

    assert_kernel_translates(list(vectors()), "")


@pytest.mark.parametrize(
    ("data_type", "length"),
    [
        (2, 65507),
        (DataType.OPEN_CONTINUE, 3980),
        (DataType.OPEN_CONTINUE, 3990),
        (DataType.OPEN_CONTINUE, 65503),  # netlink has no room for the last four bytes
    ],
)
def test_the_longest_datagrams_cross_translated(data_type: int, length: int) -> None:
    vectors = []
    for direction in Direction:
        public, private = Endpoint.parse("192.0.2.2:7648"), Endpoint.parse("192.168.1.10:7648")
        own = private if direction is Direction.OUT else public
        header = bytes(4) + own.address + b"\0\1\x1d\xe0" + own.address + bytes(6)
        payload = header + data_type.to_bytes(2, "big") + bytes(2) + b"\xff\xff" + bytes(28)
        entries = own.address + bytes(8)
        payload += bytes((length - 68) // 12 * 12) + entries  # ours is the last one that fits
        vectors.append(vector_of(payload.ljust(length, b"\1"), direction, public, private))
    assert {len(vector.payload) for vector in vectors} == {length}
    assert all(vector.payload != vector.expected for vector in vectors)
    assert_kernel_translates(vectors, f"{length} bytes")


@pytest.mark.parametrize("data_type", [1, DataType.OPEN_CONTINUE])
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("opened", [OPENED_INSIDE, OPENED_OUTSIDE])
def test_a_checksum_that_comes_out_as_zero_is_sent_as_all_ones(
    data_type: int, direction: Direction, opened: int
) -> None:
    public, private = Endpoint.parse("192.0.2.2:61000"), Endpoint.parse("192.168.1.10:7648")
    own = private if direction is Direction.OUT else public
    payload = bytes(4) + own.address + b"\0\1\x1d\xe0" + own.address + bytes(6) + data_type.to_bytes(2, "big")
    payload += bytes(40)
    first = vector_of(payload, direction, public, private)
    peer = next(peers([first]))
    # Where a word of zeroes gives the checksum c, the word c gives zero: computed before and after NAT.
    after = Flow(first, peer)
    received = build_udp(*ends_on_arrival(after, opened), first.expected)
    sent = after.packet(opened, payload, direction, checksum=True)[1]
    vectors = []
    for whole in (received, sent):
        udp = parse(whole)
        assert udp is not None
        steered = payload[:40] + udp.checksum.to_bytes(2, "big") + payload[42:]
        vectors.append(vector_of(steered, direction, public, private))
    arrival = parse(build_udp(*ends_on_arrival(after, opened), vectors[0].expected))
    assert arrival is not None
    assert arrival.checksum == 0xFFFF
    for vector in vectors:  # each is the first of its trial, and so has the peer that it was made for
        for rewrites_in_kernel in (True, False):
            (result,) = try_vectors([vector], rewrites_in_kernel=rewrites_in_kernel)
            assert result.is_right(), result.failures


def ends_on_arrival(flow: Flow, opened: int) -> tuple[Endpoint, Endpoint]:
    peer, vector = flow.peer_of(opened), flow.vector
    return (vector.public, peer) if vector.direction is Direction.OUT else (peer, vector.private)
