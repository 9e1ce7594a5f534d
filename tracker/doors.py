"""The sockets by which the tracker is spoken to, and who comes in by which.

Rule 1: who a frame is from is what libzmq and the kernel say of its connection, never what the frame says.
Rule 2: on this machine every role has a socket of its own, and the file's mode says who may use it. Rule 3: a
socket is made for nobody first, and opened to its mode when it belongs to its group. Rule 4: by TCP a key
says who it is, each time anew: one that is taken away is not heard any more, and gets nothing. Rule 5:
nothing here waits: what a peer does not take is dropped, and said to be.

A message of endless parts fills the memory: libzmq gathers them all, and has no limit for it. So who has a
role, and only he, could bring the tracker down; the units' MemoryMax is for that.
"""

import grp
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import zmq

from eventlog.lock import LogLocked, WriterLock
from tracker.configuration import IPC, LimitsSection, TrackerSection
from tracker.dialling import keep_alive
from tracker.keyring import TRACKER_ROLE, AuthorisedKey, Keyring, SecretKey, read_secret_key
from tracker.messages import REQUEST_LIMIT
from tracker.porter import REMOTE, Porter
from tracker.roles import Caller, Role

Socket = zmq.Socket[bytes]
_LINGER_MS: Final = 500
_UNIX: Final = "unix"


class EndpointUnusable(Exception):
    """No socket can be made there."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection, where answers to what came by it go; `key`: what was proved there, by TCP."""

    door: "Door"
    identity: bytes
    key: str | None


class Arrival(NamedTuple):
    """A message as it came; `parts` has one item, unless the sender is no worker of ours.

    `caller` None: the key is not authorised any more.
    """

    peer: Peer
    caller: Caller | None
    parts: list[bytes]


class Door:
    """A ROUTER socket; `role` None: by TCP, where the key says it."""

    def __init__(self, socket: Socket, role: Role | None, keyring: Keyring | None = None) -> None:
        self.socket = socket
        self._role = role
        self._keyring = keyring

    def receive(self) -> Arrival | None:
        """The next message; None: there is none now."""
        try:
            identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        last = frames[-1] if frames else identity
        key = None if self._role is not None else _property(last, "User-Id")
        peer = Peer(self, identity.bytes, key)
        return Arrival(peer, self._caller(last, key), [frame.bytes for frame in frames])

    def send(self, peer: Peer, frame: bytes) -> bool:
        """Gives a frame to whoever is there; False: he is gone, does not read, or may not have it."""
        if peer.key is not None and peer.key not in self._authorised:
            return False
        try:
            self.socket.send_multipart([peer.identity, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    @property
    def _authorised(self) -> Mapping[str, AuthorisedKey]:
        return {} if self._keyring is None else self._keyring.authorised.keys

    def _caller(self, frame: zmq.Frame, key: str | None) -> Caller | None:
        if self._role is not None:
            taken = frozenset[str]() if self._keyring is None else self._keyring.authorised.names
            return Caller(self._role, _local_name(frame), taken=taken)
        known = self._authorised.get(key or "")
        if known is None:
            return None
        return Caller(known.role, known.name, frozenset(known.gateways), known.public)


@contextmanager
def opened_doors(
    context: zmq.Context[Socket], section: TrackerSection, porter: Porter, keyring: Keyring | None
) -> Iterator[list[Door]]:
    """One socket for each role, and those for TCP. EndpointUnusable, KeyUnusable.

    Those of this machine are removed at the end.
    """
    doors: list[Door] = []
    paths: list[tuple[Path, WriterLock]] = []
    try:
        for role in Role:
            local = section.local_socket(role)
            path = Path(local.endpoint.removeprefix(IPC))
            # libzmq would silently take a living tracker's socket away: its lock says whether there is one.
            paths.append((path, _claimed(path)))
            doors.append(Door(_router(context, section.limits), role, keyring))
            porter.watch(doors[-1].socket, role.value)
            _bind_local(doors[-1].socket, path, local.mode, local.group)
        if section.server_key is not None:
            own = read_secret_key(section.server_key, TRACKER_ROLE)
            for endpoint in section.listen:
                doors.append(Door(_router(context, section.limits), None, keyring))
                porter.watch(doors[-1].socket, REMOTE)
                _bind_remote(doors[-1].socket, endpoint, own)
        yield doors
    finally:
        for door in doors:
            door.socket.disable_monitor()
            door.socket.close()
        for path, lock in paths:
            path.unlink(missing_ok=True)
            lock.release()


def _router(context: zmq.Context[Socket], limits: LimitsSection) -> Socket:
    """A ROUTER socket with what all of them have in common."""
    socket = context.socket(zmq.ROUTER)
    socket.set(zmq.MAXMSGSIZE, 2 * REQUEST_LIMIT)  # up to here we count it, beyond libzmq hangs up
    socket.set(zmq.SNDHWM, limits.queue)
    socket.set(zmq.RCVHWM, limits.queue)
    socket.set(zmq.ROUTER_MANDATORY, 1)  # else it would not say what it drops
    socket.set(zmq.LINGER, _LINGER_MS)
    return socket


def _bind_remote(socket: Socket, endpoint: str, own: SecretKey) -> None:
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, own.secret.encode())
    keep_alive(socket)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise EndpointUnusable(f"{endpoint}: {error.strerror}") from error


def _claimed(path: Path) -> WriterLock:
    """The right to make this socket. EndpointUnusable, LogLocked: another tracker has it."""
    try:
        directory = path.parent.stat()
        if directory.st_mode & 0o022 and not directory.st_mode & stat.S_ISVTX:
            raise EndpointUnusable(
                f"{path.parent}: others may put a socket of theirs in the place of {path.name};"
                f" mend it: chmod go-w {path.parent}"
            )
        lock = WriterLock(path)
    except LogLocked as error:
        raise EndpointUnusable(f"{path} is the socket of {error.holder or 'another process'}") from error
    except OSError as error:
        raise EndpointUnusable(f"{path}: {error.strerror}") from error
    if path.exists() and not path.is_socket():
        lock.release()
        raise EndpointUnusable(f"{path} is there, and is no socket; mend it: move it away")
    return lock


def _bind_local(socket: Socket, path: Path, mode: int, group: str | None) -> None:
    umask = os.umask(0o777)
    try:
        socket.bind(f"{IPC}{path}")
    except zmq.ZMQError as error:
        raise EndpointUnusable(f"{path}: {error.strerror}") from error
    finally:
        os.umask(umask)
    try:
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
    except KeyError as error:
        raise EndpointUnusable(f"{path}: there is no group {group!r}; mend it: groupadd {group}") from error
    except OSError as error:
        raise EndpointUnusable(f"{path}: {error.strerror}, so group {group!r} can't have it") from error


def _local_name(frame: zmq.Frame) -> str:
    """`unix:UID` of the process at the other end, as the kernel told libzmq (SO_PEERCRED)."""
    match (_property(frame, "Peer-Address") or "").split(":"):
        case [_, uid, _, _]:
            return f"{_UNIX}:{uid}"
        case _:
            return _UNIX


def _property(frame: zmq.Frame, name: str) -> str | None:
    """What libzmq knows of the connection by which the frame came."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return None
