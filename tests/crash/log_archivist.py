"""A process that makes processes that archive, redact and prune until they are killed: `python -m
tests.crash.log_archivist`. Commands and answers are those of log_appender.py.
"""

import sys
from pathlib import Path
from random import Random

from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.retention import RetentionRefused, archive_segment, close_segment, prune_segments, redact
from eventlog.store import Log
from tests.crash.log_appender import live_by_commands, say
from tests.unit.eventlog.samples import START_NS, Holders, make_record

KEY = SigningKey("example.com/killed", bytes(32))
OLD_ENOUGH = 4
"""Segments before a pruned one's end."""


def retain_until_killed(path: Path, seed: int) -> None:
    """Life of a log in fast motion: each segment is archived, one record of it redacted, and then pruned."""
    chance = Random(seed)
    with Log.open(path, projections=[Holders()]) as log:
        while True:
            now_ns = max(START_NS, log.last_wall_ns or 0)
            first = log.size
            log.append(
                [make_record(it, (7000 + it % 50, b"x"), wall_ns=now_ns) for it in range(first, first + 90)]
            )
            say(f"acknowledged {log.size} {log.head().root.hex()}")
            make_checkpoint(log, KEY, now_ns)
            number = close_segment(log, log.size - chance.randrange(20), now_ns).number
            archive_segment(log, number, now_ns)
            position = chance.randrange(log.size)
            try:
                redact(log, position, "asked for", now_ns, projections=[Holders()])
                if number >= OLD_ENOUGH:
                    prune_segments(log, [number - OLD_ENOUGH], "too old", now_ns, projections=[Holders()])
            except RetentionRefused as refusal:
                if not any(word in str(refusal) for word in ("already", "pruned", "log's own")):
                    raise
            log.give_back(whole=chance.random() < 0.3)
            say(f"acknowledged {log.size} {log.head().root.hex()}")


if __name__ == "__main__":
    live_by_commands(sys.stdin, retain_until_killed)
