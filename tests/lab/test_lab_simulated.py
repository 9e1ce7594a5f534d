"""The simulated reflector and client put on the wire what the real ones of the captures did.

The bytes are those of a real reflector ("Poor Man's Reflector v1.9.14") and of real clients, as captured.
"""

from socket import inet_aton

from rewriter.cuseeme import Endpoint, parse
from tools.simulated_client import Client, Habits
from tools.simulated_reflector import Reflector
from tools.simulated_wire import Close, Note, Output, Send

REFLECTOR = Endpoint(inet_aton("203.0.113.10"), 7648)
NATED = Endpoint(inet_aton("192.0.2.2"), 50509)
PUBLIC = Endpoint(inet_aton("198.51.100.20"), 56720)

REAL_ACKNOWLEDGEMENT = "0001dd90c633641400021de0cb00710a0000000000020064001a"
REAL_WELCOME = (
    "0001dd90c633641400021de0cb00710a0000000000000069007300000055506f6f72204d616e2773205265666c6563746f722076312e"
    "392e31342028323030362f30362f30332031333a35393a3137204a5354290d0d57656c636f6d6520746f20746865207465737420"
    "7265666c6563746f72"
)
REAL_REFUSAL = (
    "0001c54dc000020200021de0cb00710a000000000000006800c70000aa506f6f72204d616e2773205265666c6563746f722076312e39"
    "2e31342028323030362f30362f30332031333a35393a3137204a5354290d0d54686520495020416464726573736573206f662049"
    "502048656164657220616e642043552d5365654d65204865616465722061726520646966666572656e742e200d0d495020486561"
    "646572203a203139322e302e322e322c20435520486561646572203a203139322e3136382e312e3130"
)
REAL_RATE_REQUEST = "0001dd90c633641400021de0cb00710a000000000000006e002401000000004003925ca9"
REAL_RATE_REPLY = (
    "0002e01d00000000000190ddc6336414000000000000006f0030010000000000000000400000004003925ca903925ca9"
)
FIRST_OPEN = (
    "000200000000000000{port}{address}0000000100010065004800000000000005496e4f4355000000000000000000000000000001010b"
    "000003000c000100200000000101000000"
)
NAME = "034f7574" + "00" * 16 + "0101"
TWO_ENTRIES = (
    f"0002000000000000000133ebc0a8010a00000004000100650060000200000003{NAME}"
    "0b00{first}{second}0003000c000100200000000101000000"
)
RELAYED = (
    f"0002000000000000000133eb7f00000400000004000100650054000100000003{NAME}"
    "8b00{entry}0003000c000100200000000101000100"
)


def real_open(address: str, port: int) -> bytes:
    """The first OpenContinue of a real client, with this header address and (little-endian) header port."""
    little = port.to_bytes(2, "little").hex()
    return bytes.fromhex(FIRST_OPEN.format(port="01" + little, address=inet_aton(address).hex()))


def reflector(*, strict: bool = True) -> Reflector:
    return Reflector(REFLECTOR.address, REFLECTOR.port, strict=strict, silence_timeout_s=60)


def sent(outputs: list[Output]) -> list[Send]:
    return [output for output in outputs if isinstance(output, Send)]


def events(outputs: list[Output]) -> list[str]:
    return [output.event for output in outputs if isinstance(output, Note)]


def test_login_is_answered_as_in_the_captures() -> None:
    outputs = sent(list(reflector().receive(real_open("198.51.100.20", 56720), PUBLIC, 60_000.425)))
    assert [output.destination for output in outputs] == [PUBLIC] * 5
    rate, acknowledgement, *welcomes = [output.payload.hex() for output in outputs]
    assert rate[:-8] == REAL_RATE_REQUEST[:-8]  # but for the reflector's clock
    assert acknowledgement == REAL_ACKNOWLEDGEMENT
    assert welcomes == [REAL_WELCOME] * 3


