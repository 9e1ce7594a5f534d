"""How much of the tracker's time one peer may have.

Rule 1: each peer has a bucket of his own, so nobody pays for another. Rule 2: a peer that has been quiet for
long enough is as good as one that was never heard: it is forgotten, so there are never more buckets than
there were peers within one filling time. Rule 3: `now_ns` is an argument, by the monotonic clock.
"""

from collections.abc import Hashable
from typing import Final

_SECOND_NS: Final = 1_000_000_000


class Rates:
    """A token bucket for each peer: `per_second` messages, `burst` of them at once."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._cost_ns = _SECOND_NS // per_second
        self._room_ns = burst * self._cost_ns
        self._full_ns: dict[Hashable, int] = {}
        """When each peer's bucket will be full again: what he has used up, as time."""
        self._sweep_ns = 0

    def __len__(self) -> int:
        return len(self._full_ns)

    def admit(self, peer: Hashable, now_ns: int) -> bool:
        """Whether a message of `peer` may be looked at now; if so, it is paid for."""
        if now_ns >= self._sweep_ns:
            self._sweep_ns = now_ns + self._room_ns
            self._full_ns = {other: full_ns for other, full_ns in self._full_ns.items() if full_ns > now_ns}
        full_ns = max(self._full_ns.get(peer, 0), now_ns) + self._cost_ns
        if full_ns - now_ns > self._room_ns:
            return False
        self._full_ns[peer] = full_ns
        return True
