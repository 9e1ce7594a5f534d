"""The simulated kernel does what the real one was seen to do (kernel-datapath.md, rewriter/ruleset.py)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from rewriter import ruleset
from rewriter.cuseeme import Message
from rewriter.vocabulary import Element, Ruleset, Service
from tools.simulation.netfilter import Kernel
from tools.simulation.nft import BatchRefused
from tools.simulation.packets import Packet, PacketQueue
from tools.simulation.site import Setting, services_of
from tools.simulation.world import SECOND_NS, Host, Process, World

ANN, BOB, PEER, PUBLIC = "192.168.1.10", "192.168.1.11", "198.51.100.7", "203.0.113.11"
SERVICES: tuple[Service, ...] = services_of(Setting(idle_s=5.0))
RULES = Ruleset(("lan",), ("wan",), SERVICES, 0x3F000000, 100, 101, native_queue=True)
ELEMENT = Element("cuseeme", IPv4Address(ANN), IPv4Address(PUBLIC))


@dataclass
class Onlooker:
    """Remembers what really happened to packets."""

    seen: list[tuple[str, ...]] = field(default_factory=list)

    def let_in(self, _gateway: str, public: str, _service: str, host: str) -> None:
        self.seen.append(("in", public, host))

    def let_out(self, _gateway: str, public: str, _service: str, host: str) -> None:
        self.seen.append(("out", public, host))

    def refreshed(self, _gateway: str, _service: str, host: str) -> None:
        del host

    def vanished(self, _gateway: str, _service: str, host: str) -> None:
        self.seen.append(("vanished", host))

    def overflowed(self, _gateway: str) -> None:
        self.seen.append(("overflowed",))

    def queued(self, _gateway: str, _process: Process, *, talk: bool) -> None:
        self.seen.append(("queued", "talk" if talk else "claim"))


@dataclass
class Bench:
    """A kernel with the first epoch's table, and nobody about."""

    world: World = field(default_factory=lambda: World(0))
    onlooker: Onlooker = field(default_factory=Onlooker)

    def __post_init__(self) -> None:
        self.kernel = Kernel(self.world, "gw1", SERVICES, PUBLIC, self.onlooker)
        self.apply(ruleset.render(RULES, 1, (), replaces=None))

    @property
    def apply(self) -> Callable[[str], None]:
        return self.kernel.tables.apply

    def listen(self) -> PacketQueue:
        """Somebody reads the queue of claims."""
        process = Process(self.world, Host(self.world, "gw1"), "worker", lambda: None, lambda _: None)
        queue = self.kernel.queues[RULES.claim_queue] = PacketQueue(process, passes_when_full=False)
        return queue

    def out(self, host: str = ANN, talk: int | None = None) -> None:
        self.kernel.from_lan(Packet(host, 7648, PEER, 7648, talk))

    def back(self) -> None:
        self.kernel.from_wan(Packet(PEER, 7648, PUBLIC, 7648, None))

    def has(self, name: str, key: str) -> bool:
        return self.kernel.tables.find(name).live(key, self.world.now_ns) is not None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_batch_of_another_epoch_is_refused_whole(bench: Bench) -> None:
    with pytest.raises(BatchRefused):
        bench.apply(ruleset.install(RULES, 2, ELEMENT))
    assert not bench.has("cuseeme_holders", ANN)
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    assert bench.has("cuseeme_holders", ANN)


def test_a_batch_that_deletes_what_is_not_there_changes_nothing(bench: Bench) -> None:
    bench.apply(ruleset.refuse(1, SERVICES[0], IPv4Address(BOB)))
    with pytest.raises(BatchRefused, match="No such file"):
        bench.apply(ruleset.withdraw(1, SERVICES[0], [("cuseeme_holders", ANN)]))
    assert bench.has("cuseeme_refused", BOB)


def test_a_public_address_has_one_target(bench: Bench) -> None:
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    with pytest.raises(BatchRefused, match="File exists"):
        bench.apply(ruleset.install(RULES, 1, Element("cuseeme", IPv4Address(BOB), IPv4Address(PUBLIC))))
    assert not bench.has("cuseeme_holders", BOB)


def test_a_newer_table_takes_the_older_ones_place_and_no_older_one_its_own(bench: Bench) -> None:
    bench.apply(ruleset.render(RULES, 2, [ELEMENT], replaces=1))
    assert bench.has("cuseeme_holders", ANN)
    with pytest.raises(BatchRefused):
        bench.apply(ruleset.render(RULES, 1, (), replaces=1))
    with pytest.raises(BatchRefused):
        bench.apply(ruleset.render(RULES, 3, (), replaces=None))


def test_an_idle_time_goes_on_where_it_stood_and_is_refreshed_by_packets(bench: Bench) -> None:
    bench.apply(
        ruleset.render(RULES, 2, [Element("cuseeme", ELEMENT.holder, ELEMENT.public, 2.0)], replaces=1)
    )
    bench.world.now_ns += SECOND_NS
    bench.out()
    bench.world.now_ns += 4 * SECOND_NS
    assert bench.has("cuseeme_holders", ANN)
    assert bench.has("cuseeme_inbound", PUBLIC)
    bench.world.now_ns += SECOND_NS
    assert not bench.has("cuseeme_holders", ANN)


def test_one_claim_is_queued_however_many_packets_there_are(bench: Bench) -> None:
    queue = bench.listen()
    for _ in range(100):
        bench.out()
    assert len(queue.packets) == 1


def test_a_claim_that_nobody_listens_for_does_not_pass(bench: Bench) -> None:
    bench.out()
    assert bench.onlooker.seen == []


def test_a_talk_passes_a_queue_that_nobody_listens_to(bench: Bench) -> None:
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    bench.apply(ruleset.keep_alive(1))
    bench.out(talk=Message.OPEN)
    assert bench.onlooker.seen == [("overflowed",), ("out", PUBLIC, ANN)]


def test_answers_come_back_to_the_holder_and_not_once_it_holds_no_longer(bench: Bench) -> None:
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    bench.out()
    bench.back()
    assert bench.onlooker.seen == [("out", PUBLIC, ANN), ("in", PUBLIC, ANN)]
    keys = [("cuseeme_holders", ANN), ("cuseeme_outbound", ANN), ("cuseeme_inbound", PUBLIC)]
    bench.apply(ruleset.withdraw(1, SERVICES[0], keys))
    bench.back()
    assert len(bench.onlooker.seen) == 2


def test_a_connection_to_nobody_keeps_the_next_holders_tuple(bench: Bench) -> None:
    bench.back()
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    bench.out()
    assert ("vanished", ANN) in bench.onlooker.seen


def test_a_packet_that_lingers_behind_the_fence_brings_its_connection_back(bench: Bench) -> None:
    bench.apply(ruleset.install(RULES, 1, ELEMENT))
    bench.kernel.linger = 1.0
    while not bench.kernel.lingering:
        bench.out()
    assert list(bench.kernel.entries()) == []
    bench.world.run(bench.world.now_ns + SECOND_NS)
    assert len(list(bench.kernel.entries())) == 1
