"""A CU-SeeMe reflector as the captures of a real one show it, without its sockets.

Rule 1: no I/O and no clock: bytes and `now_s` (monotonic seconds) in, packets and notes out.
Rule 2: a member is known by (UDP address, UDP port, header address, header port). A packet with another key
is dropped in silence unless it is an OpenContinue: a call rewritten only in part logs in and loses its media.
Rule 3: what is sent, when, how often and how long it is follows "Poor Man's Reflector v1.9.14" on the wire.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor
from typing import Final, NamedTuple

from rewriter.cuseeme import (
    HEADER_LENGTH,
    OPEN_CONTINUE_LENGTH,
    ClientEntry,
    CuSeeMePacket,
    DataType,
    DestinationFamily,
    Endpoint,
    Family,
    Header,
    Message,
    encode_payload,
    parse,
)
from tools.simulated_wire import Note, Output, Send, dotted, speakers, text

SOFTWARE: Final = b"Poor Man's Reflector v1.9.14 (2006/06/03 13:59:17 JST)\r\r"
WELCOME: Final = SOFTWARE + b"Welcome to the test reflector"
RATE_INTERVAL_S: Final = 6.0
ACKNOWLEDGEMENT_INTERVAL_S: Final = 31.0
FIRST_MEMBER: Final = 2
IP_AND_UDP_HEADERS: Final = 28
CLIENT_ENTRY_LENGTH: Final = 12
ACCEPT_CLOSE_FLAG: Final = 0x80
HEARS_FLAGS: Final = 0x06
"""Bits in a client entry's flags that only a client with sound sets (inferred: 07 with sound, 01 without)."""


class Key(NamedTuple):
    """What a reflector tells clients apart by."""

    udp: Endpoint
    header_address: bytes
    header_port: int


@dataclass(slots=True)
class Member:
    """A client that is logged in; `entries` are those of its last OpenContinue, times monotonic seconds."""

    key: Key
    number: int
    name: str
    heard_s: float
    next_rate_s: float
    next_acknowledgement_s: float
    octets: int = 0
    entries: tuple[ClientEntry, ...] = ()
    received: Counter[str] = field(default_factory=Counter)

    @property
    def virtual_address(self) -> bytes:
        """The address under which the others see this member."""
        return bytes((127, 0, 0, self.number))


