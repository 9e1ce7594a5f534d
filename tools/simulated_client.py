"""A CU-SeeMe client as the captures of real ones show it, without its sockets.

Rule 1: no I/O and no clock: bytes and `now_s` (monotonic seconds) in, packets and notes out.
Rule 2: what is not addressed to the client (`dest_addr` neither 0 nor its own address) is dropped.
Rule 3: an OpenContinue with client entries has to name the client; otherwise it believes that nobody watches.
Rule 4: a peer that is silent for the silence time-out is gone, as the protocol says.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rewriter.cuseeme import (
    NO_ADDRESS,
    WINDOWS_FLAG,
    ClientEntry,
    CuSeeMePacket,
    DataType,
    DestinationFamily,
    Endpoint,
    Header,
    Message,
    OpenContinue,
    encode_audio,
    encode_open_continue,
    encode_payload,
    encode_video,
    parse,
)
from tools.simulated_wire import CUSEEME_PORT, Close, Note, Open, Output, Send, dotted, named, speakers, text

OPEN_INTERVAL_S: Final = 2.0
HEARS_AND_SPEAKS: Final = 3
WATCHES_AND_HEARS: Final = 7
LITTLE_ENDIAN_CUSEEME_PORT: Final = 0xE01D
"""What one real client writes as destination port of its media: 7648 with its bytes swapped."""
VIDEO_DATA: Final = bytes(number % 251 for number in range(1772))
FRAME_OCTETS: Final = 700
AUDIO_SAMPLES: Final = bytes(160)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a client behaves. `header_port`: what it writes into its packets, right or wrong."""

    name: str
    address: bytes
    header_port: int
    answers: bool = False
    addresses_peer: bool = False
    silence_timeout_s: float = 60.0


@dataclass(slots=True)
class Call:
    """What the client knows of one peer: a reflector or, in a direct call, another client."""

    peer: Endpoint
    heard_s: float
    next_open_s: float
    is_established: bool = False
    members: dict[bytes, str] = field(default_factory=dict)
    watched_by: set[bytes] = field(default_factory=set)
    media_seen: set[tuple[bytes, str]] = field(default_factory=set)


@dataclass(slots=True)
class Stream:
    """Media still to be sent: `left` packets, one each `interval_s`."""

    left: int
    interval_s: float
    next_s: float
    sent: int = 0


