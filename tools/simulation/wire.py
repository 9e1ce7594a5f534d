"""The simulated network between workers and tracker: ZeroMQ's sockets as far as we use them.

Rule 1: within a connection frames come in order, or not at all once it has broken; across connections of
one worker in any order. Rule 2: what was under way when a connection broke is lost from some frame on, and
what is not may come after frames of the next connection. Rule 3: a frame may come twice (a proxy, an old
connection's buffer): nobody promises that it can't. Rule 4: as with ZMQ_IMMEDIATE, who is not connected
can't send.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

import zmq

from tools.simulation.promises import RESTS
from tools.simulation.world import MILLISECOND_NS, Killed, Process, World

MOST_POLLS: Final = 1_000
EVERYBODY: Final = ""
AGAIN: Final = zmq.Again()
HANDSHAKE_NS: Final = 2 * MILLISECOND_NS


@dataclass(slots=True)
class Weather:
    """How bad the network is."""

    delay_ns: tuple[int, int] = (50_000, 500_000)
    duplicates: float = 0.0


@dataclass(eq=False, slots=True)
class Connection:
    """`lost_ns`: frames that would come later than this do not come any more."""

    identity: bytes
    client: "DealerSocket"
    server: "RouterSocket"
    lost_ns: int | None = None
    last_ns: list[int] = field(default_factory=lambda: [0, 0])


class Network:
    """All endpoints and connections. `heard`: a process has read a frame; `sent`: the tracker sends one."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.weather = weather
        self.servers: dict[str, RouterSocket] = {}
        self.connections: list[Connection] = []
        self.heard: Callable[[Process, bytes], object] = lambda _, __: None
        self.sent: Callable[[bytes], object] = lambda _: None
        self._identities = 0
        self._cut_until_ns: dict[str, int] = {}  # by host; EVERYBODY
        self._chance = world.chance("network")

    # --- what goes wrong ---------------------------------------------------------------------------------

    def cut(self, for_ns: int, host: str = EVERYBODY) -> None:
        """Nothing comes through for so long between hosts, or between this one and the tracker's.

        What was sent comes then, or breaks.
        """
        until_ns = self.world.now_ns + for_ns
        self._cut_until_ns[host] = max(self._cut_until_ns.get(host, 0), until_ns)

    def is_clear(self, host: str) -> bool:
        """Whether this host and the tracker's can hear each other."""
        return self.world.now_ns >= self._clear_ns(host)

    def _clear_ns(self, host: str) -> int:
        return max(self._cut_until_ns.get(EVERYBODY, 0), self._cut_until_ns.get(host, 0))

    def reset(self) -> None:
        """All connections between hosts break."""
        for connection in [it for it in self.connections if self._far(it.client, it.server)]:
            self.disconnect(connection)

    def _far(self, client: "DealerSocket", server: "RouterSocket") -> bool:
        return client.process.host is not server.process.host

    # --- connections -------------------------------------------------------------------------------------

    def connect(self, client: "DealerSocket") -> None:
        """Now if possible, else again and again."""
        if client.closed or client.connection is not None:
            return
        server = self.servers.get(client.endpoint)
        far = server is not None and self._far(client, server)
        cut = far and not self.is_clear(client.process.host.name)
        if server is None or cut or server.process.stopped:
            self.world.after(self._chance.randrange(50, 500) * MILLISECOND_NS, partial(self.connect, client))
            return
        self._identities += 1
        connection = Connection(self._identities.to_bytes(5, "big"), client, server)
        self.connections.append(connection)
        client.connection = connection
        server.peers[connection.identity] = connection
        client.process.notify()

    def disconnect(self, connection: Connection) -> None:
        """It breaks: some of what is under way still comes."""
        if connection.lost_ns is not None:
            return
        connection.lost_ns = self.world.now_ns + self._chance.choice(
            (0, 0, self._delay_ns(), 10 * self._delay_ns())
        )
        self.connections.remove(connection)
        connection.server.peers.pop(connection.identity, None)
        connection.client.connection = None
        connection.client.lost_ns = self.world.now_ns
        self.world.after(
            self._chance.randrange(50, 500) * MILLISECOND_NS, partial(self.connect, connection.client)
        )

    def bind(self, endpoint: str, server: "RouterSocket") -> None:
        self.servers[endpoint] = server

    def unbind(self, endpoint: str) -> None:
        self.servers.pop(endpoint, None)
        for connection in [it for it in self.connections if it.client.endpoint == endpoint]:
            self.disconnect(connection)

    # --- frames ------------------------------------------------------------------------------------------

    def _delay_ns(self) -> int:
        return self._chance.randrange(*self.weather.delay_ns)

    def carry(self, connection: Connection, frame: bytes, *, up: bool) -> None:
        """Bring a frame to the other end of its connection, in its order."""
        at_ns = self.world.now_ns + self._delay_ns()
        if self._far(connection.client, connection.server):
            at_ns += max(0, self._clear_ns(connection.client.process.host.name) - self.world.now_ns)
        at_ns = connection.last_ns[up] = max(at_ns, connection.last_ns[up])
        self.world.at(at_ns, partial(self._deliver, connection, frame, up=up))
        if up and self._chance.random() < self.weather.duplicates:
            later_ns = at_ns + self._chance.randrange(3_000) * MILLISECOND_NS
            self.world.at(later_ns, partial(self._deliver, connection, frame, up=True))

    def _deliver(self, connection: Connection, frame: bytes, *, up: bool) -> None:
        lost = connection.lost_ns is not None and self.world.now_ns > connection.lost_ns
        if lost or (connection.lost_ns is not None and not up):
            return
        if up and connection.server.process.alive:
            connection.server.inbox.append((connection.identity, frame))
            connection.server.process.notify()
        elif not up and not connection.client.closed:
            connection.client.inbox.append(frame)
            connection.client.process.notify()


