"""A process that makes processes that append until they are killed: `python -m tests.crash.log_appender`.

Reads a line "PATH SEED" for each, and says "started PID", then for each append that has returned
"acknowledged SIZE ROOT", then "ended STATUS". A fork takes a millisecond; a new Python would take 300.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from eventlog.store import Answer, Forget, Log
from tests.unit.eventlog.samples import Holders, held

WORKER = "gateway-1"


def append_until_killed(path: Path, seed: int) -> None:
    """Batches of random size; the answer that goes with each says where it ends."""
    chance = Random(seed)
    with Log.open(path, projections=[Holders()]) as log:
        # How often SQLite carries the WAL over; 1,000 pages is what it does by itself.
        pages = chance.choice((3, 30, 1000))
        log.connection_for_checks().execute(f"PRAGMA wal_autocheckpoint = {pages}")
        while True:
            first = log.size
            end = first + chance.randint(1, 40)
            log.append(
                [held(sequence, 7000 + sequence % 50) for sequence in range(first, end)],
                answers=[Answer(WORKER, 1, first, b"%d" % end)],
                forget_answers=[Forget(WORKER, 1, first - 1)],
                notes={"end": b"%d" % end},
            )
            say(f"acknowledged {log.size} {log.head().root.hex()}")


def say(line: str) -> None:
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def live_by_commands(commands: Iterable[str], live: Callable[[Path, int], None]) -> None:
    """A child for each line, which lives until it is killed; say how it ended."""
    for line in commands:
        path, seed = line.rsplit(maxsplit=1)
        child = os.fork()
        if child == 0:
            try:
                live(Path(path), int(seed))
            finally:
                os._exit(1)
        say(f"started {child}")
        _, status = os.waitpid(child, 0)
        say(f"ended {status}")


if __name__ == "__main__":
    live_by_commands(sys.stdin, append_until_killed)
