"""Each peer has its own allowance; what is not used does not pile up."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.wire import SECOND_NS
from tracker.rates import Rates


def admitted(rates: Rates, peer: str, now_ns: int, times: int) -> int:
    return sum(rates.admit(peer, now_ns) for _ in range(times))


def test_a_burst_is_admitted_and_then_as_many_as_flow_in() -> None:
    rates = Rates(100, 200)
    assert admitted(rates, "a", 0, 1000) == 200
    assert admitted(rates, "a", SECOND_NS // 100, 10) == 1
    assert admitted(rates, "a", SECOND_NS, 1000) == 99
    assert admitted(rates, "a", 10 * SECOND_NS, 1000) == 200


def test_nobody_pays_for_another() -> None:
    rates = Rates(10, 20)
    assert admitted(rates, "noisy", 5, 10_000) == 20
    assert admitted(rates, "quiet", 5, 20) == 20


def test_whoever_has_been_quiet_is_forgotten() -> None:
    rates = Rates(10, 20)
    for number in range(1000):
        rates.admit(f"peer {number}", 0)
    assert len(rates) == 1000
    rates.admit("another", 2 * SECOND_NS)
    assert len(rates) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, SECOND_NS // 2)), max_size=200))
def test_within_any_second_a_peer_gets_its_burst_and_its_rate_at_most(calls: list[tuple[str, int]]) -> None:
    rates = Rates(10, 20)
    now_ns = 0
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for peer, pause_ns in calls:
        now_ns += pause_ns
        if rates.admit(peer, now_ns):
            taken[peer].append(now_ns)
    for moments in taken.values():
        for moment in moments:
            assert sum(moment <= other < moment + SECOND_NS for other in moments) <= 20 + 10
