"""How the tracker stands, as Prometheus' families: pure, from its state and counters.

The counters' names in `porthold_tracker_messages_total` are those that `porthold status` shows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric

from tracker.exposition import counter, counters, gauge, gauges
from tracker.instant import Instant
from tracker.machine import Signed
from tracker.transitions import State

_SECOND_NS: Final = 1_000_000_000
_GRANTED: Final = "claims granted"


def families(
    state: State, counted: Mapping[str, int], refusals: Counter[str], now: Instant
) -> Iterator[Metric]:
    """What the machine knows. `refusals`: claims refused, by reason."""
    yield counters(
        "porthold_tracker_messages",
        "Messages by what became of them, as `porthold status` has them.",
        "outcome",
        counted,
    )
    yield counter("porthold_tracker_claims_granted", "Claims granted.", counted.get(_GRANTED, 0))
    yield counters("porthold_tracker_claims_refused", "Claims refused.", "reason", refusals)
    yield counter("porthold_tracker_holes", "Holes in workers' records.", counted.get("holes", 0))
    sessions = {name: it.session for name, it in state.gateways.items() if it.session is not None}
    yield gauges(
        "porthold_tracker_bindings",
        "Bindings held.",
        "gateway",
        {name: len(it.bindings) for name, it in state.gateways.items()},
    )
    yield gauges(
        "porthold_tracker_heartbeat_age_seconds",
        "Since the gateway's worker was last heard.",
        "gateway",
        {name: max(0, now.wall_ns - it.heard_ns) / _SECOND_NS for name, it in sessions.items()},
    )
    yield gauges(
        "porthold_tracker_worker_lost",
        "1 while the gateway's worker is silent for longer than its lease.",
        "gateway",
        {name: float(it.lost_since_ns is not None) for name, it in sessions.items()},
    )


def log_families(size: int, octets: Mapping[str, int], last: Signed | None) -> Iterator[Metric]:
    """What the log has grown to; `octets`: by file."""
    yield gauge("porthold_log_records", "Records in the log.", size)
    yield gauges("porthold_log_bytes", "Size of the log's files.", "file", octets)
    if last is not None:
        yield gauge("porthold_log_checkpoint_records", "Records under the last checkpoint.", last.size)
        yield gauge(
            "porthold_log_checkpoint_timestamp_seconds", "When it was made.", last.made_ns / _SECOND_NS
        )