class SimulatedSocket:
    """What both kinds have in common: options without effect."""

    process: Process

    def set(self, _option: int, _value: int) -> None:
        """Options change nothing here."""

    def readable(self) -> bool:
        raise NotImplementedError


class DealerSocket(SimulatedSocket):
    """A worker's."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.endpoint = ""
        self.connection: Connection | None = None
        self.inbox: deque[bytes] = deque()
        self.closed = False
        self.lost_ns = 0
        process.died.append(self._gone)

    def connect(self, endpoint: str) -> None:
        self.process.call()
        self.endpoint = endpoint
        self.network.world.after(HANDSHAKE_NS, partial(self.network.connect, self))

    def send(self, frame: bytes, _flags: int = 0) -> None:
        self.process.call()
        if self.connection is None:
            raise AGAIN.with_traceback(None)
        self.network.carry(self.connection, frame, up=True)

    def recv_multipart(self, _flags: int = 0) -> list[bytes]:
        if not self.inbox:
            raise AGAIN.with_traceback(None)
        self.process.call()
        frame = self.inbox.popleft()
        self.network.heard(self.process, frame)
        return [frame]

    def readable(self) -> bool:
        return bool(self.inbox)

    def close(self, linger: int = 0) -> None:
        del linger
        self.process.call()
        self._gone()

    def _gone(self) -> None:
        self.closed = True
        if self.connection is not None:
            self.network.disconnect(self.connection)


@dataclass(frozen=True, slots=True)
class SimulatedFrame:
    """zmq.Frame."""

    bytes: bytes

    def get(self, _option: str) -> str:
        """The address of a peer on this machine, as libzmq says it: pid, uid, gid."""
        return "ipc:0:0:1"


class RouterSocket(SimulatedSocket):
    """The tracker's."""

    def __init__(self, network: Network, process: Process, endpoint: str) -> None:
        self.network = network
        self.process = process
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.peers: dict[bytes, Connection] = {}
        network.bind(endpoint, self)
        process.died.append(lambda: network.unbind(endpoint))

    def recv_multipart(self, _flags: int = 0, *, copy: bool) -> list[SimulatedFrame]:
        if copy:
            raise ValueError("whoever copies does not hear who is at the other end")
        if not self.inbox:
            raise AGAIN.with_traceback(None)
        self.process.call()
        identity, frame = self.inbox.popleft()
        self.network.heard(self.process, frame)
        return [SimulatedFrame(identity), SimulatedFrame(frame)]

    def send_multipart(self, parts: Iterable[bytes], _flags: int = 0) -> None:
        self.process.call()
        identity, frame = parts
        self.network.sent(frame)
        connection = self.peers.get(identity)
        if connection is not None:
            self.network.carry(connection, frame, up=False)

    def readable(self) -> bool:
        return bool(self.inbox)


class IdlePorter:
    """Stands in for tracker.porter.Porter: nobody comes here by TCP."""

    sockets: Final[Sequence[SimulatedSocket]] = ()

    def work(self) -> None:
        """Nobody is at the door."""

    def close(self) -> None:
        """Nothing is left to close."""


class SimulatedContext:
    """zmq.Context, for the process that makes it."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, _kind: int) -> DealerSocket:
        return DealerSocket(self._network, self._network.world.process)

    def term(self) -> None:
        """Nothing is left to wait for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is left to close."""


class SimulatedPoller:
    """zmq.Poller over sockets and descriptors of the process that makes it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._registered: dict[object, Callable[[], bool]] = {}
        self._since_ns = 0
        self._polls = 0

    def register(self, source: object, _flags: int = 0) -> None:
        self._registered[source] = (
            source.readable if isinstance(source, SimulatedSocket) else partial(self._is_ready, source)
        )

    def unregister(self, source: object) -> None:
        del self._registered[source]

    def poll(self, timeout_ms: int) -> list[tuple[object, int]]:
        self._count()
        until_ns = self._process.world.now_ns + max(0, timeout_ms) * MILLISECOND_NS
        found = self._process.wait(self._ready, until_ns)
        self._process.polled()
        return found

    def _count(self) -> None:
        """Whoever polls again and again while no time passes would keep the simulation there for ever."""
        world = self._process.world
        if world.now_ns - self._since_ns > MILLISECOND_NS:
            self._since_ns, self._polls = world.now_ns, 0
        self._polls += 1
        if self._polls > MOST_POLLS:
            world.fail(RESTS, f"{self._process.name} polled {MOST_POLLS} times within a millisecond")
            raise Killed

    def _ready(self) -> list[tuple[object, int]]:
        return [(source, zmq.POLLIN) for source, is_ready in self._registered.items() if is_ready()]

    def _is_ready(self, source: object) -> bool:
        if source == STOP:
            return self._process.stop_requested
        found: Any = self._process.files.get(source) if isinstance(source, int) else None
        return found is not None and bool(found.readable())


STOP: Final = -1
"""The descriptor that becomes readable when a process is asked to stop."""


class SimulatedZmq:
    """Stands in for the module `zmq`; constants are the real ones."""

    Socket = SimulatedSocket

    def __init__(self, network: Network) -> None:
        self._network = network

    def Context(self) -> SimulatedContext:  # noqa: N802 - zmq's name
        return SimulatedContext(self._network)

    def Poller(self) -> SimulatedPoller:  # noqa: N802 - zmq's name
        return SimulatedPoller(self._network.world.process)

    def __getattr__(self, name: str) -> object:
        return getattr(zmq, name)
