"""A moment by two clocks: what a decision takes instead of reading one."""

from typing import NamedTuple


class Instant(NamedTuple):
    """`wall_ns` since 1970 goes into records; `monotonic_ns` counts leases and timeouts."""

    wall_ns: int
    monotonic_ns: int
