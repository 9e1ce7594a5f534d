"""What a daemon has with whoever started it: signals come in, readiness and signs of life go out.

Rule 1: without $NOTIFY_SOCKET nothing is said, and nothing is missing. Rule 2: a sign of life is sent from
the loop's own turn, never by a thread or a timer: a loop that hangs must look dead. Rule 3: the first SIGTERM
or SIGINT asks for an orderly end, the second is the kernel's affair: it ends the process at once. Rule 4: a
service manager that does not read holds nobody up.

The words are sd_notify(3)'s, one datagram each; what it links against is not needed for them.
"""

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, Self

from tracker.clock import read_clock

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_WAKE_UP_SIZE: Final = 4096


class Supervision:
    """One process's; `descriptor` is readable when a signal has come, and `hear` says what was wanted."""

    def __init__(
        self, descriptor: int, *, notify: socket.socket | None = None, watchdog_ns: int | None = None
    ) -> None:
        self._descriptor = descriptor
        self._notify = notify
        self._watchdog_ns = watchdog_ns
        self._alive_ns = 0
        self._status = ""
        self._reload_wanted = False
        self.stopping = False

    @classmethod
    @contextmanager
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> Iterator[Self]:
        """Takes the process's signals, and connects to the service manager that $NOTIFY_SOCKET names.

        OSError where it names no socket that can be had.
        """
        reading, writing = socket.socketpair()
        with (
            reading,
            writing,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
        ):
            for end in (reading, writing, notify):
                end.setblocking(False)
            address = environment.get("NOTIFY_SOCKET")
            if address:
                notify.connect("\0" + address[1:] if address.startswith("@") else address)
            supervision = cls(
                reading.fileno(),
                notify=notify if address else None,
                watchdog_ns=_watchdog_ns(environment) if address else None,
            )
            with supervision._signals(writing):
                yield supervision

    def fileno(self) -> int:
        return self._descriptor

    def hear(self) -> bool:
        """Whether the configuration is to be read again; `stopping` says whether to end."""
        with suppress(BlockingIOError):
            os.read(self._descriptor, _WAKE_UP_SIZE)
        wanted, self._reload_wanted = self._reload_wanted, False
        return wanted

    # --- what the service manager hears ------------------------------------------------------------------

    def ready(self, status: str) -> None:
        """Begun, or done with a reload."""
        self._status = status
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """To be followed by `ready`."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={read_clock().monotonic_ns // 1000}")

    def end(self, status: str) -> None:
        """The orderly end has begun."""
        self._status = status
        self._say("STOPPING=1", f"STATUS={status}")

    def turned(self, now_ns: int, status: str | None = None) -> None:
        """The loop has come round (monotonic time); `status`: what an operator shall see, if it is new."""
        if status is not None and status != self._status:
            self._status = status
            self._say(f"STATUS={status}")
        if self._watchdog_ns is not None and now_ns - self._alive_ns >= self._watchdog_ns:
            self._alive_ns = now_ns
            self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if self._notify is not None:
            with suppress(OSError):  # Rule 4: full, or gone; a watchdog that misses us says so itself
                self._notify.send("\n".join(lines).encode())

    # --- signals -----------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self, writing: socket.socket) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (*_STOP, signal.SIGHUP)}
        old_descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in _STOP:
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._reload())
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.stopping = True
        for number in _STOP:
            signal.signal(number, signal.SIG_DFL)

    def _reload(self) -> None:
        self._reload_wanted = True


def _watchdog_ns(environment: Mapping[str, str]) -> int | None:
    """How often to give a sign of life: half of what the manager waits, as sd_watchdog_enabled(3) advises."""
    usec, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (process and process != str(os.getpid())):
        return None
    return int(usec) * 1000 // 2
