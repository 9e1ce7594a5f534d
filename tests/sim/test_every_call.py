"""A worker that is killed or stopped at any system call on its way: each of them, not only those of chance.

Rule 1: every fault that the seeds have found in the worker is here as the story that showed it.
"""

import pytest

from rewriter.ruleset import TIMER_SLACK_MS
from tools.simulation.people import CALLERS, CUSEEME, PEERS
from tools.simulation.plan import FASTEST_PPM, Plan, Step
from tools.simulation.run import run
from tools.simulation.site import Setting
from tools.simulation.world import MILLISECOND_NS, SECOND_NS, Fault

CALLS = range(1, 41)
"""More than a worker makes from the packet of a claim to the port's being there, or gone."""
LEASE_CALLS = range(1, 26)
"""More than a worker makes from one heartbeat to the next."""
KILLED = 0


def broken(setting: Setting, *steps: Step) -> Fault | None:
    return run(Plan(0, setting, steps)).fault


def stop(at_ns: int, worker: str, calls: int, for_ns: int) -> Step:
    """The worker stands still from its system call of that number on."""
    return Step(at_ns, "stop", (worker, calls, for_ns))


def call(at_ns: int, host: int, for_ns: int, *, hang_up: bool = False) -> Step:
    return Step(at_ns, "call", ("gw1", host, PEERS[0], CUSEEME, for_ns, hang_up))


def ambush(at_ns: int, calls: int, for_ns: int) -> Step:
    """The worker is struck so many system calls after the next packets that it reads."""
    return Step(at_ns, "ambush", ("gw1-a", calls, for_ns))


@pytest.mark.parametrize("for_ns", [KILLED, 7 * SECOND_NS])
def test_on_the_way_of_a_claim(for_ns: int) -> None:
    """Stopped, it took the idle time to begin when it went on: a port that had run out was restored."""
    for calls in CALLS:
        steps = ambush(SECOND_NS, calls, for_ns), call(2 * SECOND_NS, 0, 20 * MILLISECOND_NS)
        assert broken(Setting(idle_s=2.0), *steps) is None, f"struck at call {calls}"


def test_on_the_way_of_a_claim_while_the_peer_goes_on_sending() -> None:
    """Whoever came back had to forget what the peer's packets had left: the holder's own vanished."""
    for calls in CALLS:
        before = call(SECOND_NS, 0, 280 * MILLISECOND_NS, hang_up=True)
        steps = before, ambush(SECOND_NS * 3 // 2, calls, KILLED), call(SECOND_NS * 2, 0, 4 * SECOND_NS)
        assert broken(Setting(idle_s=3.0), *steps) is None, f"struck at call {calls}"


def test_on_the_way_of_taking_a_port_back_while_another_takes_over() -> None:
    """The counters that it read were the other one's, which had begun anew: less than none had been sent."""
    setting = Setting(standbys=True, idle_s=3.0, lease_s=3.0)
    for calls in CALLS:
        steps = (
            call(SECOND_NS, 0, SECOND_NS // 2, hang_up=True),
            call(2 * SECOND_NS, 1, 3 * SECOND_NS // 2, hang_up=True),
            ambush(3 * SECOND_NS + 400 * MILLISECOND_NS, calls, 7 * SECOND_NS),
        )
        assert broken(setting, *steps) is None, f"struck at call {calls}"


@pytest.mark.parametrize("lead", [FASTEST_PPM, -FASTEST_PPM])
def test_on_the_way_of_a_lease_while_another_machine_takes_over(lead: int) -> None:
    """Two kernels with one address, timers and clocks as bad as they may be: never do both forward."""
    setting = Setting(
        standbys=True,
        far_tracker=True,
        fenced=True,
        shared=True,
        lease_s=1.5,
        idle_s=4.0,
        rates_ppm=(lead, -lead, 0),
        offsets_s=(0, -3_600, 90),
        late_ms=TIMER_SLACK_MS,
    )
    for calls in LEASE_CALLS:
        ring = Step(2 * SECOND_NS, "ring", ("gw1", CALLERS[0], CUSEEME, 14))
        steps = call(SECOND_NS, 0, 6 * SECOND_NS), ring, stop(3 * SECOND_NS, "gw1-a", calls, 4 * SECOND_NS)
        outcome = run(Plan(0, setting, steps))
        assert outcome.fault is None, f"stopped at call {calls}: {outcome.fault}"
        assert outcome.moves == 1, f"stopped at call {calls}: nobody took over"
