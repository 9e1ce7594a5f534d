"""All of it in simulated adversity: a thousand seeds keep every promise, each planted bug breaks one.

Rule 1: what a seed finds is printed with the command that shows it again. Rule 2: how many seeds there are is
decided here once, for both: a bug that only more of them would catch is not caught.
"""

import pytest

from tools.simulation.hunt import Found, catch, hunt
from tools.simulation.planted import BUGS

SEEDS = range(1000)


@pytest.mark.timeout(600)
def test_a_thousand_seeds_keep_every_promise() -> None:
    results = list(hunt(SEEDS))
    broken = [f"porthold simulate --seed {it.seed}: {it.fault}" for it in results if it.fault is not None]
    assert not broken, "\n".join(broken)
    # A simulation in which nothing happens keeps every promise, too.
    assert sum(it.records for it in results) > 20 * len(SEEDS)
    assert sum(it.moves for it in results) > len(SEEDS) // 20


@pytest.fixture(scope="module")
def caught() -> dict[str, Found | None]:
    return catch(BUGS, SEEDS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", BUGS)
def test_a_planted_bug_is_caught_within_the_same_seeds(planted: str, caught: dict[str, Found | None]) -> None:
    found = caught[planted]
    assert found is not None, f"{planted} ({BUGS[planted].story}) is not caught by {len(SEEDS)} seeds"
    assert found.fault is not None
    # What does not fit the code any more ends with its own mistake, not with the one that it stands for.
    assert "TypeError" not in found.fault.detail
    assert "AttributeError" not in found.fault.detail


def test_there_are_bugs_enough() -> None:
    assert len(BUGS) >= 15
