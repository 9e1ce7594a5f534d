"""Many runs, on all processors: which seeds break a promise, and does each planted bug break one?

Rule 1: what is found does not depend on how many processors look, or which is faster.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context

from tools.simulation.plan import Plan, plan_of
from tools.simulation.planted import BUGS, Change
from tools.simulation.run import Outcome, run, shrink
from tools.simulation.world import Fault

AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Found:
    """A seed's result; `fault` None: every promise was kept."""

    seed: int
    fault: Fault | None
    records: int
    moves: int


def hunt(seeds: Iterable[int], planted: str | None = None) -> Iterator[Found]:
    """The results of the seeds, in their order."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        wanted = list(seeds)
        yield from pool.map(_one, wanted, [planted] * len(wanted), chunksize=AT_ONCE)


def catch(bugs: Iterable[str], seeds: range) -> dict[str, Found | None]:
    """For each bug one of the seeds that catches it, None if none does.

    The one that is known to is tried first; does it no longer, because plans have changed, all others are.
    """
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        names = list(bugs)
        return dict(zip(names, pool.map(_first, names, [seeds] * len(names)), strict=True))


def smaller(seed: int, planted: str | None = None) -> tuple[Outcome, list[int]]:
    """A failing seed with as few of its steps as will do, and the numbers of those."""
    plan = plan_of(seed)
    fault = run(plan, change_of(planted)).fault
    if fault is None:
        raise ValueError(f"seed {seed} breaks no promise")
    outcome = shrink(plan, fault.promise, change_of(planted))
    return outcome, [number for number, step in enumerate(plan.steps) if step in outcome.plan.steps]


def kept(seed: int, numbers: Iterable[int]) -> Plan:
    """A seed's plan with only these of its steps."""
    plan = plan_of(seed)
    return replace(plan, steps=tuple(plan.steps[number] for number in sorted(set(numbers))))


def change_of(planted: str | None) -> Change:
    """What a bug changes; nothing without one."""
    return nullcontext if planted is None else BUGS[planted].change


def _one(seed: int, planted: str | None) -> Found:
    outcome = run(plan_of(seed), change_of(planted))
    return Found(seed, outcome.fault, outcome.records, outcome.moves)


def _first(planted: str, seeds: range) -> Found | None:
    known = BUGS[planted].caught_by
    for seed in (known, *seeds) if known in seeds else seeds:
        found = _one(seed, planted)
        if found.fault is not None:
            return found
    return None