def test_a_refusal_is_that_of_the_captures_and_comes_three_times() -> None:
    outputs = list(reflector().receive(real_open("192.168.1.10", 50509), NATED, 0))
    assert [output.payload.hex() for output in sent(outputs)] == [REAL_REFUSAL] * 3
    assert events(outputs) == ["refused"]


def test_a_hang_up_with_a_wrong_address_is_refused_too() -> None:
    hang_up = bytearray(real_open("192.168.1.10", 50509))
    hang_up[20:22] = (6).to_bytes(2, "big")
    assert len(sent(list(reflector().receive(bytes(hang_up), NATED, 0)))) == 3


def test_rate_requests_come_each_6_s_and_acknowledgements_each_31_s_from_the_first_tick_on() -> None:
    one = reflector()
    list(one.receive(real_open("198.51.100.20", 56720), PUBLIC, 0.35))
    times: dict[str, list[float]] = {"acknowledgement": [], "rate": []}
    while (now_s := one.deadline_s()) is not None and now_s < 40:
        for output in sent(list(one.handle_time(now_s))):
            times["rate" if len(output.payload) == 36 else "acknowledgement"].append(now_s)
    assert times == {"rate": [1, 7, 13, 19, 25, 31, 37], "acknowledgement": [31]}


def test_a_silent_member_is_dropped_after_60_s_and_media_do_not_count_as_life() -> None:
    one = reflector()
    list(one.receive(real_open("198.51.100.20", 56720), PUBLIC, 0))
    media = bytes.fromhex("0000e01d00000000000190ddc63364140000000000140003002200f4f42c5f6b02f65f")
    list(one.receive(media, PUBLIC, 59))
    assert "left" not in events(list(one.handle_time(59.9)))
    assert "left" in events(list(one.handle_time(60)))


def test_a_packet_of_another_key_is_ignored_unless_it_is_an_open_continue() -> None:
    one = reflector(strict=False)
    list(one.receive(real_open("198.51.100.20", 56720), PUBLIC, 0))
    media = bytes.fromhex("0000e01d00000000000190ddc0a8010a0000000000140003002200f4f42c5f6b02f65f")
    assert events(list(one.receive(media, PUBLIC, 1))) == ["ignored"]
    assert events(list(one.receive(media, PUBLIC, 2))) == []
    moved = PUBLIC._replace(port=40000)
    assert events(list(one.receive(real_open("198.51.100.20", 56720), moved, 3))) == ["login"]


def test_a_relayed_open_continue_has_one_entry_and_that_is_the_recipient_s_own() -> None:
    """As captured: of the entries for 127.0.0.2 and .3, each gets its own, with what was set in it."""
    one = reflector(strict=False)
    speaker, other, listener = (Endpoint(inet_aton(f"198.51.100.{n}"), 7648) for n in (1, 2, 3))
    for endpoint in (other, listener):  # members 2 and 3
        list(one.receive(real_open(f"198.51.100.{endpoint.address[3]}", 7648), endpoint, 0))
    entries = {"first": "7f0000020700010000420002", "second": "7f0000030700010000420000"}
    packet = bytes.fromhex(TWO_ENTRIES.format(**entries))
    list(one.receive(packet, speaker, 0))  # member 4
    relayed = {output.destination: output.payload for output in sent(list(one.receive(packet, speaker, 1)))}
    for endpoint, received in ((listener, 0), (other, 2)):
        entry = f"{endpoint.address.hex()}070001000042000{received}"
        assert relayed[endpoint].hex() == RELAYED.format(entry=entry)


def test_a_recipient_that_was_not_listed_gets_an_entry_of_zeroes() -> None:
    one = reflector(strict=False)
    listener, speaker = (Endpoint(inet_aton(f"198.51.100.{n}"), 7648) for n in (1, 2))
    list(one.receive(real_open("198.51.100.1", 7648), listener, 0))
    entries = {"first": "7f0000070700010000420002", "second": "7f0000080700010000420000"}
    outputs = sent(list(one.receive(bytes.fromhex(TWO_ENTRIES.format(**entries)), speaker, 0)))
    [relayed] = [output.payload for output in outputs if output.destination == listener]
    assert relayed[26:28] == b"\0\1"
    assert relayed[56:68] == bytes(12)


