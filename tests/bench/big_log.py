"""A log of many records on this machine, and what it costs: `python -m tests.bench.big_log FILE`.

    python -m tests.bench.big_log /var/tmp/big.sqlite --records 10000000
    python -m tests.bench.big_log /var/tmp/big.sqlite --measure     # an existing one again
    python -m tests.bench.big_log /var/tmp/big.sqlite --archive     # then its oldest million into an archive

The records are those of tests/bench/story.py. Measured are: octets a record and where they go; `who`, 10,000
random questions inside the process; proofs; the start of a real `porthold tracker` on it.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from eventlog.archive import archives_of
from eventlog.checkpoint import make_checkpoint
from eventlog.note import SigningKey
from eventlog.proof import make_proof, verify_proof
from eventlog.reading import LogReader
from eventlog.retention import archive_segment, close_segment
from eventlog.store import Log
from tests.bench.story import GATEWAYS, Story
from tools.writing import keep_tracker_state
from tracker.audit import who
from tracker.projections import PROJECTIONS

BATCH: Final = 1000
CHECKPOINT_EVERY: Final = 100_000
QUESTIONS: Final = 10_000
PROOFS: Final = 2_000
ARCHIVED: Final = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--measure", action="store_true", help="the file is there")
    parser.add_argument("--archive", action="store_true", help="archive its first million records")
    arguments = parser.parse_args()
    path: Path = arguments.file.resolve()
    key = SigningKey("example.com/big", bytes(32))
    if not arguments.measure and not arguments.archive:
        build(path, arguments.records, key)
    if arguments.archive:
        archive(path)
    measure_octets(path)
    measure_questions(path)
    measure_proofs(path, key)
    measure_start(path)


def build(path: Path, count: int, key: SigningKey) -> None:
    """Write the log, in batches as a loaded tracker would, and at the end the tracker's state."""
    begun = time.monotonic()
    with Log.open(path, projections=PROJECTIONS) as log:
        records = Story().records()
        while log.size < count:
            log.append(list(islice(records, min(BATCH, count - log.size))))
            if log.size % CHECKPOINT_EVERY == 0:
                make_checkpoint(log, key, log.last_wall_ns or 0)
                rate = log.size / (time.monotonic() - begun)
                print(f"\r{log.size:,} records, {rate:,.0f} a second", end="", flush=True)
        print()
        keep_tracker_state(log, time.time_ns())
        make_checkpoint(log, key, time.time_ns())


def archive(path: Path) -> None:
    with Log.open(path, projections=PROJECTIONS) as log:
        if not log.life().segments:
            close_segment(log, min(ARCHIVED, log.size), time.time_ns())
        begun = time.monotonic()
        archive_segment(log, 0, time.time_ns())
        print(f"archived in {time.monotonic() - begun:.0f} s")
        log.give_back(whole=True)


def measure_octets(path: Path) -> None:
    """Octets a record of the whole file, and by table."""
    with LogReader.open(path) as reader:
        segments = reader.life().segments
        archived = sum(it.span.end - it.span.first for it in segments if it.archive is not None)
        count = reader.size - archived
        print(
            f"{count:,} records in {path.stat().st_size:,} octets: {path.stat().st_size / count:.1f} a record"
        )
        rows = reader.query("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 9")
        for name, octets in rows:
            print(f"    {int(octets or 0) / count:7.1f} {name!s}")
        if archived:
            octets = sum(file.stat().st_size for file in archives_of(path).iterdir())
            print(f"{archived:,} archived records in {octets:,} octets: {octets / archived:.1f} a record")


def measure_questions(path: Path) -> None:
    chance = random.Random(4)
    with LogReader.open(path) as reader:
        first_ns, last_ns = reader.first_wall_ns or 0, _last_of_story_ns(reader)

        def ask(gateway: str | None) -> None:
            at_ns = chance.randrange(first_ns, last_ns)
            findings = who(reader, at_ns=at_ns, protocol=17, port=7648, gateway=gateway)
            if not findings:
                raise AssertionError("no finding")

        names = [f"gateway-{number}" for number in range(1, GATEWAYS + 1)]
        _report("who, of one gateway", _times(lambda: ask(chance.choice(names)), QUESTIONS))
        _report(f"who, of all {GATEWAYS} gateways", _times(lambda: ask(None), QUESTIONS // 10))


def _last_of_story_ns(reader: LogReader) -> int:
    """When the last event of the story was; what follows is of today."""
    return reader.wall_ns_at(reader.position_at(time.time_ns() - 86_400 * 10**9) - 1)


def measure_proofs(path: Path, key: SigningKey) -> None:
    chance = random.Random(5)
    with LogReader.open(path) as reader:
        checkpoint = reader.latest_checkpoint()
        if checkpoint is None:
            raise AssertionError("no checkpoint")
        made: list[bytes] = []
        positions = (chance.randrange(checkpoint.size) for _ in range(PROOFS))
        times = _times(lambda: made.append(make_proof(reader, next(positions), checkpoint.note)), PROOFS)
        _report(f"a proof, of {sum(map(len, made)) // len(made)} octets", times)
        proofs: Iterator[bytes] = iter(made)
        _report("checking one", _times(lambda: verify_proof(next(proofs), [key.verifying_key]), PROOFS))


def measure_start(path: Path) -> None:
    """From the start of the process to the tracker's first record on the disk."""
    work = path.with_name(path.name + ".tracker")
    work.mkdir(exist_ok=True)
    config = work / "porthold.toml"
    config.write_text(
        f'[tracker]\nlog = "{path}"\nendpoint = "ipc://{work}/t"\nreader_endpoint = "ipc://{work}/r"\n'
        f'operator_endpoint = "ipc://{work}/o"\n'
    )
    for _ in range(3):
        begun = time.monotonic()
        command = [str(Path(sys.executable).with_name("porthold")), "tracker", "--config", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in process.stderr or ():
            print("   ", line.strip())
            if " run " in line:
                break
        print(f"tracker start: {time.monotonic() - begun:.2f} s")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()
    for file in work.iterdir():
        file.unlink()
    work.rmdir()


def _times(call: Callable[[], object], count: int) -> list[tuple[float, float]]:
    """Of each call the milliseconds on the clock and on the processor: others may want that, too."""
    times = []
    for _ in range(count):
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        call()
        times.append(((time.perf_counter() - begun) * 1000, (time.thread_time() - begun_cpu) * 1000))
    return times


def _report(what: str, times: Sequence[tuple[float, float]]) -> None:
    print(f"{what}: {len(times):,} times")
    for clock, column in zip(("on the clock", "on the processor"), zip(*times, strict=True), strict=True):
        ordered = sorted(column)
        middle, late = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        print(f"    {clock}: median {middle:.3f} ms, p99 {late:.3f} ms, max {ordered[-1]:.3f} ms")


if __name__ == "__main__":
    main()
