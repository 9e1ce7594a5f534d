"""One writer at a time: a lock file beside the log that names who holds it.

The lock is the kernel's (flock), so it ends with its process, however that ends; the text in the file is for
people.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class LogLocked(Exception):
    """Another process writes this log."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is being written by {holder or 'a process that has not said its name yet'}")
        self.path = path
        self.holder = holder


class WriterLock:
    """Held from construction to `release`. Raises LogLocked, naming the holder's process."""

    def __init__(self, log_path: Path) -> None:
        self._path = log_path.with_name(log_path.name + ".lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise LogLocked(log_path, holder) from None
        self._held = True
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} ({_own_command()})\n".encode(), 0)

    def still_held(self) -> bool:
        """Whether the lock file is still the one we locked: a deleted one would let a second writer in."""
        if not self._held:
            return False
        try:
            there = self._path.stat()
        except OSError:
            return False
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let the next writer in; harmless when done twice.

        The file stays: removing it would race with who opens it just now.
        """
        if not self._held:
            return
        self._held = False
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _own_command() -> str:
    try:
        return Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "command unknown"
