"""How a worker stands, as Prometheus' families: pure, from what its loop has counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from tracker.exposition import counter, counters, gauge, gauges


@dataclass(frozen=True, slots=True)
class Standing:
    """`silence_s`: since the tracker last answered, None before it ever has; the last three are by queue."""

    epoch: int | None
    bindings: int
    outbox: int
    silence_s: float | None
    events: Mapping[str, int]
    restored: Mapping[str, int]
    upcalls: Mapping[str, int]
    waiting: Mapping[str, int]
    dropped: Mapping[str, int]


def families(standing: Standing) -> Iterator[Metric]:
    events = standing.events
    yield counters("porthold_rewriter_events", "What the gateway's machine counted.", "event", events)
    unparsed = {name: events.get(f"{name}_unparsed", 0) for name in ("claims", "talks")}
    yield counters(
        "porthold_rewriter_unparsed", "Packets passed on that could not be read.", "queue", unparsed
    )
    yield counters(
        "porthold_rewriter_upcalls", "Packets that the kernel asked about.", "queue", standing.upcalls
    )
    yield gauges(
        "porthold_rewriter_queue_packets", "Packets waiting in the kernel.", "queue", standing.waiting
    )
    yield counters(
        "porthold_rewriter_queue_dropped",
        "Packets that a full queue did not take",
        "queue",
        standing.dropped,
    )
    yield counters(
        "porthold_rewriter_restored",
        "How often our kernel state was brought back.",
        "what",
        standing.restored,
    )
    yield gauge("porthold_rewriter_bindings", "Bindings in the kernel.", standing.bindings)
    yield gauge("porthold_rewriter_epoch", "The session's epoch; 0 without one.", standing.epoch or 0)
    yield gauge(
        "porthold_rewriter_outbox_messages", "Messages that the tracker has not answered.", standing.outbox
    )
    if standing.silence_s is not None:
        yield gauge("porthold_rewriter_tracker_silence_seconds", "Since its last answer.", standing.silence_s)
    yield counter("porthold_rewriter_claims", "Claims made.", events.get("claims", 0))
