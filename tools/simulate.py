"""`porthold simulate`: the whole of it in simulated adversity, from seeds, against a reference model."""

import sys
import time
from collections.abc import Sequence
from typing import Final

import click

from tools.options import WrongUse, json_option
from tools.output import print_json, print_line, progress_bar
from tools.simulation.hunt import Found, catch, change_of, hunt, kept, smaller
from tools.simulation.plan import plan_of
from tools.simulation.planted import BUGS
from tools.simulation.run import Outcome, run

SEEDS: Final = 1000


@click.command("simulate")
@click.option(
    "--seeds", type=click.IntRange(1), default=SEEDS, show_default=True, help="How many seeds to run."
)
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--seed", type=click.IntRange(0), help="Only this seed: show its plan and what came of it.")
@click.option("--keep", help="With --seed: only these steps of its plan, by number: 0,3,4.")
@click.option("--story", is_flag=True, help="With --seed: tell what happened, line by line.")
@click.option(
    "--planted", metavar="BUG", help="With this bug in the code; `list` lists them, `all` tries all."
)
@json_option
def command(
    *,
    seeds: int,
    first: int,
    seed: int | None,
    keep: str | None,
    story: bool,
    planted: str | None,
    as_json: bool,
) -> None:
    """Run tracker, workers, outboxes and log, the real ones, under simulated system calls.

    Clock, network, disks, the kernel's tables, queues and connections, crashes and stops follow from a seed;
    a reference model looks on and compares after each step. The same seed always gives the same run. A seed
    that breaks a promise is made as small as it can be. Ends with 0 if all promises are kept, with 1 if not;
    with --planted, with 0 if the bug is caught. Needs no privileges, touches nothing of this machine.
    """
    if planted == "list":
        for name, bug in BUGS.items():
            print_line((name, "bold"), f"  {bug.story}")
        return
    if planted not in (None, "all", *BUGS):
        raise WrongUse(f"there is no bug {planted!r}; `porthold simulate --planted list` lists them")
    if (keep or story) and seed is None:
        raise WrongUse("--keep and --story go with --seed")
    if planted == "all":
        sys.exit(_catch_all(range(first, first + seeds), as_json=as_json))
    if seed is not None:
        sys.exit(_one(seed, keep, planted, story=story, as_json=as_json))
    sys.exit(_many(range(first, first + seeds), planted, as_json=as_json))


def _many(seeds: range, planted: str | None, *, as_json: bool) -> int:
    began = time.monotonic()
    broken: list[Found] = []
    records = 0
    with progress_bar("running seeds") as progress:
        for done, found in enumerate(hunt(seeds, planted), start=1):
            progress(done, len(seeds))
            records += found.records
            if found.fault is not None:
                broken.append(found)
    took_s = time.monotonic() - began
    outcome, steps = smaller(broken[0].seed, planted) if broken else (None, [])
    if as_json:
        document = {
            "seeds": len(seeds),
            "first": seeds.start,
            "records": records,
            "seconds": round(took_s, 3),
            "broken": [{"seed": it.seed, "fault": str(it.fault)} for it in broken],
            "smallest": None if outcome is None else _document(outcome, steps),
        }
        print_json(document)
    else:
        rate = len(seeds) / took_s
        print_line(f"{len(seeds)} seeds, {records} records, {took_s:.1f} s ({rate:.0f} seeds a second)")
        for found in broken[:20]:
            print_line((f"seed {found.seed}: ", "bold red"), str(found.fault))
        if outcome is None:
            print_line(("every promise was kept", "bold green"))
        else:
            print_line(f"seed {broken[0].seed} with as few steps as will do:")
            _show(outcome, steps, planted)
    return int(bool(broken) == (planted is None))


def _one(seed: int, keep: str | None, planted: str | None, *, story: bool, as_json: bool) -> int:
    numbers = _numbers(keep, len(plan_of(seed).steps))
    outcome = run(kept(seed, numbers), change_of(planted))
    if as_json:
        print_json(_document(outcome, numbers))
    else:
        if story:
            for moment in outcome.story:
                print_line(str(moment))
        _show(outcome, numbers, planted)
    return int((outcome.fault is None) != (planted is None))


def _numbers(keep: str | None, count: int) -> list[int]:
    if keep is None:
        return list(range(count))
    try:
        numbers = [int(word) for word in keep.split(",") if word]
    except ValueError as error:
        raise WrongUse(f"--keep {keep}: numbers with commas between them, please") from error
    if any(not 0 <= number < count for number in numbers):
        raise WrongUse(f"--keep {keep}: that plan's steps are 0 to {count - 1}")
    return numbers


def _catch_all(seeds: range, *, as_json: bool) -> int:
    caught = catch(BUGS, seeds)
    if as_json:
        print_json(
            {
                name: None if found is None else {"seed": found.seed, "fault": str(found.fault)}
                for name, found in caught.items()
            }
        )
    else:
        for name, found in caught.items():
            if found is None:
                print_line((f"{name}: not caught", "bold red"), f" by {len(seeds)} seeds")
            else:
                print_line((f"{name}: ", "bold green"), f"seed {found.seed}, {found.fault}")
    return int(None in caught.values())


def _show(outcome: Outcome, numbers: Sequence[int], planted: str | None) -> None:
    print_line(f"  {outcome.plan.setting}")
    for number, step in zip(numbers, outcome.plan.steps, strict=True):
        print_line(f"  {number:3}  {step}")
    if outcome.fault is None:
        print_line(("every promise was kept", "bold green"), f" ({outcome.records} records)")
    else:
        print_line(("broken: ", "bold red"), str(outcome.fault))
    again = f"porthold simulate --seed {outcome.plan.seed} --keep {','.join(map(str, numbers))} --story"
    print_line(f"again: {again}{'' if planted is None else f' --planted {planted}'}")


def _document(outcome: Outcome, numbers: Sequence[int]) -> dict[str, object]:
    return {
        "seed": outcome.plan.seed,
        "keep": list(numbers),
        "steps": [str(step) for step in outcome.plan.steps],
        "fault": None if outcome.fault is None else str(outcome.fault),
        "records": outcome.records,
        "digest": outcome.digest(),
    }
