"""A simulated client or reflector as a process that is steered: commands in, events out.

Rule: every wait has an end, and its failure says what was awaited and what came instead.
"""

import contextlib
import json
import subprocess
import threading
import time
from typing import Any

from tools.namespaces import LabError

Event = dict[str, Any]


class Actor:
    """A simulated client or reflector at a place of the lab: commands in, events out."""

    def __init__(self, process: subprocess.Popen[str], place: str, address: str) -> None:
        self.process = process
        self.place = place
        self.address = address
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._has_ended = False
        threading.Thread(target=self._read, daemon=True).start()
        self.udp: str = self.wait_for("ready", timeout_s=20)["udp"]

    def command(self, words: str) -> int:
        """Give a command; returns a mark for `since`, so that `wait_for` sees only what comes from now on."""
        mark = self.mark()
        if self.process.stdin is None:
            raise LabError(f"{self.place} has no stdin")
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return mark

    def mark(self) -> int:
        """How many events there were so far."""
        with self._changed:
            return len(self.events)

    def wait_for(self, event: str, timeout_s: float = 5.0, since: int = 0, **facts: object) -> Event:
        """The first event of this kind with these facts since a mark; LabError if none comes in time."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for found in self.events[since:]:
                    if found["event"] == event and facts.items() <= found.items():
                        return found
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._has_ended:
                    came = [json.dumps(other) for other in self.events[since:]]
                    why = "ended" if self._has_ended else f"said nothing in {timeout_s} s"
                    wanted = f"{event!r} {facts or ''}"
                    raise LabError(f"{self.place} {why} of {wanted}; it said: {'; '.join(came) or 'nothing'}")
                self._changed.wait(left_s)

    def seen(self, event: str, since: int = 0, **facts: object) -> list[Event]:
        """The events of this kind with these facts that came since a mark."""
        with self._changed:
            return [e for e in self.events[since:] if e["event"] == event and facts.items() <= e.items()]

    def counters(self) -> Event:
        """What the actor has counted until now; what never happened is missing: read with `.get(name, 0)`."""
        return self.wait_for("counters", since=self.command("counters"))

    def _read(self) -> None:
        if self.process.stdout is None:
            raise LabError(f"{self.place} has no stdout")
        with contextlib.suppress(ValueError):  # The lab closes the stream when it ends.
            for line in self.process.stdout:
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