class Reflector:
    """One conference. `strict`: refuse whoever's header address is not its UDP address, as "never" does."""

    def __init__(self, address: bytes, port: int, *, strict: bool, silence_timeout_s: float) -> None:
        self._own = Endpoint(address, port)
        self._strict = strict
        self._silence_timeout_s = silence_timeout_s
        self._members: dict[Key, Member] = {}
        self._strangers: set[Key] = set()
        self._next_number = FIRST_MEMBER
        self._counters: Counter[str] = Counter()

    def deadline_s(self) -> float | None:
        """When `handle_time` has something to do, None if never."""
        return min((self._deadline_of(member) for member in self._members.values()), default=None)

    def counters(self) -> dict[str, object]:
        """What was counted so far, and the members that are logged in."""
        members = [
            {"member": member.number, "name": member.name, **_names(member.key), **member.received}
            for member in self._members.values()
        ]
        return {**self._counters, "members": members}

    def receive(self, payload: bytes, source: Endpoint, now_s: float) -> Iterator[Output]:
        """Take one datagram."""
        packet = parse(payload)
        if packet is None:
            self._counters["too_short"] += 1
            return
        kind = text(packet.header.data_type)
        self._counters[f"received_{kind}"] += 1
        key = Key(source, packet.header.address, packet.header.port)
        if packet.is_open_continue:
            yield from self._receive_open_continue(packet, payload, key, now_s)
        elif member := self._members.get(key):
            member.received[kind] += 1
            yield from self._receive_media(packet, payload, member)
        else:
            yield from self._ignore(packet, key)

    def handle_time(self, now_s: float) -> Iterator[Output]:
        """Do what is due: rate requests, acknowledgements, silent members."""
        for member in list(self._members.values()):
            if now_s - member.heard_s >= self._silence_timeout_s:
                del self._members[member.key]
                yield self._note("left", member, cause="silence")
                continue
            if now_s >= member.next_rate_s:
                member.next_rate_s += RATE_INTERVAL_S
                yield self._rate_request(member, now_s)
            if now_s >= member.next_acknowledgement_s:
                member.next_acknowledgement_s += ACKNOWLEDGEMENT_INTERVAL_S
                yield self._acknowledgement(member)

    def _deadline_of(self, member: Member) -> float:
        return min(
            member.next_rate_s, member.next_acknowledgement_s, member.heard_s + self._silence_timeout_s
        )

    def _receive_open_continue(
        self, packet: CuSeeMePacket, payload: bytes, key: Key, now_s: float
    ) -> Iterator[Output]:
        if self._strict and key.header_address != key.udp.address:
            yield from self._refuse(key)
        elif packet.is_hang_up:
            if member := self._members.pop(key, None):
                yield self._note("left", member, cause="hang-up")
                yield from self._relay(payload, member, copies=3)
        else:
            if key not in self._members:
                yield from self._log_in(packet, key, now_s)
            member = self._members[key]
            member.heard_s = now_s
            member.received[text(packet.header.data_type)] += 1
            member.entries = packet.open_continue.entries if packet.open_continue else ()
            for other in self._others(member):
                yield self._send(_relayed_open_continue(packet, payload, member, other), other)

    def _log_in(self, packet: CuSeeMePacket, key: Key, now_s: float) -> Iterator[Output]:
        member = Member(
            key,
            self._next_number,
            packet.user_name or "",
            now_s,
            float(floor(now_s) + 1),
            float(floor(now_s) + ACKNOWLEDGEMENT_INTERVAL_S),
        )
        self._next_number += 1
        self._members[key] = member
        yield self._note("login", member)
        yield self._rate_request(member, now_s)
        yield self._acknowledgement(member)
        for _ in range(3):
            body = len(WELCOME).to_bytes(4, "big") + WELCOME
            yield self._send(self._originate(key, DataType.MESSAGE_OF_THE_DAY, body), member)

    def _refuse(self, key: Key) -> Iterator[Output]:
        self._counters["refused"] += 1
        yield Note("refused", {**_names(key)})
        message = (
            f"The IP Addresses of IP Header and CU-SeeMe Header are different. \r\r"
            f"IP Header : {dotted(key.udp.address)}, CU Header : {dotted(key.header_address)}"
        )
        data = SOFTWARE + message.encode()
        body = len(data).to_bytes(3, "big") + data
        # The real one addresses a refusal to the UDP address, everything else to the header address.
        addressed = key._replace(header_address=key.udp.address)
        for _ in range(3):
            yield Send(self._originate(addressed, DataType.TEXT_THEN_DISCONNECT, body), key.udp)

    def _ignore(self, packet: CuSeeMePacket, key: Key) -> Iterator[Output]:
        self._counters["ignored"] += 1
        if key not in self._strangers:
            self._strangers.add(key)
            yield Note("ignored", {**_names(key), "kind": text(packet.header.data_type)})

    def _receive_media(self, packet: CuSeeMePacket, payload: bytes, member: Member) -> Iterator[Output]:
        if packet.header.data_type == DataType.AUDIO:
            foreign = [dotted(name) for name in speakers(payload) if name != member.key.udp.address]
            if foreign:
                self._counters["wrong_speaker"] += 1
                yield Note("wrong", {"what": "speaker", "speakers": foreign, **_names(member.key)})
        if packet.header.data_type != DataType.RATE_REPLY:
            yield from self._relay(payload, member)

    def _relay(self, payload: bytes, member: Member, copies: int = 1) -> Iterator[Output]:
        relayed = payload[:12] + member.virtual_address + payload[16:]
        data_type = int.from_bytes(payload[22:24], "big")
        for other in self._others(member):
            if _wants(other, member, data_type):
                for _ in range(copies):
                    yield self._send(relayed, other)

    def _others(self, member: Member) -> list[Member]:
        return [other for other in self._members.values() if other is not member]

    def _rate_request(self, member: Member, now_s: float) -> Send:
        octets = member.octets + IP_AND_UDP_HEADERS + HEADER_LENGTH + 10
        clock_ms = int(now_s * 1000) & 0xFFFFFFFF
        body = b"\x01\x00" + octets.to_bytes(4, "big") + clock_ms.to_bytes(4, "big")
        return self._send(self._originate(member.key, DataType.RATE_REQUEST, body), member)

    def _acknowledgement(self, member: Member) -> Send:
        packet = self._originate(member.key, DataType.ACKNOWLEDGEMENT, message=Message.ACKNOWLEDGEMENT)
        return self._send(packet, member)

    def _originate(self, key: Key, data_type: DataType, body: bytes = b"", message: int = 0) -> bytes:
        return encode_payload(
            Header(
                destination_family=DestinationFamily.PRIVATE,
                destination_port=key.udp.port,
                destination_address=key.header_address,
                family=Family.REFLECTOR,
                port=self._own.port,
                address=self._own.address,
                message=message,
                data_type=data_type,
            ),
            body,
        )

    def _send(self, payload: bytes, member: Member) -> Send:
        member.octets += IP_AND_UDP_HEADERS + len(payload)
        self._counters["sent"] += 1
        return Send(payload, member.key.udp)

    def _note(self, event: str, member: Member, **more: str) -> Note:
        self._counters[event] += 1
        return Note(event, {"member": member.number, "name": member.name, **_names(member.key), **more})


