"""How long a quiet worker waits for its answers while others make noise; by TCP, with a real tracker.

    python -m tests.bench.noisy_peers [--seconds 5]

Printed: milliseconds from a report's submission (its fsync included) to its answer, and what was refused.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import zmq

from tests.crash.place import ROOT, Place, hole, opening, settle
from tests.crash.remote_site import Site, raw_dealer
from tracker.client import Credentials
from tracker.keyring import TRACKER_ROLE, generate, read_secret_key, write_secret_key
from tracker.messages import GetStatus, Request, encode_request
from tracker.roles import Role

WORKERS: Final = 8


def shout(what: str, endpoint: str, key: str, tracker: str) -> None:
    """Makes noise until it is killed."""
    credentials = Credentials(read_secret_key(Path(key)), tracker)
    name = credentials.own.name
    port = int(endpoint.rpartition(":")[2])
    if what == "connections":
        while True:
            with socket.create_connection(("127.0.0.1", port)) as once:
                once.sendall(b"\xff" * 64)
    with raw_dealer(endpoint, credentials) as raw:
        raw.set(zmq.SNDHWM, 1000)
        number = 0
        while True:
            number += 1
            body = GetStatus() if what == "questions" else hole(number)
            sequence = 0 if what == "questions" else number
            raw.send(encode_request(Request(name, 7, sequence, max(0, sequence - 1), 0, 5, body)))
            while raw.poll(0):
                raw.recv_multipart()


@contextmanager
def noise(what: str, site: Site, *names: str) -> Iterator[None]:
    """These keys shout, each in a process of its own."""
    program = "from tests.bench.noisy_peers import shout; import sys; shout(*sys.argv[1:])"
    processes = []
    for name in names:
        key = str(site.place.directory / f"{name}.key")
        arguments = [what, site.endpoint, key, site.own.public]
        processes.append(subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT))
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measured(title: str, site: Site, once: Callable[[], object], seconds: float) -> None:
    before = site.counters()
    waited = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        once()
        waited.append(1000 * (time.monotonic() - began))
        time.sleep(0.005)
    waited.sort()
    after = site.counters()
    refused = {name: after[name] - before.get(name, 0) for name in after if name.startswith("refused")}
    said = ", ".join(f"{name} {count}" for name, count in refused.items() if count) or "nothing refused"
    middle, late = waited[len(waited) // 2], waited[len(waited) * 99 // 100]
    times = f"median {middle:6.1f}  99 % {late:6.1f}  worst {waited[-1]:6.1f} ms"
    print(f"{title:34} {len(waited):5} answers  {times}  {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    directory = Path(tempfile.mkdtemp(prefix="porthold-noise-"))
    place = Place(directory)
    site = Site(place)
    names = [f"noisy-{number}" for number in range(WORKERS)]
    for name in names:
        keep(site, name, Role.WORKER, "gw")
    keep(site, "curious", Role.READER)
    keep(site, "stranger", None)
    quiet_key = site.key("quiet", Role.WORKER, "quiet")
    try:
        place.start()
        quiet = site.client(quiet_key)
        settle(quiet, opening("quiet"))

        def once() -> None:
            settle(quiet, replace(hole(1), gateway="quiet"))

        measured("nobody else", site, once, seconds)
        with noise("questions", site, "curious"):
            measured("a reader that only asks", site, once, seconds)
        with noise("reports", site, names[0]):
            measured("a worker that only reports", site, once, seconds)
        with noise("reports", site, *names):
            measured(f"{WORKERS} workers that only report", site, once, seconds)
        with noise("connections", site, "stranger"):
            measured("a stranger that only connects", site, once, seconds)
        quiet.close()
    finally:
        if place.process is not None:
            place.kill()
        shutil.rmtree(directory)


def keep(site: Site, name: str, role: Role | None, *gateways: str) -> None:
    """A key in a file; without a role, one that nobody has authorised."""
    made = generate(TRACKER_ROLE if role is None else role.value, name)
    write_secret_key(site.place.directory / f"{name}.key", made)
    if role is not None:
        site.authorise(made, role, *gateways)


if __name__ == "__main__":
    main()