class Client:
    """A workstation's or an outside caller's CU-SeeMe. Its calls are keyed by the peer's UDP endpoint."""

    def __init__(self, habits: Habits) -> None:
        self._habits = habits
        self._calls: dict[Endpoint, Call] = {}
        self._streams: dict[str, Stream] = {}
        self._counters: Counter[str] = Counter()
        self._sequence = 0
        self._is_silent = False

    def deadline_s(self) -> float | None:
        """When `handle_time` has something to do, None if never."""
        times = [call.heard_s + self._habits.silence_timeout_s for call in self._calls.values()]
        if not self._is_silent:
            times += [call.next_open_s for call in self._calls.values()]
            times += [stream.next_s for stream in self._streams.values()]
        return min(times, default=None)

    def counters(self) -> dict[str, object]:
        """What was counted so far, and the calls that are open."""
        calls = [
            {"peer": named(peer), "established": call.is_established, "members": list(call.members.values())}
            for peer, call in self._calls.items()
        ]
        return {**self._counters, "calls": calls}

    def call(self, peer: Endpoint, now_s: float) -> Iterator[Output]:
        """Begin to send OpenContinue to a peer."""
        self._is_silent = False
        self._calls[peer] = Call(peer, now_s, now_s)
        yield Open()
        yield Note("calling", {"peer": named(peer)})
        yield from self.handle_time(now_s)

    def stream(self, kind: str, count: int, per_second: float, now_s: float) -> Iterator[Output]:
        """Send `count` packets of video or audio to every established peer."""
        self._streams[kind] = Stream(count, 1 / per_second, now_s)
        yield from self.handle_time(now_s)

    def hang_up(self, times: int) -> Iterator[Output]:
        """Say goodbye (message 6) to every peer and close the socket; 0 times: vanish, as some clients do."""
        for call in self._calls.values():
            for _ in range(times):
                yield self._open_continue(call, Message.CLOSE)
        yield Note("hung_up", {"peers": [named(peer) for peer in self._calls]})
        self._calls.clear()
        self._streams.clear()
        yield Close()

    def abandon(self) -> Iterator[Output]:
        """Forget all calls without a word; the socket stays open."""
        self._calls.clear()
        self._streams.clear()
        yield Note("abandoned")

    def fall_silent(self) -> Iterator[Output]:
        """Send nothing more, as a crashed program's machine does, until `resume` or the next call."""
        self._is_silent = True
        yield Note("silent")

    def resume(self, now_s: float) -> Iterator[Output]:
        """Go on sending."""
        self._is_silent = False
        yield Note("resumed")
        yield from self.handle_time(now_s)

    def handle_time(self, now_s: float) -> Iterator[Output]:
        """Do what is due: silent peers, keep-alives, media."""
        for call in list(self._calls.values()):
            if now_s - call.heard_s >= self._habits.silence_timeout_s:
                del self._calls[call.peer]
                self._counters["timed_out"] += 1
                yield Note("timed_out", {"peer": named(call.peer), "established": call.is_established})
        if self._is_silent:
            return
        for call in self._calls.values():
            if now_s >= call.next_open_s:
                call.next_open_s = now_s + OPEN_INTERVAL_S
                yield self._open_continue(call, Message.OPEN)
        for kind, stream in list(self._streams.items()):
            yield from self._send_media(kind, stream, now_s)

    def receive(self, payload: bytes, source: Endpoint, now_s: float) -> Iterator[Output]:
        """Take one datagram."""
        packet = parse(payload)
        if packet is None:
            self._counters["too_short"] += 1
            return
        kind = text(packet.header.data_type)
        if packet.header.destination_address not in (NO_ADDRESS, self._habits.address):
            self._counters["dropped"] += 1
            addressed = dotted(packet.header.destination_address)
            yield Note("dropped", {"kind": kind, "addressed_to": addressed, "peer": named(source)})
            return
        call = self._calls.get(source)
        if call is None and self._habits.answers and packet.is_new_call and not self._is_silent:
            call = self._calls[source] = Call(source, now_s, now_s)
            yield Note("called", {"peer": named(source), "name": packet.user_name})
        if call is None:
            self._counters["strangers"] += 1
            yield Note("stranger", {"kind": kind, "peer": named(source)})
            return
        call.heard_s = now_s
        self._counters[f"received_{kind}"] += 1
        yield from self._receive_in_call(packet, payload, call, kind)
        yield from self.handle_time(now_s)

    def _receive_in_call(
        self, packet: CuSeeMePacket, payload: bytes, call: Call, kind: str
    ) -> Iterator[Output]:
        match packet.header.data_type:
            case DataType.ACKNOWLEDGEMENT:
                yield from self._establish(call, "login")
            case DataType.TEXT_THEN_DISCONNECT:
                words = packet.body.lstrip(bytes(2)).partition(b"\r\r")[2].decode(errors="replace")
                yield Note("refused", {"peer": named(call.peer), "text": words})
            case DataType.RATE_REQUEST if not self._is_silent:
                yield self._rate_reply(packet, call)
            case DataType.OPEN_CONTINUE:
                yield from self._receive_open_continue(packet, call)
            case DataType.SMALL_VIDEO | DataType.BIG_VIDEO | DataType.AUDIO:
                yield from self._receive_media(packet, payload, call, kind)
            case _:
                pass

    def _establish(self, call: Call, event: str) -> Iterator[Output]:
        if not call.is_established:
            call.is_established = True
            yield Note(event, {"peer": named(call.peer)})

    def _receive_open_continue(self, packet: CuSeeMePacket, call: Call) -> Iterator[Output]:
        member = packet.header.address
        if packet.is_hang_up:
            if member in call.members:
                self._counters["peer_hung_up"] += 1
                yield Note("peer_hung_up", {"peer": named(call.peer), **self._naming(call, member)})
                call.members.pop(member)
                call.watched_by.discard(member)
            if not _is_relayed(member):
                self._calls.pop(call.peer, None)
            return
        if member not in call.members:
            call.members[member] = packet.user_name or ""
            call.next_open_s = 0.0  # Answered at once, so that the other one learns who watches it.
            yield Note("member", {"peer": named(call.peer), **self._naming(call, member)})
        if not _is_relayed(member):
            yield from self._establish(call, "connected")
        yield from self._check_entries(packet, call, member)

    def _check_entries(self, packet: CuSeeMePacket, call: Call, member: bytes) -> Iterator[Output]:
        entries = packet.open_continue.entries if packet.open_continue else ()
        addresses = [entry.address for entry in entries if entry.address != NO_ADDRESS]
        if self._habits.address in addresses:
            self._counters["entries_naming_us"] += 1
            if member not in call.watched_by:
                call.watched_by.add(member)
                yield Note("watched", {"peer": named(call.peer), **self._naming(call, member)})
        elif addresses:
            self._counters["wrong_entry"] += 1
            yield Note("wrong", {"what": "entry", "entries": [dotted(address) for address in addresses]})

    def _receive_media(
        self, packet: CuSeeMePacket, payload: bytes, call: Call, kind: str
    ) -> Iterator[Output]:
        member = packet.header.address
        if (member, kind) not in call.media_seen:
            call.media_seen.add((member, kind))
            yield Note("media", {"kind": kind, "peer": named(call.peer), **self._naming(call, member)})
        if packet.header.data_type == DataType.AUDIO and not _is_relayed(member):
            allowed = (self._habits.address, call.peer.address)
            foreign = [dotted(name) for name in speakers(payload) if name not in allowed]
            if foreign:
                self._counters["wrong_speaker"] += 1
                yield Note("wrong", {"what": "speaker", "speakers": foreign})

    def _send_media(self, kind: str, stream: Stream, now_s: float) -> Iterator[Output]:
        while stream.left and now_s >= stream.next_s:
            stream.left -= 1
            stream.next_s += stream.interval_s
            stream.sent += 1
            for call in self._calls.values():
                if call.is_established:
                    yield from self._audio(call) if kind == "audio" else self._frame(call, stream.sent)
        if not stream.left:
            del self._streams[kind]
            yield Note("sent", {"kind": kind, "count": stream.sent})

    def _frame(self, call: Call, number: int) -> Iterator[Send]:
        # Each tenth frame is large: a packet of 1,800 bytes, which crosses as fragments, and the rest.
        if number % 10 == 5:
            header = self._header(call, Message.MORE_OF_FRAME)
            yield self._media(call, "video", encode_video(header, VIDEO_DATA))
        header = self._header(call, Message.END_OF_FRAME)
        yield self._media(call, "video", encode_video(header, VIDEO_DATA[:FRAME_OCTETS]))

    def _audio(self, call: Call) -> Iterator[Send]:
        named_speakers: tuple[bytes, ...] = (self._habits.address,)
        if self._habits.addresses_peer:
            named_speakers += (call.peer.address,)
        header = self._header(call, Message.END_OF_FRAME)
        yield self._media(call, "audio", encode_audio(header, AUDIO_SAMPLES, named_speakers))

    def _media(self, call: Call, kind: str, payload: bytes) -> Send:
        self._counters[f"sent_{kind}"] += 1
        return Send(payload, call.peer)

    def _open_continue(self, call: Call, message: Message) -> Send:
        self._counters["sent_hang_up" if message == Message.CLOSE else "sent_open_continue"] += 1
        entries = tuple(
            ClientEntry(address, WATCHES_AND_HEARS, will_receive=1) for address in sorted(call.members)
        )
        body = OpenContinue(
            sequence=self._sequence,
            user_name=self._habits.name,
            flags=HEARS_AND_SPEAKS | WINDOWS_FLAG,
            entries=entries if message == Message.OPEN else (),
        )
        return Send(encode_open_continue(self._header(call, message, is_open_continue=True), body), call.peer)

    def _rate_reply(self, packet: CuSeeMePacket, call: Call) -> Send:
        octets, clock = packet.body[2:6], packet.body[6:10]
        body = b"\x01" + bytes(5) + octets * 2 + clock * 2
        header = Header(
            destination_family=DestinationFamily.EXAMINE,
            destination_port=LITTLE_ENDIAN_CUSEEME_PORT,
            port=self._habits.header_port,
            address=self._habits.address,
            data_type=DataType.RATE_REPLY,
        )
        self._counters["sent_rate_reply"] += 1
        return Send(encode_payload(header, body), call.peer)

    def _header(self, call: Call, message: Message, *, is_open_continue: bool = False) -> Header:
        self._sequence += 1
        header = Header(
            destination_family=DestinationFamily.EXAMINE,
            port=self._habits.header_port,
            address=self._habits.address,
            sequence=self._sequence,
            message=message,
        )
        if is_open_continue:
            return header
        addressed = call.peer.address if self._habits.addresses_peer else NO_ADDRESS
        return Header(
            destination_family=(
                DestinationFamily.PRIVATE if self._habits.addresses_peer else DestinationFamily.EVERYBODY
            ),
            destination_port=CUSEEME_PORT if self._habits.addresses_peer else LITTLE_ENDIAN_CUSEEME_PORT,
            destination_address=addressed,
            port=header.port,
            address=header.address,
            sequence=header.sequence,
            message=message,
        )

    def _naming(self, call: Call, member: bytes) -> dict[str, object]:
        return {"member": dotted(member), "name": call.members.get(member)}


def _is_relayed(address: bytes) -> bool:
    """Whether a header address is a reflector's virtual one, 127.0.0.N."""
    return address[0] == 127
