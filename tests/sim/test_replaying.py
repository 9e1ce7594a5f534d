"""A seed stands for one run, to the last line of its story, whoever runs it; and can be made small."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tools.simulate import command
from tools.simulation.hunt import catch, change_of, kept, smaller
from tools.simulation.plan import plan_of
from tools.simulation.run import run

BUG = "grace-forgotten"


def test_the_same_seed_tells_the_same_story() -> None:
    for seed in (0, 17):
        assert run(plan_of(seed)).digest() == run(plan_of(seed)).digest()


def test_other_seeds_tell_other_stories() -> None:
    assert len({run(plan_of(seed)).digest() for seed in range(4)}) == 4


def test_another_process_with_another_order_of_sets_tells_the_same_story() -> None:
    seeds = (3, 5, 8)
    script = (
        "from tools.simulation.plan import plan_of; from tools.simulation.run import run;"
        f"print([run(plan_of(seed)).digest() for seed in {seeds}])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": order},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for order in ("1", "2")
    }
    assert told == {f"{[run(plan_of(seed)).digest() for seed in seeds]}\n"}


@pytest.fixture(scope="module")
def failing_seed() -> int:
    found = catch([BUG], range(1000))[BUG]
    assert found is not None
    return found.seed


def test_a_failing_seed_is_made_smaller_and_breaks_the_same_promise(failing_seed: int) -> None:
    whole = run(plan_of(failing_seed), change_of(BUG))
    outcome, numbers = smaller(failing_seed, BUG)
    assert whole.fault is not None
    assert outcome.fault is not None
    assert outcome.fault.promise == whole.fault.promise
    assert len(numbers) < len(whole.plan.steps)
    for number in range(len(numbers)):
        fewer = replace(outcome.plan, steps=outcome.plan.steps[:number] + outcome.plan.steps[number + 1 :])
        fault = run(fewer, change_of(BUG)).fault
        assert fault is None or fault.promise != whole.fault.promise, "a step was left that is not needed"


def test_the_steps_that_are_left_are_a_run_of_their_own(failing_seed: int) -> None:
    outcome, numbers = smaller(failing_seed, BUG)
    again = run(kept(outcome.plan.seed, numbers), change_of(BUG))
    assert again.digest() == outcome.digest()


def test_the_command_shows_a_failing_seed_again(failing_seed: int) -> None:
    seed = str(failing_seed)
    ran = CliRunner().invoke(command, ["--seeds", "1", "--first", seed, "--planted", BUG, "--json"])
    assert ran.exit_code == 0, ran.output
    smallest = json.loads(ran.stdout)["smallest"]
    words = ["--seed", seed, "--keep", ",".join(map(str, smallest["keep"])), "--planted", BUG, "--json"]
    again = CliRunner().invoke(command, words)
    assert json.loads(again.stdout) == smallest


def test_the_command_ends_with_0_when_every_promise_is_kept_and_with_1_when_a_bug_is_not_caught() -> None:
    assert CliRunner().invoke(command, ["--seeds", "2"]).exit_code == 0
    assert CliRunner().invoke(command, ["--seed", "0", "--keep", "", "--planted", BUG]).exit_code == 1


def test_the_command_says_what_it_does_not_understand() -> None:
    for words, said in (
        (["--planted", "typo"], "there is no bug 'typo'"),
        (["--keep", "0"], "go with --seed"),
        (["--seed", "0", "--keep", "0,999"], "that plan's steps are 0 to"),
        (["--seed", "0", "--keep", "x"], "numbers with commas"),
    ):
        ran = CliRunner().invoke(command, words)
        assert ran.exit_code == 2
        assert said in ran.output
