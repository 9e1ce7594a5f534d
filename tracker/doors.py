"""The sockets by which the tracker is spoken to, and who comes in by which.

Rule 1: who a frame is from is what libzmq and the kernel say of its connection, never what the frame says.
Rule 2: on this machine every role has a socket of its own, and the file's mode says who may use it. Rule 3: a
socket is made for nobody first, and opened to its mode when it belongs to its group. Rule 4: nothing here
waits: what a peer does not take is dropped, and the caller is told.
"""

import grp
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import zmq

from eventlog.lock import LogLocked, WriterLock
from tracker.configuration import IPC, TrackerSection
from tracker.messages import REQUEST_LIMIT
from tracker.roles import Caller, Role

Socket = zmq.Socket[bytes]
_LINGER_MS: Final = 500
_UNIX: Final = "unix"


class EndpointUnusable(Exception):
    """No socket can be made there."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection: where answers to what came by it go."""

    door: "Door"
    identity: bytes


class Arrival(NamedTuple):
    """A message as it came; `parts` has one item, unless the sender is no worker of ours."""

    peer: Peer
    caller: Caller
    parts: list[bytes]


class Door:
    """A ROUTER socket for one role; `opened` makes it."""

    def __init__(self, socket: Socket, role: Role) -> None:
        self.socket = socket
        self.role = role

    def receive(self) -> Arrival | None:
        """The next message; None: there is none now."""
        try:
            identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        caller = Caller(self.role, _local_name(frames[-1])) if frames else Caller(self.role, _UNIX)
        return Arrival(Peer(self, identity.bytes), caller, [frame.bytes for frame in frames])

    def send(self, identity: bytes, frame: bytes) -> None:
        """Gives a frame to whoever is at the other end; one that is gone, or does not read, loses it."""
        self.socket.send_multipart([identity, frame], zmq.NOBLOCK)


@contextmanager
def local_doors(context: zmq.Context[Socket], section: TrackerSection) -> Iterator[list[Door]]:
    """One socket for each role, removed at the end. EndpointUnusable, LogLocked."""
    doors: list[Door] = []
    paths: list[tuple[Path, WriterLock]] = []
    try:
        for role in Role:
            local = section.local_socket(role)
            path = Path(local.endpoint.removeprefix(IPC))
            # libzmq would silently take a living tracker's socket away: its lock says whether there is one.
            paths.append((path, _claimed(path)))
            doors.append(Door(router(context), role))
            _bind(doors[-1].socket, path, local.mode, local.group)
        yield doors
    finally:
        for door in doors:
            door.socket.close()
        for path, lock in paths:
            path.unlink(missing_ok=True)
            lock.release()


def router(context: zmq.Context[Socket]) -> Socket:
    """A ROUTER socket with what all of them have in common."""
    socket = context.socket(zmq.ROUTER)
    socket.set(zmq.MAXMSGSIZE, 16 * REQUEST_LIMIT)  # up to here we count it, beyond libzmq hangs up
    socket.set(zmq.LINGER, _LINGER_MS)
    return socket


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


def _bind(socket: Socket, path: Path, mode: int, group: str | None) -> None:
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
    try:
        _, uid, _, _ = str(frame.get("Peer-Address")).split(":")
    except (zmq.ZMQError, ValueError):
        return _UNIX
    return f"{_UNIX}:{uid}"
