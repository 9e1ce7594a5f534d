"""kill -9 in the middle of a loaded append: what was acknowledged is there, and no batch is there by half.

PORTHOLD_KILLS=500 for the long run; the seed is printed with a failure.
"""

import os
import random
import signal
import struct
import time
from pathlib import Path

import pytest

from eventlog.record import Record
from eventlog.store import Answer, Log, LogReader
from eventlog.verify import verify
from tests.unit.eventlog.samples import Holders, held, many_held

KILLS = int(os.environ.get("PORTHOLD_KILLS", "50"))
KILLS_PER_LOG = 5
ACKNOWLEDGEMENT = struct.Struct("<QQ")  # sequence of the batch's first record, and of the next batch's


def batch_at(first: int, count: int) -> list[Record]:
    return [held(sequence, 7000 + sequence % 50) for sequence in range(first, first + count)]


def append_until_killed(path: Path, pipe: int, first: int, seed: int) -> None:
    """The child: batches of random size, each acknowledged after its append; its size is its answer."""
    chance = random.Random(seed)
    with Log.open(path, projections=[Holders()]) as log:
        while True:
            count = chance.randint(1, 40)
            log.append(batch_at(first, count), answers=[Answer("gateway-1", 1, first, b"%d" % count)])
            os.write(pipe, ACKNOWLEDGEMENT.pack(first, first + count))
            first += count


def run_and_kill(path: Path, first: int, seed: int) -> int:
    """Returns the end of what was acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            append_until_killed(path, writing, first, seed)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(random.Random(seed).uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the child ended by itself"
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    ends = [end for _, end in ACKNOWLEDGEMENT.iter_unpack(data)]
    return ends[-1] if ends else first


@pytest.mark.timeout(20 + KILLS)
def test_what_was_acknowledged_survives_kill_9_and_no_batch_is_there_by_half(tmp_path: Path) -> None:
    appended = 0
    for kill in range(KILLS):
        seed = int.from_bytes(os.urandom(4), "big")
        path = tmp_path / f"log-{kill // KILLS_PER_LOG}.sqlite"
        first = 0
        if path.exists():
            with LogReader.open(path) as reader:
                first = reader.size
        acknowledged = run_and_kill(path, first, seed)
        with Log.open(path, projections=[Holders()]) as log:
            assert log.size >= acknowledged, f"seed {seed}: acknowledged records are gone"
            last = log.latest_answer("gateway-1")
            if last is not None:
                assert log.size == last.sequence + int(last.reply), f"seed {seed}: half a batch"
            appended += log.size - first
            if kill % KILLS_PER_LOG == KILLS_PER_LOG - 1 or kill == KILLS - 1:
                report = verify(log, [Holders()])
                assert report.clean, f"seed {seed}: {report.first}"
    assert appended > KILLS, "the children were killed before they had begun"


def test_a_writer_killed_while_it_makes_the_file_leaves_one_that_can_be_opened(tmp_path: Path) -> None:
    for attempt in range(20):
        path = tmp_path / f"log-{attempt}.sqlite"
        child = os.fork()
        if child == 0:
            try:
                Log.open(path).close()
            finally:
                os._exit(0)
        time.sleep(attempt * 0.0007)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Log.open(path) as log:
            assert log.append(many_held(3)) == range(3)
            assert verify(log).clean
