"""The protocol's model, searched by spin, and the faults that the search must find.

Rule 1: a search counts only when it was complete. Rule 2: each rule of the protocol has a fault here that
breaks it, and the property that is seen to break: a model in which nothing can go wrong proves nothing.
Rule 3: what the model says of the code is in the code.

Wider, by hand, with bits for a state instead of all of it (six minutes, 165 million states, 1 GB, no error):
    spin -a -DCLAIMS=3 -DTAKE_OVERS=3 -DCRASHES=2 -DCLOSES=1 lease.pml
    gcc -w -O2 -DSAFETY -DBITSTATE -o pan pan.c && ./pan -n -w33 -m100000
What led to an error: spin -t -p -g with the same -D, where the trail is.
"""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("lease.pml")
ROOT = MODEL.parents[2]

KEEP = "CLAIMS=2 TAKE_OVERS=2 CRASHES=1 CLOSES=0"
THREE_CLAIMS = "CLAIMS=3 TAKE_OVERS=2 CRASHES=0 CLOSES=0"
CLOSING = "CLAIMS=2 TAKE_OVERS=1 CRASHES=1 CLOSES=1"
FLUSHED = "CLAIMS=2 TAKE_OVERS=2 CRASHES=0 CLOSES=0 FLUSHES=1"
FENCE = "FENCE CLAIMS=1 TAKE_OVERS=1 CRASHES=0 CLOSES=1"
FENCE_TWO_CLAIMS = "FENCE CLAIMS=2 TAKE_OVERS=1 CRASHES=0 CLOSES=0"
FENCE_CRASHES = "FENCE CLAIMS=1 TAKE_OVERS=1 CRASHES=1 CLOSES=0"
FENCE_FINE_CLOCK = "FENCE HALF=2 CLAIMS=1 TAKE_OVERS=1 CRASHES=0 CLOSES=0"
ENDS = "ENDS CLAIMS=2 TAKE_OVERS=1 CRASHES=1 CLOSES=0 OUTAGES=1"

# What pan says of a property that broke: it knows only the text that the macros made.
CONTAINED = "disk.holder"
NEWEST_WRITES = ".newest"
EVERY_BINDING_ENDS = "acceptance cycle"


@dataclass(frozen=True)
class Search:
    """`world`: the model's -D words; `fault`: one that is planted; `breaks`: what pan then says, in part."""

    world: str
    fault: str | None = None
    breaks: str | None = None

    def __str__(self) -> str:
        """Part of the test's name."""
        return self.fault or self.world

    @property
    def defines(self) -> list[str]:
        words = self.world.split() + ([] if self.fault is None else [f"BUG_{self.fault}"])
        return [f"-D{word}" for word in words]


COMPLETE = [
    Search(world)
    for world in (
        KEEP,
        THREE_CLAIMS,
        CLOSING,
        FLUSHED,
        FENCE,
        FENCE_TWO_CLAIMS,
        FENCE_CRASHES,
        FENCE_FINE_CLOCK,
        ENDS,
    )
]

