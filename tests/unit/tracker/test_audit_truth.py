"""What `who` answers about any time is what was so whenever the clock showed that time."""

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tracker.life import Life, stepped
from tests.unit.tracker.wire import ANN, BOB, SECOND_NS, claim, opening
from tracker.audit import ALIVE, Holder, Unknown, alive_note
from tracker.events import BindingWithdrawn, Ending
from tracker.messages import Heartbeat

ACTIONS = st.one_of(
    st.sampled_from(["ann", "bob", "end", "wait", "wait"]),
    st.integers(2, 12),
    st.integers(2, 12).map(lambda seconds: -seconds),
)


@settings(max_examples=15)
@given(st.lists(ACTIONS, min_size=5, max_size=20))
def test_who_answers_what_was_so_whenever_the_clock_showed_the_time(actions: list[str | int]) -> None:
    with TemporaryDirectory() as directory:
        life = Life(Path(directory) / "log")
        truth = lived(life, actions)
        for second in range(-50, 60):
            asked = second + 0.5
            answer = life.answer(asked)
            holders = truth.get(asked, set())
            if len(holders) == 1:
                (holder,) = holders
                assert not isinstance(answer, Unknown), (asked, answer)
                assert (answer.holding.holder if isinstance(answer, Holder) else None) == holder
            else:
                assert isinstance(answer, Unknown), (asked, answer)
                assert answer.because
        life.log.close()


def lived(life: Life, actions: list[str | int]) -> dict[float, set[bytes | None]]:
    """Carries the actions out, one a second; who held the port in the middle of each second shown."""
    truth: defaultdict[float, set[bytes | None]] = defaultdict(set)
    step_s, binding, holder = 0, 0, None
    life.say(0, opening())
    for second, action in enumerate(actions, 1):
        truth[second - 1 + step_s + 0.5].add(holder)
        if isinstance(action, int):
            step_s += action
        now = stepped(second, step_s)
        life.say_at(now, Heartbeat("gw", 1, second))
        if action in ("ann", "bob") and holder is None:
            holder = ANN if action == "ann" else BOB
            binding += 1
            life.say_at(now, claim(holder))
        elif action == "end" and holder is not None:
            holder = None
            ended = BindingWithdrawn("gw", 1, binding, Ending.IDLE, now.wall_ns, None, None, None, None)
            life.say_at(now, ended)
    truth[len(actions) + step_s + 0.5].add(holder)
    alive = alive_note(stepped(len(actions), step_s).wall_ns, 4 * SECOND_NS // 5)
    life.log.append([], notes={ALIVE: alive})
    return truth
