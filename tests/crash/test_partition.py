"""A tracker and workers on three hosts, and the network between them cut and healed: linearizable?

Each host is a network namespace, what goes between them is TCP with CURVE, and nftables cuts it: both ways or
one, for longer than the lease.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.crash.linearizability import GatewayModel, is_linearizable
from tests.crash.place import Place
from tests.crash.remote_site import Site
from tests.crash.test_linearizable import GATEWAYS, LEASE_S, WORKERS, Fleet
from tools import namespaces
from tools.lab import wait_until
from tools.namespaces import carry_out
from tracker.events import SessionOpened, WorkerLost
from tracker.keyring import generate, write_secret_key
from tracker.roles import Role

CUTS = (("a",), ("b",), ("a", "b"))


@dataclass
class Network:
    """Three namespaces: the tracker's, and one for the workers of each letter."""

    prefix: str = field(default_factory=namespaces.new_prefix)

    def name(self, host: str) -> str:
        return self.prefix + host

    def build(self) -> None:
        namespaces.check_machine()
        hosts = ("tracker", "a", "b")
        carry_out(None, [f"netns add {self.name(host)}" for host in hosts])
        for host in hosts:
            namespaces.within(self.name(host), namespaces.set_namespace_up)
        for number, host in enumerate("ab", start=1):
            peer = f"type veth peer name eth0 netns {self.name(host)}"
            carry_out(None, [f"link add to-{host} netns {self.name('tracker')} {peer}"])
            for place, interface, last in (("tracker", f"to-{host}", 1), (host, "eth0", 2)):
                address = f"address add 10.77.{number}.{last}/24 dev {interface}"
                carry_out(self.name(place), [address, f"link set {interface} up"])
        for host, router in (("a", "10.77.1.1"), ("b", "10.77.2.1")):
            carry_out(self.name(host), [f"route add default via {router}"])
        namespaces.await_links(map(self.name, hosts))

    @contextmanager
    def cut(self, hosts: tuple[str, ...], ways: tuple[str, ...]) -> Iterator[None]:
        """The tracker has no packet of these hosts (`input`), they none of its own (`output`), or both."""
        words = {"input": "iifname", "output": "oifname"}
        named = ", ".join(f'"to-{host}"' for host in hosts)
        chains = [
            f"chain {way} {{ type filter hook {way} priority 0; {words[way]} {{ {named} }} drop; }}"
            for way in ways
        ]
        self._nft("table ip partition {\n" + "\n".join(chains) + "\n}")
        try:
            yield
        finally:
            self._nft("delete table ip partition")

    def _nft(self, text: str) -> None:
        words = ["ip", "netns", "exec", self.name("tracker"), "nft", "-f", "-"]
        subprocess.run(words, input=text, text=True, check=True)

    def remove(self) -> None:
        namespaces.remove([self.name(host) for host in ("tracker", "a", "b")])


class RemoteFleet(Fleet):
    """The same workers, those of each letter on a host of their own."""

    def __init__(self, place: Place, seed: int, site: Site, network: Network) -> None:
        super().__init__(place, seed)
        self._site, self._network = site, network
        for worker, gateway in WORKERS.items():
            key = generate(Role.WORKER.value, worker)
            site.authorise(key, Role.WORKER, gateway)
            write_secret_key(place.directory / f"{worker}.key", key)

    def start(self, worker: str) -> None:
        within = ["ip", "netns", "exec", self._network.name(worker[-1])]
        key = str(self.place.directory / f"{worker}.key")
        self.run(worker, self._site.endpoint, key, self._site.own.public, within=within)


def test_whatever_the_network_cuts_every_answer_fits_one_order_of_events(place: Place) -> None:
    seed = int(os.environ.get("PORTHOLD_SEED", random.randrange(2**32)))
    chance = random.Random(seed)
    network = Network()
    with ExitStack() as stack:
        stack.callback(network.remove)
        network.build()
        site = Site(place)
        site.endpoint = "tcp://10.77.1.1:7650"
        site.configure(lease_s=LEASE_S)
        namespaces.within(network.name("tracker"), place.start)
        fleet = RemoteFleet(place, seed, site, network)
        stack.callback(fleet.kill)
        for worker in WORKERS:
            fleet.start(worker)
        wait_until(lambda: len(place.status().sessions) == len(GATEWAYS), "sessions of all gateways", 60)
        for ways in (("input", "output"), ("input",), ("output",)):
            for hosts in CUTS:
                with network.cut(hosts, ways):
                    time.sleep(chance.uniform(1.2, 1.4) * LEASE_S)
                time.sleep(chance.uniform(0.1, 0.4))
        fleet.end()
        assert place.kill(signal.SIGTERM)[0] == 0
    place.check()
    events = place.events()
    assert any(isinstance(event, WorkerLost) for event in events)
    assert len({event.worker for event in events if isinstance(event, SessionOpened)}) == len(WORKERS)
    for gateway in GATEWAYS:
        history = fleet.history(gateway)
        done = [it.action[0] for it in history if it.result is not None]
        assert min(done.count(what) for what in ("open", "renew", "claim", "release")) >= 3, done
        assert is_linearizable(history, GatewayModel()), f"PORTHOLD_SEED={seed}: {gateway}"