FAULTY = [
    # The tracker takes a withdrawal from a worker that was taken over: free in the log, held in the kernel.
    Search(KEEP, "REPORT_UNCHECKED", CONTAINED),
    # The tracker takes a claim of an old epoch: nobody installs it, nobody ever gives it back.
    Search(ENDS, "CLAIM_UNCHECKED", EVERY_BINDING_ENDS),
    # A copy of a claim is taken for a new one: its grant finds nobody.
    Search(ENDS, "NO_DEDUPLICATION", EVERY_BINDING_ENDS),
    # The tracker answers before it appends, and is killed in between.
    Search(KEEP, "REPLY_FIRST", CONTAINED),
    # The same with the return of a worker that was lost: its heartbeat is acknowledged, and forgotten.
    Search(FENCE, "RETURN_ACKNOWLEDGED_FIRST", CONTAINED),
    # A batch does not look whose kernel it is.
    Search(KEEP, "KERNEL_UNFENCED", NEWEST_WRITES),
    # A worker that was stopped with its grant in hand replaces the table of a newer epoch.
    Search(KEEP, "ADOPT_OVER_NEWER", NEWEST_WRITES),
    # A flushed table is made again without asking whether it is still ours to make.
    Search(FLUSHED, "RESTORE_UNASKED", NEWEST_WRITES),
    # Installed with the claim, before the grant.
    Search(KEEP, "INSTALL_EARLY", CONTAINED),
    # Reported as withdrawn before the kernel has let go.
    Search(KEEP, "WITHDRAW_REPORTED_EARLY", CONTAINED),
    # The answer to a second claim of the same host comes when its binding has ended, and is installed.
    Search(THREE_CLAIMS, "GRANT_OF_ENDED", CONTAINED),
    # The answer to a claim of an earlier session is installed in a later one; its binding ended in between.
    Search(CLOSING, "GRANT_OF_OLD_EPOCH", CONTAINED),
    # Two gateways with on_tracker_loss = "keep": a kernel that nobody reaches goes on forwarding.
    Search(FENCE, "NO_FENCE", "kernel[1].holders!=0))) (at"),
    # After a restart the tracker thinks that leases ended while it was away.
    Search(FENCE, "GRACE_FORGOTTEN", CONTAINED),
    # The kernel's lease counts from when the acknowledgement came.
    Search(FENCE, "LEASE_FROM_RECEIPT", CONTAINED),
    # From when the heartbeat was sent; the worker reckons the rest, and is stopped before its batch.
    Search(FENCE, "RENEWAL_BY_CLOCK", CONTAINED),
    # An acknowledgement of the heartbeat before is taken for one of the last.
    Search(FENCE, "ANY_ACKNOWLEDGEMENT", CONTAINED),
    # --take-over on another host does not wait for the old kernel's lease.
    Search(FENCE, "TAKE_OVER_AT_ONCE", CONTAINED),
    # A session is closed, which lets another in at once, and its kernel's lease goes on.
    Search(FENCE, "CLOSE_KEEPS_LEASE", CONTAINED),
]


def run(search: Search, directory: Path) -> str:
    """What pan says at the end of `search`, carried out in `directory`."""

    def say(*command: str) -> str:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    ends = "ENDS" in search.world.split()
    say("spin", "-a", *search.defines, str(MODEL))
    # A fault is found in less time than optimising takes.
    level = "-O2" if search.fault is None else "-O0"
    say("gcc", "-w", level, *(["-DNFAIR=3"] if ends else ["-DSAFETY", "-DNOFAIR"]), "-o", "pan", "pan.c")
    return say("./pan", "-n", "-m10000", *(["-a", "-f"] if ends else []))


@pytest.fixture(scope="module")
def searches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Search, Future[str]]]:
    """The searches of all tests that were chosen, two at a time: most of their time is the compiler's."""
    cases = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    values = [case.params.get("search") for case in cases]
    chosen = [value for value in values if isinstance(value, Search)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {search: pool.submit(run, search, tmp_path_factory.mktemp("search")) for search in chosen}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("search", COMPLETE, ids=str)
def test_nothing_breaks_in_any_order_of_events(search: Search, searches: dict[Search, Future[str]]) -> None:
    said = searches[search].result()
    assert re.search(r"errors: (\d+)", said) is not None, said
    assert "errors: 0" in said, said
    for want in ("search depth too small", "Search not completed", "truncated", "out of memory"):
        assert want not in said, said
    stored = re.search(r"(\d+)(?:\.\d+)?(e\+\d+)? states, stored", said)
    assert stored is not None, said
    assert float("".join(stored.groups(""))) > 50_000, f"a world too small to show anything: {said}"


@pytest.mark.parametrize("search", FAULTY, ids=str)
def test_a_planted_fault_breaks_its_property(search: Search, searches: dict[Search, Future[str]]) -> None:
    said = searches[search].result()
    broken = re.search(r"pan:1: (.*)", said)
    assert broken is not None, f"not found: {said}"
    assert search.breaks is not None
    assert search.breaks in broken[1], f"found, but for another reason: {broken[1]}"


def test_what_the_model_stands_for_is_in_the_code() -> None:
    text = MODEL.read_text()
    for package, name in re.findall(r"<(tracker|rewriter): (\w+)>", text):
        defined = re.compile(rf"^ *(?:def|class) {name}\b", re.MULTILINE)
        modules = (ROOT / package).glob("*.py")
        assert any(defined.search(module.read_text()) for module in modules), f"{package} has no {name}"
    for module, rule in re.findall(r"<(\w+/\w+\.py) Rule (\d+)>", text):
        assert f"Rule {rule}:" in (ROOT / module).read_text(), f"{module} has no Rule {rule}"


def test_each_fault_is_planted_and_each_planted_one_is_sought() -> None:
    planted = set(re.findall(r"(?:ifn?def |defined\()BUG_(\w+)", MODEL.read_text()))
    assert planted == {search.fault for search in FAULTY}