def _names(key: Key) -> dict[str, str]:
    """A key as people and tests read it."""
    return {
        "udp": f"{dotted(key.udp.address)}:{key.udp.port}",
        "header": f"{dotted(key.header_address)}:{key.header_port}",
    }


def _wants(listener: Member, speaker: Member, data_type: int) -> bool:
    """Whether the listener's entry for the speaker asks for packets of this type."""
    entry = next((e for e in listener.entries if e.address == speaker.virtual_address), None)
    if data_type in (DataType.SMALL_VIDEO, DataType.BIG_VIDEO):
        return entry is not None and entry.will_receive != 0
    if data_type == DataType.AUDIO:
        return entry is not None and entry.flags & HEARS_FLAGS != 0
    return True


def _relayed_open_continue(packet: CuSeeMePacket, payload: bytes, sender: Member, recipient: Member) -> bytes:
    """The sender's OpenContinue as the recipient gets it: with one entry at most, the recipient's own."""
    body = packet.open_continue
    if body is None:
        return payload[:12] + sender.virtual_address + payload[16:]
    kept = b""
    if body.client_count:
        # The sender knows the recipient by its virtual address, the recipient knows itself by what it wrote.
        known_as = recipient.virtual_address
        number = next((n for n, entry in enumerate(body.entries) if entry.address == known_as), None)
        if number is None:
            kept = bytes(CLIENT_ENTRY_LENGTH)
        else:
            start = OPEN_CONTINUE_LENGTH + CLIENT_ENTRY_LENGTH * number
            kept = recipient.key.header_address + payload[start + 4 : start + CLIENT_ENTRY_LENGTH]
    extras = body.extras
    if extras.endswith(b"\x01\0\0\0"):
        extras = extras[:-4] + b"\x01\0\x01\0"
    relayed = bytearray(payload[:OPEN_CONTINUE_LENGTH] + kept + extras)
    relayed[12:16] = sender.virtual_address
    relayed[24:26] = len(relayed).to_bytes(2, "big")
    relayed[26:28] = min(body.client_count, 1).to_bytes(2, "big")
    relayed[54] |= ACCEPT_CLOSE_FLAG
    return bytes(relayed)