def test_an_open_continue_without_entries_is_relayed_without() -> None:
    one = reflector(strict=False)
    listener = Endpoint(inet_aton("198.51.100.1"), 7648)
    list(one.receive(real_open("198.51.100.1", 7648), listener, 0))
    outputs = sent(list(one.receive(real_open("198.51.100.20", 56720), PUBLIC, 0)))
    [relayed] = [output.payload for output in outputs if output.destination == listener]
    assert len(relayed) == 72
    assert relayed[54] == 0x8B
    assert relayed[12:16] == inet_aton("127.0.0.3")


def test_a_hang_up_is_relayed_three_times_with_its_flags_untouched() -> None:
    one = reflector(strict=False)
    listener = Endpoint(inet_aton("198.51.100.1"), 7648)
    list(one.receive(real_open("198.51.100.1", 7648), listener, 0))
    opening = real_open("198.51.100.20", 56720)
    list(one.receive(opening, PUBLIC, 0))
    hang_up = opening[:20] + b"\0\6" + opening[22:]
    outputs = list(one.receive(hang_up, PUBLIC, 1))
    expected = hang_up[:12] + inet_aton("127.0.0.3") + hang_up[16:]
    assert [(output.payload, output.destination) for output in sent(outputs)] == [(expected, listener)] * 3
    assert events(outputs) == ["left"]


def a_client(address: str = "198.51.100.20", port: int = 0x90DD) -> Client:
    habits = Habits(name="InOCU", address=inet_aton(address), header_port=port)
    client = Client(habits)
    list(client.call(REFLECTOR, 0))
    return client


def test_a_rate_request_is_answered_as_in_the_captures() -> None:
    client = a_client()
    [reply] = sent(list(client.receive(bytes.fromhex(REAL_RATE_REQUEST), REFLECTOR, 0.1)))
    assert reply.payload.hex() == REAL_RATE_REPLY


def test_what_is_addressed_to_another_is_dropped() -> None:
    client = a_client("192.168.1.10", 50509)
    assert events(list(client.receive(bytes.fromhex(REAL_REFUSAL), REFLECTOR, 0.1))) == ["dropped"]
    assert client.counters()["dropped"] == 1


def test_a_refusal_that_is_addressed_to_it_is_read() -> None:
    client = a_client("192.0.2.2", 50509)
    [note] = list(client.receive(bytes.fromhex(REAL_REFUSAL), REFLECTOR, 0.1))
    assert isinstance(note, Note)
    assert str(note.facts["text"]).endswith("IP Header : 192.0.2.2, CU Header : 192.168.1.10")


def test_an_entry_that_names_another_is_found_wrong_and_one_of_zeroes_is_not() -> None:
    client = a_client("192.168.1.10")
    for address, found in (("00000000", []), ("c0000202", ["wrong"]), ("c0a8010a", ["watched"])):
        entry = f"{address}0700010000420000"
        outputs = list(client.receive(bytes.fromhex(RELAYED.format(entry=entry)), REFLECTOR, 0.1))
        assert [event for event in events(outputs) if event != "member"] == found


def test_keep_alives_come_each_2_s_and_a_silent_peer_is_given_up_after_60() -> None:
    client = a_client()
    times = []
    while (now_s := client.deadline_s()) is not None:
        outputs = list(client.handle_time(now_s))
        times += [now_s for _ in sent(outputs)]
    assert times == [2.0 * number for number in range(1, 30)]
    assert client.counters()["timed_out"] == 1


def test_hanging_up_sends_message_6_as_often_as_asked_and_closes_the_socket() -> None:
    outputs = list(a_client().hang_up(2))
    packets = [parse(output.payload) for output in sent(outputs)]
    assert [packet is not None and packet.is_hang_up for packet in packets] == [True, True]
    assert outputs[-1] == Close()
